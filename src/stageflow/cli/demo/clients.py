"""The people at the desk: each asks one question, and some go before they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ...context import PipelineContext
from ...pipeline import StageGraph
from .desk import Desk
from .questions import Question

__all__ = ["ask", "ask_all"]


async def ask_all(
    graph: StageGraph, desk: Desk, asked: Sequence[Question], batch: str, answered: Callable[[], None]
) -> None:
    """Ask all questions at once, and wait until the last of them has come to an end.

    The desk is still learning its words when they come. Who writes to its tally then finds it locked.

    Args:
        graph: The pipeline.
        desk: What its runs share.
        asked: The questions.
        batch: What the `request_id` of each run begins with.
        answered: Called whenever one of them has.
    """
    async with asyncio.TaskGroup() as clients:
        clients.create_task(asyncio.to_thread(desk.tally.learn, desk.passages))
        for number, question in enumerate(asked):
            client = clients.create_task(ask(graph, desk, question, f"{batch}-{number}"))
            client.add_done_callback(lambda _: answered())


async def ask(graph: StageGraph, desk: Desk, question: Question, request_id: str) -> None:
    """Ask one question. What comes of it stands in the journal."""
    user = question.user
    context = PipelineContext(
        request_id=request_id,
        session_id=f"s-{user}-{len(question.text) % 3}",
        user_id=f"u-{user}",
        org_id=f"o-{user % 5}",
        service="stageflow-demo",
        execution_mode="expert" if question.text.startswith("fts:") else "plain",
        data={"question": question.text},
        resources={"desk": desk},
    )
    run = asyncio.ensure_future(graph.run(context, deadline=question.deadline))
    # Not `asyncio.timeout` around the run: this client hangs up, and waits for nothing any more.
    _, waiting = await asyncio.wait({run}, timeout=question.patience)
    if waiting:
        run.cancel()
        await asyncio.wait({run})
    if not run.cancelled():
        run.result()  # raises only where the engine itself is at fault
