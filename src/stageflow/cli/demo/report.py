"""What the demo shows at its end, all of it read back from the journal."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from ...render import draw_run, draw_summary
from ...render.foreign import visible
from ..terminal import print_text
from .law import Check
from .record import Event, Record

__all__ = ["show_answer", "show_check", "show_journal", "show_run", "show_summary"]


def show_answer(terminal: Console, answer: Event) -> None:
    """Show a question and its answer."""
    _title(terminal, "A question and its answer")
    _inset(terminal, Text(visible(answer["question"]), style="bold"))
    terminal.print()
    _inset(terminal, Text(visible(answer["answer"])))
    if answer["sources"]:
        terminal.print()
        _inset(terminal, Text("from " + ", ".join(answer["sources"]), style="dim"))


def show_summary(terminal: Console, record: Record) -> None:
    """Show what became of all runs."""
    _title(terminal, "All runs, as the journal has them")
    _inset(terminal, draw_summary(record.runs, record.stages))


def show_run(terminal: Console, title: str, record: Record, run: Event) -> None:
    """Show one run in full."""
    _title(terminal, title)
    _inset(terminal, draw_run(run, record.stages_of(run)))


def show_check(terminal: Console, check: Check, lost: int) -> None:
    """Show whether the journal has what the runs must have left."""
    _title(terminal, "Is the record whole?")
    held = not check.wrong and not lost
    lines = [
        f"pipeline.wide        {check.pipelines:>7,} of {check.runs:>7,}  one for each run",
        f"terminal stage.wide  {check.terminals:>7,} of {check.due:>7,}  one for each stage of each run",
        f"RETRY stage.wide     {check.retries:>7,}             one for each attempt that was retried",
        f"the desk's own       {check.own:>7,}             one for each answer that was given",
        f"lost on the way      {lost:>7,}             as the sinks counted",
    ]
    _inset(terminal, Text("\n".join(lines)))
    _inset(terminal, Text("The record is whole." if held else "It is not:", style="green" if held else "red"))
    for problem in check.wrong:
        _inset(terminal, Text(f"- {visible(problem)}"))


def show_journal(terminal: Console, journal: Path, run_id: str | None) -> None:
    """Show where the journal is, and commands that look into it.

    Args:
        terminal: Where to show it.
        journal: The directory.
        run_id: A run to look at, if there is one.
    """
    _title(terminal, "The journal")
    print_text(f"  {journal} has an event a line, as JSON. To look into it:")
    terminal.print()
    stageflow, where = _stageflow(), shlex.quote(str(journal))
    commands = [
        f"{stageflow} runs --journal {where} --status FAIL",
        f"{stageflow} show {run_id or 'last'} --journal {where}",
        f"{stageflow} tail --journal {where} --status RETRY",
        f"{stageflow} explain --journal {where}",
        f"{stageflow} doctor --journal {where}",
        f'grep -ho \'"outcome":"[a-z]*"\' {where}/*.ndjson | sort | uniq -c',
    ]
    if shutil.which("jq"):
        failed = 'select(.data.stage_name and .data.status == "FAIL").data | [.stage_name, .error]'
        commands.append(f"jq -c '{failed}' {where}/*.ndjson")
    for command in commands:
        # Never wrapped: a command is there to be copied.
        terminal.print(Text(f"  {command}"), soft_wrap=True)


def _stageflow() -> str:
    """Return how to call this program again: it need not be on the path."""
    if shutil.which("stageflow"):
        return "stageflow"
    beside = Path(sys.executable).with_name("stageflow")
    if not beside.exists():
        return f"{shlex.quote(sys.executable)} -m stageflow"
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def _title(terminal: Console, title: str) -> None:
    terminal.print()
    terminal.rule(Text(title, style="bold"), align="left", style="dim")
    terminal.print()


def _inset(terminal: Console, picture: RenderableType) -> None:
    terminal.print(Padding(picture, (0, 0, 0, 2)))
