"""`KafkaExporter`: produces events to a topic of Kafka."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ..errors import MissingExtraError, describe, invalid_argument
from ._batch import Batch
from ._exporter import Exporter, NotSent, Rejected, Sent, check_name
from ._http import line_of
from ._name import name_of_url

__all__ = ["KafkaExporter"]


_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


class KafkaExporter(Exporter):
    """Produces each event as a message whose key is the run id, so that the events of a run remain in order.

    The producer is idempotent: it does not duplicate a message while it retries. If the process dies, a batch
    can be produced again; consumers can detect duplicates by the headers `event_id` and `revision`.

    Args:
        url: Addresses of brokers, and the topic: "kafka://broker-1:9092,broker-2:9092/events".
        name: Name of the exporter; default one that is derived from the URL.
        config: Additional options of librdkafka, such as `sasl.username`; default none.
        config_env: Environment variable with such options as JSON, if they contain secrets; default None.
        timeout: Maximum time for the acknowledgements of a batch, in seconds; default 30.

    Raises:
        InvalidArgumentError: An argument or the variable is invalid.
        MissingExtraError: The packages of the `kafka` extra are not installed.

    Example:
        KafkaExporter("kafka://broker.example:9092/events", config={"security.protocol": "SSL"})
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        config_env: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        parts = urlsplit(url)
        topic = parts.path.strip("/")
        if parts.scheme != "kafka" or not parts.netloc or "@" in parts.netloc or not _TOPIC.fullmatch(topic):
            raise invalid_argument(
                *("KafkaExporter", "url", f"{parts.scheme}:..."),
                "a URL such as kafka://broker:9092/topic, without user and password",
            )
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not timeout > 0:
            raise invalid_argument("KafkaExporter", "timeout", timeout, "a positive number of seconds")
        self._kafka = _confluent_kafka()
        self.name = name_of_url(url) if name is None else check_name(name)
        self._url = url
        self._topic = topic
        self._timeout = timeout
        self._config = {
            "bootstrap.servers": parts.netloc,
            "client.id": "stageflow-export",
            "compression.type": "lz4",
            "linger.ms": 5,
            "message.timeout.ms": max(1000, int(timeout * 1000)),
            **(config or {}),
            **_config_of_environment(config_env),
            "enable.idempotence": True,
        }
        self._producer: Any = None

    @property
    def target(self) -> str:
        return self._url

    async def send(self, batch: Batch) -> Sent:
        try:
            # The call blocks until the brokers have acknowledged the batch.
            failures = await asyncio.to_thread(self._produce, batch)
        except self._kafka.KafkaException as error:
            await self.close()
            raise NotSent(describe(error)) from None
        kafka_error = self._kafka.KafkaError
        too_large = (kafka_error.MSG_SIZE_TOO_LARGE, kafka_error.INVALID_MSG_SIZE)
        rejected = []
        for index, failure in failures.items():
            if failure is None or failure.code() not in too_large:
                await self.close()
                raise NotSent("no acknowledgement" if failure is None else failure.str())
            rejected.append(Rejected(index, failure.str()))
        return Sent(tuple(sorted(rejected, key=lambda each: each.index)))

    def _produce(self, batch: Batch) -> dict[int, Any]:
        """Return the error of each message that was not delivered; None if there was no response."""
        if self._producer is None:
            self._producer = self._kafka.Producer(self._config, logger=_Silent())
        failures: dict[int, Any] = dict.fromkeys(range(len(batch.events)))
        for index, event in enumerate(batch.events):

            def delivered(error: Any, message: Any, index: int = index) -> None:
                if error is None:
                    failures.pop(index, None)
                else:
                    failures[index] = error

            headers = [("event_id", event.id.encode()), ("revision", b"%d" % event.revision)]
            try:
                self._producer.produce(
                    self._topic,
                    line_of(event).rstrip(),
                    key=(event.run_id or event.id).encode(),
                    headers=headers,
                    on_delivery=delivered,
                )
            except self._kafka.KafkaException as error:  # it is larger than `message.max.bytes`
                failures[index] = error.args[0]
        self._producer.flush(self._timeout)
        return failures

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            await asyncio.to_thread(producer.flush, 1.0)


class _Silent:
    """A logger that discards the messages of librdkafka, because the runner reports errors."""

    def log(self, *arguments: Any) -> None:
        """Discard a message."""


def _config_of_environment(variable: str | None) -> dict[str, Any]:
    if variable is None:
        return {}
    try:
        found: dict[str, Any] = msgspec.json.decode(os.environ.get(variable, ""), type=dict[str, Any])
    except (msgspec.DecodeError, ValueError):
        raise invalid_argument(
            "KafkaExporter", "config_env", variable, "the name of a variable with a JSON object"
        ) from None
    return found


def _confluent_kafka() -> Any:
    try:
        import confluent_kafka
    except ModuleNotFoundError as error:
        raise MissingExtraError("a Kafka exporter", "kafka") from error
    return confluent_kafka
