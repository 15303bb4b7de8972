"""The OpenTelemetry resource, the active span, the process sample and the health event."""

from __future__ import annotations

import asyncio
import functools
import os
import platform
import sys
import time
from collections.abc import Mapping
from resource import RUSAGE_SELF, getrusage
from typing import Any
from urllib.parse import unquote

import msgspec

from .._fork import reset_in_child
from .._ids import uuid7
from .._time import get_clock, rfc3339
from ..events import Event, NoOpEventSink, offer, stats
from ..schema import SCHEMA_VERSION, ProcessSample, Resource
from ._defaults import defaults, on_change
from .sanitize._coerce import safe_text

__all__ = [
    "BEGAN_NS",
    "HEALTH",
    "active_span",
    "emit_health",
    "emit_health_if_due",
    "resource",
    "sample",
    "service_name",
]


HEALTH = "stageflow.health"

SAMPLE_EVERY_NS = 10_000_000_000
"""Minimum interval between two samples. Events in between share the last one."""

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024

BEGAN_NS = time.monotonic_ns()
"""Approximate start of the process: the time at which the library was imported."""

# The environment variables of common platforms. The first one that is set is used.
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


def active_span() -> tuple[str, str, str] | None:
    """Return trace id, span id and flags of the active span, or None.

    OpenTelemetry is used only if the application has imported it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{int(context.trace_flags):02x}"


@functools.cache
def resource() -> Resource:
    """Return the resource of this process: version, host, pid, runtime, environment and commit."""
    given = defaults()
    named = _otel_attributes(os.environ)
    return Resource(
        service_version=_text(given.version or named.get("service.version") or _first_set(_VERSION)),
        host=safe_text(os.uname().nodename),
        pid=os.getpid(),
        runtime=f"{platform.python_implementation().lower()} {platform.python_version()}",
        environment=_text(
            given.environment
            or named.get("deployment.environment.name")
            or named.get("deployment.environment")
            or _first_set(_ENVIRONMENT)
        ),
        commit=_text(given.commit or named.get("vcs.ref.head.revision") or _first_set(_COMMIT)),
    )


@functools.cache
def service_name() -> str | None:
    """Return the name of the service for runs that do not set one, or None if it is unknown."""
    name = defaults().service or os.environ.get("OTEL_SERVICE_NAME")
    return _text(name or _otel_attributes(os.environ).get("service.name") or _first_set(_SERVICE))


def _otel_attributes(environ: Mapping[str, str]) -> dict[str, str]:
    """Parse `OTEL_RESOURCE_ATTRIBUTES`: comma-separated `key=value` pairs with percent-encoded values."""
    pairs = (pair.partition("=") for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    return {key.strip(): unquote(value.strip()) for key, equals, value in pairs if equals}


def _first_set(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _text(value: str | None) -> str | None:
    return None if value is None else safe_text(value)


def _reset_cache() -> None:
    resource.cache_clear()
    service_name.cache_clear()


on_change(_reset_cache)
reset_in_child(_reset_cache)


class _Sampler:
    """Samples the state of this process, and caches the last sample."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset the sample in a forked child, which is another process."""
        self.last: ProcessSample | None = None
        self.taken_ns = 0
        self.cpu_ns = time.process_time_ns()
        self.lag_ms: float | None = None
        self.lag_asked_ns = 0

    def sample(self) -> ProcessSample:
        now = time.monotonic_ns()
        if self.last is None or now - self.taken_ns >= SAMPLE_EVERY_NS:
            cpu_ns = time.process_time_ns()
            since = max(now - (self.taken_ns or BEGAN_NS), 1)
            usage = getrusage(RUSAGE_SELF)
            self.last = ProcessSample(
                uptime_s=(now - BEGAN_NS) // 1_000_000 / 1000,
                memory_peak_bytes=usage.ru_maxrss * _MAXRSS_UNIT,
                cpu_percent=round(100 * (cpu_ns - self.cpu_ns) / since, 1),
                loop_lag_ms=self.lag_ms,
            )
            self.taken_ns, self.cpu_ns = now, cpu_ns
        # Measured separately, because a thread without an event loop may have taken the sample.
        if now - self.lag_asked_ns >= SAMPLE_EVERY_NS:
            self._measure_lag(now)
        return self.last

    def _measure_lag(self, now: int) -> None:
        """Measure how long the event loop takes to run a callback; the next sample contains the result."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self.lag_asked_ns = now

        def store_lag() -> None:
            self.lag_ms = (time.monotonic_ns() - now) // 1000 / 1000

        loop.call_soon(store_lag)


_sampler = _Sampler()


def sample() -> ProcessSample:
    """Return the state of the process, at most 10 s old."""
    return _sampler.sample()


reset_in_child(_sampler.reset)


class _HealthInterval:
    """The time of the last health event."""

    def __init__(self) -> None:
        self.ns = 0
        self.reset()

    def reset(self) -> None:
        """Restart the interval in a forked child, after a change of settings, and after an event."""
        self.ns = time.monotonic_ns()


_last = _HealthInterval()


def emit_health_if_due(sink: Any) -> None:
    """Emit `stageflow.health` if it is configured and its interval has passed. Called when a run ends."""
    seconds = defaults().health_seconds
    if seconds is not None and time.monotonic_ns() - _last.ns >= seconds * 1e9:
        emit_health(sink)


def emit_health(sink: Any) -> None:
    """Emit `stageflow.health` with the current counters of every sink."""
    _last.reset()
    if type(sink) is NoOpEventSink:
        return
    counted = stats()
    wall_ns = get_clock().wall_ns()
    body = {
        "event_id": uuid7(wall_ns),
        "emitted_at": rfc3339(wall_ns // 1000),
        "schema_version": SCHEMA_VERSION,
        "service": service_name() or "unknown_service",
        "resource": resource(),
        "process": sample(),
        "sinks": counted.sinks,
        "emitter_errors": counted.emitter_errors,
        "coerced_values": counted.coerced_values,
    }
    offer(sink, Event(HEALTH, msgspec.to_builtins(body)))


on_change(_last.reset)
reset_in_child(_last.reset)
