"""What was expected beside what there is, in lines to read."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Row", "aligned", "difference", "listed"]

Row = tuple[bool, str, str, str, str]
"""Whether it is as expected, its name, what was expected, what there is, and a note."""


def difference(title: str, rows: Iterable[Row]) -> str:
    """Return a table under a title, with a mark before each row that is not as expected.

    Example:
        >>> rows = [(True, "load", "OK", "OK", ""), (False, "answer", "OK", "FAIL", "ValueError: no")]
        >>> print(difference("the stages did not end as expected", rows))
        the stages did not end as expected
                  expected  actual
          load    OK        OK
        > answer  OK        FAIL    ValueError: no
    """
    lines: list[tuple[str, ...]] = [("  ", "", "expected", "actual", "")]
    lines += [("  " if good else "> ", *texts) for good, *texts in rows]
    return "\n".join([title, *aligned(lines)])


def aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a line for each row, its first cell as it is, the others in columns.

    Example:
        >>> aligned([("- ", "a", "1"), ("- ", "bcd", "2")])
        ['- a    1', '- bcd  2']
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            row[0] + "  ".join(cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        ).rstrip()
        for row in rows
    ]


def listed(names: Iterable[str]) -> str:
    """Return names for a sentence; "nothing" where there are none.

    Example:
        >>> listed(["load", "answer"]), listed([])
        ('load, answer', 'nothing')
    """
    return ", ".join(dict.fromkeys(names)) or "nothing"
