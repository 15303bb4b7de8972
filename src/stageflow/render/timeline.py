"""One bar of a waterfall: spans of time, drawn across whatever width there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

__all__ = ["RAN", "RETRIED", "RUNNING", "WAITING", "Span", "Timeline"]

WAITING = ("·", ".")
RETRIED = ("░", "%")
RAN = ("█", "#")
RUNNING = ("▓", "=")
"""The marks of a span: for terminals of today, and for those that take ASCII alone."""

_NARROWEST = 8


class Span(NamedTuple):
    """A stretch of time, in milliseconds since the start of the run."""

    start: float
    end: float
    mark: tuple[str, str]
    style: str = ""


class Timeline:
    """Draws spans, each at least one cell wide; a later one stands over an earlier one.

    Args:
        spans: What to draw.
        whole: Milliseconds that the full width stands for.
    """

    def __init__(self, spans: Sequence[Span], whole: float) -> None:
        self.spans = spans
        self.whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        cells: list[tuple[str, str]] = [(" ", "")] * width
        scale = width / self.whole if self.whole > 0 else 0.0
        for span in self.spans:
            first = min(max(int(span.start * scale), 0), width - 1)
            last = min(max(round(span.end * scale), first + 1), width)
            cells[first:last] = [(span.mark[options.ascii_only], span.style)] * (last - first)
        for mark, style in cells:
            yield Segment(mark, console.get_style(style) if style else Style.null())

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_NARROWEST, options.max_width), options.max_width)
