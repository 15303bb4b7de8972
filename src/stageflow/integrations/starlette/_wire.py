"""The text of server-sent events, as defined by the WHATWG."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from ...errors import StageOutputError, type_name
from ...stages import Chunk

__all__ = [
    "KEEP_ALIVE",
    "Encode",
    "chunk_encoder",
    "data_lines",
    "encode_json",
    "event_id",
    "event_text",
    "json_lines",
]

Encode = Callable[[Chunk], str | bytes]

KEEP_ALIVE = b": keep-alive\n\n"


def encode_json(chunk: Chunk) -> bytes:
    """Return a chunk as the JSON object `{"stage": ..., "value": ...}`: the default of `encode=`.

    The value can be text, a number, a list, a dict, a dataclass, a Struct, an attrs class, a pydantic model,
    a date, a UUID, an `Enum` member or bytes (as base64 text).

    Raises:
        TypeError: JSON cannot represent the value.

    Example:
        >>> encode_json(Chunk("write", 0, "Hello"))
        b'{"stage":"write","value":"Hello"}'
    """
    event = {"stage": chunk.stage, "value": chunk.value}
    try:
        return msgspec.json.encode(event, enc_hook=_as_json)
    except UnicodeEncodeError:  # half of a surrogate pair, which is valid in JSON only as an escape
        return json.dumps(msgspec.to_builtins(event, enc_hook=_as_json), allow_nan=False).encode()


def _as_json(value: Any) -> Any:
    dump = getattr(type(value), "model_dump", None)  # a pydantic model
    if dump is None:
        raise StageOutputError(
            f"JSON cannot represent a value of type {type_name(value)}",
            hint="send text, a mapping or a model, or pass encode= to EventStreams",
        )
    return dump(value, mode="json")


def chunk_encoder(encode: Encode) -> Callable[[Chunk], bytes]:
    """Return a function that returns the `data:` lines of a chunk.

    It raises `StageOutputError` if `encode` fails or does not return text.
    """

    def encoded(chunk: Chunk) -> bytes:
        try:
            text = encode(chunk)
        except Exception as error:
            raise StageOutputError(
                f"cannot encode chunk {chunk.number} as a server-sent event: {error}",
                stage=chunk.stage,
                hint="send values that JSON can represent, pass encode= to EventStreams,"
                " or select the stages to stream with stages=",
            ) from error
        if not isinstance(text, (str, bytes)):
            raise StageOutputError(
                f"encode= must return str or bytes, got {type_name(text)}", stage=chunk.stage
            )
        return data_lines(text)

    return encoded


def data_lines(text: str | bytes) -> bytes:
    r"""Return the `data:` lines of an event. Only \r\n, \r and \n end a line.

    Example:
        >>> data_lines("one\rtwo")
        b'data: one\ndata: two\n'
    """
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"".join(b"data: %s\n" % line for line in lines)


def json_lines(value: dict[str, str]) -> bytes:
    """Return the `data:` line of an event that contains a JSON object."""
    return data_lines(msgspec.json.encode(value))


def event_id(run_id: str, number: int, last: str) -> str:
    """Return the id of an event; its last part identifies the run to the server, and can be empty.

    Example:
        >>> event_id("r 1", 3, "end")
        'r%201/3/end'
    """
    return f"{quote(run_id, safe='')}/{number}/{last}".rstrip("/")


def event_text(event_id: str, name: str, data: bytes) -> bytes:
    """Return an event; `data` are its `data:` lines."""
    return b"id: %s\nevent: %s\n%s\n" % (event_id.encode(), name.encode(), data)
