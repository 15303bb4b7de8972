"""The default name of an exporter, derived from its URL."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import urlsplit

__all__ = ["name_of_url"]


_MAX = 60


def name_of_url(url: str) -> str:
    """Return a name that is the same in every process with the same URL, and contains no secret.

    User, password and query do not change the name, so that secrets can be rotated.

    Example:
        >>> name_of_url("https://user:secret@collector.example:4318/v1/events?token=1")
        'https-collector.example-4318-v1-events'
    """
    parts = urlsplit(url)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    name = re.sub(r"[^A-Za-z0-9._]+", "-", address).strip("-._")
    if len(name) > _MAX:
        name = f"{name[:_MAX]}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    return name
