"""`RunFilter`: selects runs by the fields of their `pipeline.wide` event."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import force_setattr

from .._state_file import decoder
from .._time import epoch_us, rfc3339
from .._value import ValueType
from ..errors import did_you_mean, invalid_argument
from ..schema import CorrelationIds
from ._format import (
    decode,
)

__all__ = ["OTHER_IDS", "Names", "RunFilter", "RunHeader", "decode_run_header", "json_content"]


_STARTED_AT = b'"started_at":"'
_STARTED_AT_LIMIT = 200
"""Maximum offset of `started_at` in a line that is searched without decoding it."""

OTHER_IDS = ("request", "session", "user", "org")
"""The ids other than run ids: names of fields of `RunFilter` and, with the suffix `_id`, of records."""


class RunFilter(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """Selects runs. A run must satisfy all fields that are not None.

    Attributes:
        status: A status ("OK", "FAIL", "OPEN") or an outcome ("failed", "crashed", ...); case-insensitive.
        pipeline: Name of the pipeline.
        stage: Name of a stage, optionally with its status ("search:FAIL").
        id: One of the five correlation ids, or a prefix of the run id.
        id_prefix: A prefix of one of the five correlation ids.
        request: The `request_id`.
        session: The `session_id`.
        user: The `user_id`.
        org: The `org_id`.
        slower_than: Minimum duration of the run, in seconds (exclusive).
        since: RFC 3339 time; selects runs that started at this time or later.
        until: RFC 3339 time; selects runs that started earlier.
        roots: If True, select only root runs, which were not started inside a stage of another run.

    Raises:
        InvalidArgumentError: A time is invalid, `until` is not later than `since`, or a name or id is empty.
    """

    status: str | None = None
    pipeline: str | None = None
    stage: str | None = None
    id: str | None = None
    id_prefix: str | None = None
    request: str | None = None
    session: str | None = None
    user: str | None = None
    org: str | None = None
    slower_than: float | None = None
    since: str | None = None
    until: str | None = None
    roots: bool = False

    def __post_init__(self) -> None:
        for name in ("status", "pipeline", "stage", "id", "id_prefix", *OTHER_IDS):
            # An empty string is usually an unset variable. It must not select all runs.
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise invalid_argument("RunFilter", name, value, "a non-empty str or None")
        # Normalize to six decimal places, like the times of events, so that they can be compared as strings.
        for name in ("since", "until"):
            if (time := getattr(self, name)) is not None:
                try:
                    force_setattr(self, name, rfc3339(epoch_us(time)))
                except (TypeError, ValueError):
                    raise invalid_argument(
                        "RunFilter", name, time, "an RFC 3339 time such as '2026-11-23T16:00:00Z'"
                    ) from None
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise invalid_argument("RunFilter", "until", self.until, f"later than since ({self.since!r})")

    def required_bytes(self) -> list[bytes]:
        """Return byte strings that the line of every selected run contains.

        Lines without them can be skipped without decoding them.
        """
        stage = self.stage.partition(":")[0] if self.stage else None
        ids = (self.id, self.id_prefix, self.request, self.session, self.user, self.org)
        return [json_content(text) for text in (self.pipeline, *ids, stage) if text]

    def matches(self, run: RunHeader) -> bool:
        """Return whether the filter selects a run."""
        return (
            (self.status is None or self.status.lower() in (run.status.lower(), run.outcome))
            and (self.pipeline is None or self.pipeline == run.pipeline_name)
            and (self.slower_than is None or run.duration_ms > self.slower_than * 1000)
            and (self.since is None or run.started_at >= self.since)
            and (self.until is None or run.started_at < self.until)
            and (self.id is None or run.matches_id(self.id))
            and (self.id_prefix is None or run.matches_id_prefix(self.id_prefix))
            and all(
                (value := getattr(self, name)) is None or value == getattr(run.correlation_ids, f"{name}_id")
                for name in OTHER_IDS
            )
            and (self.stage is None or run.matches_stage(self.stage))
            and (not self.roots or run.parent_run_id is None)
        )


class _Summary(Struct, frozen=True, gc=False):
    stage_name: str
    status: str


class RunHeader(Struct, frozen=True):
    """The fields of a `pipeline.wide` event that filters use."""

    status: str = ""
    outcome: str = ""
    started_at: str = ""
    duration_ms: float = 0.0
    event_id: str = ""
    pipeline_name: str = ""
    parent_run_id: str | None = None
    correlation_ids: CorrelationIds = CorrelationIds()
    stage_summaries: list[_Summary] = []

    def matches_id(self, wanted: str) -> bool:
        ids = self.correlation_ids
        return self.event_id.startswith(wanted) or wanted in (
            ids.request_id,
            ids.session_id,
            ids.user_id,
            ids.org_id,
        )

    def matches_id_prefix(self, prefix: str) -> bool:
        ids = self.correlation_ids
        return any(
            known is not None and known.startswith(prefix)
            for known in (self.event_id, ids.request_id, ids.session_id, ids.user_id, ids.org_id)
        )

    def matches_stage(self, wanted: str) -> bool:
        name, _, status = wanted.partition(":")
        return any(
            summary.stage_name == name and status.upper() in ("", summary.status)
            for summary in self.stage_summaries
        )


_decode_header = decoder(RunHeader)


def decode_run_header(text: bytes, cutoff: str) -> RunHeader | None:
    """Decode the header of a run; return None if the run started before `cutoff` or the line is damaged."""
    if cutoff:
        # `started_at` is near the start of the line, so most old lines are skipped without decoding them.
        at = text.find(_STARTED_AT, 0, _STARTED_AT_LIMIT) + len(_STARTED_AT)
        if len(_STARTED_AT) <= at and text[at : at + len(cutoff)] < cutoff.encode():
            return None
    line = decode(text)
    head = _decode_header(line.data) if line is not None and isinstance(line.data, Raw) else None
    # A custom event with this type but without the fields of a wide event is not a run.
    return head if head and head.event_id and head.started_at and head.status else None


def json_content(text: str) -> bytes:
    """Return the JSON string of a text without its quotes, as it occurs in a line."""
    return msgspec.json.encode(text)[1:-1]


class Names(Struct, frozen=True):
    """The names of pipelines and stages that occur in records.

    Attributes:
        pipelines: Names of pipelines, including those that only events of stages contain.
        stages: Names of stages.
    """

    pipelines: frozenset[str]
    stages: frozenset[str]

    def unknown(self, filter: RunFilter) -> str | None:
        """Return which pipeline or stage of a filter does not occur, with the closest name; None if all do.

        Example:
            >>> Names(frozenset({"chat"}), frozenset({"search"})).unknown(RunFilter(pipeline="chatt"))
            "no pipeline 'chatt'; did you mean 'chat'?"
        """
        stage = filter.stage.partition(":")[0] if filter.stage else None
        for kind, name, known in (
            ("pipeline", filter.pipeline, self.pipelines),
            ("stage", stage, self.stages),
        ):
            if name is not None and name not in known:
                return f"no {kind} {name!r}{did_you_mean(name, known)}"
        return None
