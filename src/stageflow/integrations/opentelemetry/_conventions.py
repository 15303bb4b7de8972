"""Reads the calls that spans represent, with the former and the current names of the semantic conventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from ..._calls import Call
from ..._genai import Fields, embedding_fields, llm_fields

__all__ = ["GEN_AI", "KINDS", "call_of", "kind_of", "usage_of"]


HTTP, DB, GEN_AI, RPC, MESSAGING = KINDS = ("http", "db", "gen_ai", "rpc", "messaging")

_PREFIXES = {
    HTTP: "http.client",
    DB: "db",
    GEN_AI: "gen_ai.client",
    RPC: "rpc.client",
    MESSAGING: "messaging",
}

_MAX_NS = (1 << 63) - 1

Attributes = Mapping[str, Any]

_MODEL_CALLS = frozenset({"chat", "text_completion", "completion", "generate_content", "embeddings"})
_OPENINFERENCE = frozenset({"LLM", "EMBEDDING"})

_INPUT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_OUTPUT_TOKENS = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
)
_CACHED_TOKENS = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "llm.token_count.prompt_details.cache_read",
)
_REASONING_TOKENS = (
    "gen_ai.usage.reasoning.output_tokens",
    "llm.token_count.completion_details.reasoning",
)
# The conventions define no cost. These are the names of OpenLIT, Logfire and OpenInference.
_COST = ("gen_ai.usage.cost", "operation.cost", "llm.cost.total")
_MODEL = ("gen_ai.request.model", "gen_ai.response.model", "llm.model_name", "embedding.model_name")
_PROVIDER = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")

_SYSTEM = {
    HTTP: (),
    DB: ("db.system.name", "db.system"),
    GEN_AI: _PROVIDER,
    RPC: ("rpc.system.name", "rpc.system"),
    MESSAGING: ("messaging.system",),
}
_HOST = ("server.address", "net.peer.name", "http.host", "net.sock.peer.name", "net.peer.ip")


def kind_of(span: ReadableSpan) -> str | None:
    """Return the kind of call that a span represents, one of `KINDS`, or None."""
    found: Attributes = span.attributes or {}
    # A call of a model, and a query by HTTP, may also have the attributes of the protocol.
    if (
        found.get("gen_ai.operation.name") in _MODEL_CALLS
        or found.get("openinference.span.kind") in _OPENINFERENCE
        or _first(found, _INPUT_TOKENS) is not None
    ):
        return GEN_AI
    if "db.system.name" in found or "db.system" in found:
        return None if span.kind is SpanKind.SERVER else DB
    if span.kind is SpanKind.CLIENT:
        if "http.request.method" in found or "http.method" in found:
            return HTTP
        if "rpc.system.name" in found or "rpc.system" in found:
            return RPC
    if span.kind is SpanKind.PRODUCER or span.kind is SpanKind.CLIENT:
        return MESSAGING if "messaging.system" in found else None
    return None


def call_of(span: ReadableSpan, kind: str) -> Call:
    """Return the call that a span of this kind represents."""
    found: Attributes = span.attributes or {}
    return Call(
        kind=_PREFIXES[kind],
        name=str(span.name),
        host=_host(found, kind),
        ms=_milliseconds(span),
        failed=span.status.status_code is StatusCode.ERROR or "error.type" in found,
    )


def _milliseconds(span: ReadableSpan) -> float:
    """Return the duration; 0 if the times, which callers can specify, are invalid or out of order."""
    start, end = span.start_time, span.end_time
    if isinstance(start, int) and isinstance(end, int) and start <= end <= _MAX_NS:
        return (end - start) // 1000 / 1000
    return 0.0


def usage_of(span: ReadableSpan) -> Fields:
    """Return the fields of a call of a model: those of `record_llm`, or of `record_embedding`."""
    found: Attributes = span.attributes or {}
    model = str(_first(found, _MODEL) or "unknown")
    provider = _first(found, _PROVIDER)
    operation = found.get("gen_ai.operation.name")
    is_embedding = operation == "embeddings" or found.get("openinference.span.kind") == "EMBEDDING"
    if is_embedding:
        return embedding_fields(
            model,
            provider=provider,
            input_tokens=_first(found, _INPUT_TOKENS),
            dimensions=found.get("gen_ai.embeddings.dimension.count"),
            cost_usd=_first(found, _COST),
        )
    return llm_fields(
        model,
        provider=provider,
        operation=operation or "chat",
        response_model=found.get("gen_ai.response.model"),
        response_id=found.get("gen_ai.response.id"),
        finish_reason=found.get("gen_ai.response.finish_reasons"),
        input_tokens=_first(found, _INPUT_TOKENS),
        output_tokens=_first(found, _OUTPUT_TOKENS),
        cached_tokens=_first(found, _CACHED_TOKENS),
        reasoning_tokens=_first(found, _REASONING_TOKENS),
        cost_usd=_first(found, _COST),
        time_to_first_chunk=found.get("gen_ai.response.time_to_first_chunk"),
        temperature=found.get("gen_ai.request.temperature"),
        max_tokens=found.get("gen_ai.request.max_tokens"),
    )


def _host(found: Attributes, kind: str) -> str | None:
    host = _first(found, _HOST)
    if host is None and kind == HTTP:
        url = _first(found, ("url.full", "http.url"))
        try:
            host = urlsplit(str(url)).hostname if url is not None else None
        except ValueError:
            host = None
    if host is None:
        host = _first(found, _SYSTEM[kind])
    return None if host is None else str(host)


def _first(found: Attributes, names: tuple[str, ...]) -> Any:
    for name in names:
        if (value := found.get(name)) is not None:
            return value
    return None
