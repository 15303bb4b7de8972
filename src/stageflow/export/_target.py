"""Creates the exporter for a URL."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InvalidArgumentError, did_you_mean, type_name
from ._exporter import Exporter, check_settle_seconds
from ._http import HttpExporter
from ._kafka import KafkaExporter
from ._nats import NatsExporter
from ._otlp import OtlpExporter
from ._postgres import PostgresExporter

__all__ = ["exporter_for", "exporters_of"]


_SCHEMES: Mapping[str, Callable[..., Exporter]] = {
    "http": HttpExporter,
    "https": HttpExporter,
    "kafka": KafkaExporter,
    "nats": NatsExporter,
    "otlp": OtlpExporter,
    "otlp+http": OtlpExporter,
    "otlp+https": OtlpExporter,
    "postgresql": PostgresExporter,
    "postgres": PostgresExporter,
}
"""The class of exporter for each scheme of a URL."""

_OPTIONS = (
    *("url", "url_env", "name", "settle_seconds"),
    *("secret_env", "headers_env", "schema", "encoding", "logs", "openinference", "genai"),
    *("compress", "timeout", "subject", "credentials_file", "config", "config_env"),
)


def exporter_for(
    url: str | None = None,
    *,
    url_env: str | None = None,
    name: str | None = None,
    settle_seconds: float | None = None,
    **options: Any,
) -> Exporter:
    """Return the exporter for a URL; its scheme determines the kind of target.

    Args:
        url: The URL, such as "https://collector.example/events".
        url_env: Environment variable with the URL, if the URL is secret.
        name: Name of the exporter; default one that is derived from the URL.
        settle_seconds: Number of seconds after which an event is sent, as in `Exporter`; default that of the
            kind of exporter.
        options: Other arguments of the exporter, such as `secret_env` and `headers_env`.

    Raises:
        InvalidArgumentError: The URL or an option is invalid, or the variable is not set.
        MissingExtraError: A package that the exporter requires is not installed.

    Example:
        exporter_for("https://collector.example/events", secret_env="EXPORT_SECRET")
    """
    if (url is None) == (url_env is None):
        raise InvalidArgumentError("an exporter requires either url or url_env")
    if url_env is not None:
        url = os.environ.get(url_env)
        if not url:
            raise InvalidArgumentError(f"the environment variable {url_env} is not set")
    scheme = url.partition(":")[0] if isinstance(url, str) else ""
    if scheme not in _SCHEMES:
        known_schemes = ", ".join(f"{known}:" for known in _SCHEMES)
        raise InvalidArgumentError(f"expected a URL that begins with {known_schemes}, got '{scheme}:...'")
    kind = _SCHEMES[scheme]
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known:
            near = did_you_mean(option, known)
            raise InvalidArgumentError(f"{kind.__name__} has no option {option!r}{near}")
    exporter = kind(url, name=name, **options)
    if settle_seconds is not None:
        exporter.settle_seconds = check_settle_seconds(settle_seconds)
    return exporter


def exporters_of(targets: object) -> Sequence[Exporter]:
    """Return the exporters of a setting: a list of URLs, of mappings with `url` and options, or of exporters.

    Raises:
        InvalidArgumentError: An item is invalid, or two exporters have the same name.
        MissingExtraError: A package that an exporter requires is not installed.
    """
    if isinstance(targets, str) or not isinstance(targets, Sequence):
        raise InvalidArgumentError("expected a list of URLs")
    found: list[Exporter] = []
    for target in targets:
        if isinstance(target, Exporter):
            found.append(target)
        elif isinstance(target, str):
            found.append(exporter_for(target))
        elif isinstance(target, Mapping):
            for key in target:
                if key not in _OPTIONS:
                    near = did_you_mean(str(key), _OPTIONS)
                    raise InvalidArgumentError(f"unknown option {key!r}{near}")
            found.append(exporter_for(**target))
        else:
            raise InvalidArgumentError(
                f"expected a URL, a table with url, or an Exporter, got {type_name(target)}"
            )
    names = [exporter.name for exporter in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidArgumentError(f"more than one exporter is named {twice[0]!r}")
    return found
