"""What process made the events: looked up once, from what was configured, the environment and the system."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Mapping
from urllib.parse import unquote

from .._fork import reset_in_child
from ..schema import Resource
from .defaults import defaults, on_change
from .short_repr import safe_text

__all__ = ["BEGAN_NS", "resource", "service_name"]

BEGAN_NS = time.monotonic_ns()
"""About when the process began: when the library was imported."""

# Where platforms say it; the first that is set counts.
_SERVICE = (
    "OTEL_SERVICE_NAME",
    "K_SERVICE",  # Cloud Run, Knative
    "AWS_LAMBDA_FUNCTION_NAME",
    "HEROKU_APP_NAME",
    "FLY_APP_NAME",
    "RENDER_SERVICE_NAME",
    "RAILWAY_SERVICE_NAME",
    "WEBSITE_SITE_NAME",  # Azure App Service
)
_VERSION = ("K_REVISION", "AWS_LAMBDA_FUNCTION_VERSION", "HEROKU_RELEASE_VERSION", "FLY_IMAGE_REF")
_ENVIRONMENT = ("ENVIRONMENT", "APP_ENV", "RAILWAY_ENVIRONMENT_NAME", "VERCEL_ENV")
_COMMIT = (
    "GIT_COMMIT",
    "GITHUB_SHA",
    "CI_COMMIT_SHA",
    "SOURCE_VERSION",  # Heroku's build packs
    "HEROKU_SLUG_COMMIT",
    "RENDER_GIT_COMMIT",
    "RAILWAY_GIT_COMMIT_SHA",
    "VERCEL_GIT_COMMIT_SHA",
)


@functools.cache
def resource() -> Resource:
    """Return service, host, pid and runtime, looked up once a process."""
    given = defaults()
    named = _otel_attributes(os.environ)
    return Resource(
        service_version=_text(given.version or named.get("service.version") or _first(_VERSION)),
        host=safe_text(os.uname().nodename),
        pid=os.getpid(),
        runtime=f"{platform.python_implementation().lower()} {platform.python_version()}",
        environment=_text(
            given.environment
            or named.get("deployment.environment.name")
            or named.get("deployment.environment")
            or _first(_ENVIRONMENT)
        ),
        commit=_text(given.commit or named.get("vcs.ref.head.revision") or _first(_COMMIT)),
    )


@functools.cache
def service_name() -> str | None:
    """Return the name of the service, for runs that name none."""
    name = defaults().service or os.environ.get("OTEL_SERVICE_NAME")
    return _text(name or _otel_attributes(os.environ).get("service.name") or _first(_SERVICE))


def _otel_attributes(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `OTEL_RESOURCE_ATTRIBUTES` as OpenTelemetry has it: key=value behind commas, percent-encoded."""
    pairs = (pair.partition("=") for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    return {key.strip(): unquote(value.strip()) for key, equals, value in pairs if equals}


def _first(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _text(value: str | None) -> str | None:
    return None if value is None else safe_text(value)


def _look_again() -> None:
    resource.cache_clear()
    service_name.cache_clear()


on_change(_look_again)
reset_in_child(_look_again)
