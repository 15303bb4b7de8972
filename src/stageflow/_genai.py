"""Attributes for generative AI, with the names of the OpenTelemetry semantic conventions.

Convention: semantic-conventions-genai, schema `gen-ai/1.42.0`. Every name in it has the status "development"
and may still change, so no other module contains these names. For values that the convention does not cover
(calls, cost, number of documents), this module defines names that include the unit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex, TypedDict, Unpack

from ._numbers import as_number
from .errors import InvalidArgumentError, did_you_mean
from .schema import Role

__all__ = [
    "ATTRIBUTE_ROLES",
    "CONVENTION",
    "Amount",
    "EmbeddingCall",
    "Fields",
    "LlmCall",
    "LlmUsage",
    "Retrieval",
    "check_keywords",
    "cost_and_tokens",
    "embedding_fields",
    "former_attribute",
    "llm_fields",
    "retrieval_fields",
]


CONVENTION = "gen-ai/1.42.0"

Amount = SupportsFloat | SupportsIndex
"""A number of any type: of Python, of numpy, a `Decimal`, ..."""

ATTRIBUTE_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(
        (
            "gen_ai.operation.name",
            "gen_ai.provider.name",
            "gen_ai.request.model",
            "gen_ai.request.temperature",
            "gen_ai.request.max_tokens",
            "gen_ai.request.top_k",
            "gen_ai.response.model",
            "gen_ai.data_source.id",
            "gen_ai.embeddings.dimension.count",
            "gen_ai.usage.input_tokens",
            "gen_ai.usage.cache_read.input_tokens",
        ),
        Role.LABEL,
    ),
    **dict.fromkeys(
        (
            "gen_ai.usage.output_tokens",
            "gen_ai.usage.reasoning.output_tokens",
            "llm.calls",
            "llm.cost_usd",
            "embedding.calls",
            "embedding.vectors",
            "retrieval.calls",
            "retrieval.documents",
            "retrieval.best_score",
            "retrieval.worst_score",
        ),
        Role.WORK,
    ),
    "gen_ai.response.finish_reasons": Role.OUTCOME,
    "gen_ai.response.time_to_first_chunk": Role.DURATION,
    "gen_ai.response.id": Role.IDENTITY,
}
"""The roles of the attributes that the functions of this module return."""

# One lock for all calls: it is held for a few additions. Reentrant: a signal handler may record as well.
_updating = threading.RLock()

Fields = tuple[dict[str, Any], dict[str, Any]]
"""The attributes to set, and the attributes to sum over the calls of a stage and the stages of a run."""


class LlmCall(TypedDict, total=False):
    """The optional arguments of `record_llm`."""

    provider: str | None
    operation: str
    response_model: str | None
    response_id: str | None
    finish_reason: str | Sequence[str] | None
    input_tokens: Amount | None
    output_tokens: Amount | None
    cached_tokens: Amount | None
    reasoning_tokens: Amount | None
    cost_usd: Amount | None
    time_to_first_chunk: Amount | None
    temperature: Amount | None
    max_tokens: Amount | None


class EmbeddingCall(TypedDict, total=False):
    """The optional arguments of `record_embedding`."""

    provider: str | None
    input_tokens: Amount | None
    vectors: Amount | None
    dimensions: Amount | None
    cost_usd: Amount | None


class Retrieval(TypedDict, total=False):
    """The optional arguments of `record_retrieval`."""

    documents: Amount | None
    top_k: Amount | None
    best_score: Amount | None
    worst_score: Amount | None


def llm_fields(
    model: str,
    *,
    provider: str | None = None,
    operation: str = "chat",
    response_model: str | None = None,
    response_id: str | None = None,
    finish_reason: str | Sequence[str] | None = None,
    input_tokens: Amount | None = None,
    output_tokens: Amount | None = None,
    cached_tokens: Amount | None = None,
    reasoning_tokens: Amount | None = None,
    cost_usd: Amount | None = None,
    time_to_first_chunk: Amount | None = None,
    temperature: Amount | None = None,
    max_tokens: Amount | None = None,
) -> Fields:
    """Return the fields of one call to a language model; see `StageContext.record_llm`."""
    reasons = list(finish_reason) if isinstance(finish_reason, (list, tuple)) else [finish_reason]
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.request.temperature": temperature,
        "gen_ai.request.max_tokens": max_tokens,
        "gen_ai.response.model": response_model,
        "gen_ai.response.id": response_id,
        "gen_ai.response.finish_reasons": None if finish_reason is None else reasons,
    }
    added = {
        "llm.calls": 1,
        "gen_ai.usage.input_tokens": input_tokens,
        "gen_ai.usage.output_tokens": output_tokens,
        "gen_ai.usage.cache_read.input_tokens": cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": reasoning_tokens,
        "gen_ai.response.time_to_first_chunk": time_to_first_chunk,
        "llm.cost_usd": cost_usd,
    }
    return _without_none(attributes), _without_none(added)


class LlmUsage:
    """A recorded call to a language model, as returned by `record_llm`; its usage can be updated.

    A provider that streams reports the usage while the stream proceeds, or at its end. If the stage records
    the call first and then updates it, the usage so far is recorded even if the stage is cancelled.

    Example:
        call = ctx.record_llm("m-large", input_tokens=812)
        async for event in provider.stream(messages):
            yield event.text
            call.update(output_tokens=event.usage.output_tokens)
    """

    __slots__ = ("_amounts", "_check_budget", "_completed", "_model", "_record")

    def __init__(
        self,
        model: str,
        usage: LlmCall,
        record: Callable[[dict[str, Any], dict[str, Any]], None],
        completed: Callable[[], None],
        check_budget: Callable[[], None],
    ) -> None:
        self._model = model
        self._check_budget = check_budget
        self._record = record
        self._completed = completed
        attributes, self._amounts = llm_fields(model, **usage)
        record(attributes, self._amounts)

    @property
    def is_complete(self) -> bool:
        """True if the number of output tokens is known."""
        return as_number(self._amounts.get("gen_ai.usage.output_tokens")) is not None

    def update(self, **usage: Unpack[LlmCall]) -> None:
        """Replace values of the call; the other values remain.

        Args:
            usage: The arguments of `record_llm`. A number is the total so far, not an increment.

        Raises:
            InvalidArgumentError: A keyword is unknown; the message suggests the closest match.
            BudgetExceededError: The run exceeds its budget; the values are recorded.
        """
        check_keywords("update", usage, LlmCall)
        attributes, amounts = llm_fields(self._model, **usage)
        del amounts["llm.calls"]
        if "operation" not in usage:
            del attributes["gen_ai.operation.name"]
        with _updating:
            was_complete = self.is_complete
            changes = {name: self._change(name, value) for name, value in amounts.items()}
            self._record(attributes, changes)
            if self.is_complete and not was_complete:
                self._completed()
        self._check_budget()

    def _change(self, name: str, value: Any) -> Any:
        """Store the total of an amount, and return its change."""
        new = as_number(value)
        if new is None:
            return value  # reported when it is added
        before = as_number(self._amounts.get(name)) or 0
        self._amounts[name] = value
        try:
            return new - before
        except OverflowError:  # an integer that is too large for a float
            return new


def cost_and_tokens(amounts: Mapping[str, float]) -> tuple[float, float]:
    """Return the cost in US dollars and the number of input and output tokens in recorded amounts.

    Example:
        >>> cost_and_tokens(llm_fields("m", input_tokens=100, output_tokens=20, cost_usd=0.5)[1])
        (0.5, 120)
    """
    tokens = amounts.get("gen_ai.usage.input_tokens", 0) + amounts.get("gen_ai.usage.output_tokens", 0)
    return amounts.get("llm.cost_usd", 0), tokens


_FORMER_PROVIDERS = {
    "azure.ai.inference": "az.ai.inference",
    "azure.ai.openai": "az.ai.openai",
    "x_ai": "xai",
}


def former_attribute(name: str, value: Any) -> tuple[str, Any]:
    """Return an attribute with the name and the value that it has before version 1.37 of the convention.

    Example:
        >>> former_attribute("gen_ai.provider.name", "azure.ai.openai")
        ('gen_ai.system', 'az.ai.openai')
    """
    if name != "gen_ai.provider.name":
        return name, value
    return "gen_ai.system", _FORMER_PROVIDERS.get(value, value) if isinstance(value, str) else value


def check_keywords(function: str, given: Mapping[str, Any], keywords: Any, **where: str) -> None:
    """Check the keyword arguments of a function that records a call.

    Raises:
        InvalidArgumentError: A keyword is unknown; the message suggests the closest match.
    """
    known: frozenset[str] = keywords.__optional_keys__
    if not given.keys() <= known:
        unknown = next(name for name in given if name not in known)
        raise InvalidArgumentError(
            f"{function}() has no argument {unknown!r}{did_you_mean(unknown, known)}",
            hint=f"its keyword arguments are {', '.join(keywords.__annotations__)}",
            **where,
        )


def embedding_fields(
    model: str,
    *,
    provider: str | None = None,
    input_tokens: Amount | None = None,
    vectors: Amount | None = None,
    dimensions: Amount | None = None,
    cost_usd: Amount | None = None,
) -> Fields:
    """Return the fields of one call that created embeddings; see `StageContext.record_embedding`."""
    attributes = {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.embeddings.dimension.count": dimensions,
    }
    added = {
        "embedding.calls": 1,
        "embedding.vectors": vectors,
        "gen_ai.usage.input_tokens": input_tokens,
        "llm.cost_usd": cost_usd,
    }
    return _without_none(attributes), _without_none(added)


def retrieval_fields(
    source: str | None,
    *,
    documents: Amount | None = None,
    top_k: Amount | None = None,
    best_score: Amount | None = None,
    worst_score: Amount | None = None,
) -> Fields:
    """Return the fields of one search for documents; see `StageContext.record_retrieval`."""
    attributes = {
        "gen_ai.operation.name": "retrieval",
        "gen_ai.data_source.id": source,
        "gen_ai.request.top_k": top_k,
        "retrieval.best_score": best_score,
        "retrieval.worst_score": worst_score,
    }
    return _without_none(attributes), _without_none({"retrieval.calls": 1, "retrieval.documents": documents})


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
