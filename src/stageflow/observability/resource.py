"""What process made the events."""

from __future__ import annotations

import functools
import os
import platform

from ..schema import Resource

__all__ = ["resource"]


@functools.cache
def resource() -> Resource:
    """Return host, pid and runtime, looked up once a process."""
    return Resource(
        service_version=None,
        host=os.uname().nodename,
        pid=os.getpid(),
        runtime=f"{platform.python_implementation().lower()} {platform.python_version()}",
    )


os.register_at_fork(after_in_child=resource.cache_clear)
