"""What redaction, limits and enrichment cost an event, beside an OpenTelemetry span of its attributes."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from stageflow import PipelineContext, Redact, StageKind, StageResult, StageStatus
from stageflow.events import DirectSink, Event
from stageflow.observability import EventLimits, WideEventEmitter
from stageflow.observability._run_context import start_run
from stageflow.observability.sanitize._sanitizer import SanitizeRules, use_sanitize_rules

from .rounds import Contestant, measure

__all__ = ["bench_shaping"]

_EVENTS = 500

ATTRIBUTES: dict[str, Any] = {
    "gen_ai.request.model": "m-large",
    "gen_ai.provider.name": "acme",
    "gen_ai.usage.input_tokens": 812,
    "gen_ai.usage.output_tokens": 96,
    "llm.cost_usd": 0.0031,
    "cache.hit": False,
    "db_count": 3,
    "db_ms": 12.417,
    "question": "how do I cancel my order from last week?",
    "url": "https://api.example.com/v1/answers?page=2",
}

EVERY_DETECTOR = Redact(detect=("credentials", "email", "card", "iban", "ip"))


class Encoding(DirectSink):
    """Encodes an event, as the journal does, and drops it."""

    def deliver(self, event: Event) -> None:
        event.line()


async def bench_shaping(rounds: int) -> None:
    """Print the median time of one event with ten attributes, and the ratio to one that is not shaped."""
    now = time.time_ns()
    context, _ = start_run(PipelineContext(user_id="u1", org_id="o1"), "p", now, 0)
    emitter = WideEventEmitter(Encoding())
    tracer = TracerProvider().get_tracer("bench")
    texts = iter(range(1 << 60))

    def ours(shape: SanitizeRules, *, new_text: bool = False) -> Contestant:
        async def emit() -> None:
            before = use_sanitize_rules(shape)
            for _ in range(_EVENTS):
                # A text that nobody has seen before is looked through; one that was seen is known.
                more = {"question": f"how do I cancel my order {next(texts)}?"} if new_text else {}
                result = StageResult(
                    "answer",
                    StageStatus.OK,
                    {"text": ""},
                    ready_ns=now,
                    started_ns=now + 5_000,
                    ended_ns=now + 1_234_000,
                    kind=StageKind.TRANSFORM,
                    dependencies=("search",),
                    attributes={**ATTRIBUTES, **more},
                )
                emitter.emit_stage_wide("answer", result, context)
            use_sanitize_rules(before)

        return emit

    async def spans() -> None:
        for _ in range(_EVENTS):
            with tracer.start_as_current_span("answer") as span:
                span.set_attributes(ATTRIBUTES)

    # Rules are made once a process; here they are made once a round.
    bare = SanitizeRules(
        None, EventLimits(fields=10_000, text_chars=1 << 30, event_bytes=1 << 40, names=1 << 30)
    )
    found = await measure(
        {
            "no rules": ours(bare),
            "as it comes": ours(SanitizeRules()),
            "as it comes, new texts": ours(SanitizeRules(), new_text=True),
            "every detector, new texts": ours(SanitizeRules(EVERY_DETECTOR), new_text=True),
            "an OpenTelemetry span": spans,
        },
        rounds,
    )
    print(f"{'one event, ten attributes':<28}{'an event':>10}{'ratio':>9}")
    for title, (seconds, ratio) in found.items():
        print(f"  {title:<26}{seconds / _EVENTS * 1e6:>7.2f} us{ratio:>9.2f}")
    print()
