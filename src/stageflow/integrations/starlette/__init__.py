"""Stream runs to browsers as server-sent events, in FastAPI and Starlette applications."""

from ...errors import MissingExtraError
from ._wire import encode_json

try:
    from ._event_streams import EventStreamResponse, EventStreams
except ImportError as error:
    if (error.name or "").partition(".")[0] != "starlette":
        raise
    raise MissingExtraError("stageflow.integrations.starlette", "starlette") from error

__all__ = ["EventStreamResponse", "EventStreams", "encode_json"]
