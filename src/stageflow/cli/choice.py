"""Options that choose runs and events: what they take, and what they say to a wrong word."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ..clock import get_clock
from ..errors import did_you_mean
from .moment import FORMS, moment, seconds_of

__all__ = [
    "IdOption",
    "PipelineOption",
    "SinceOption",
    "StageOption",
    "UntilOption",
    "json_option",
    "span_option",
    "stage_option",
    "status_option",
]

Check = Callable[[str | None], str | None]
"""What typer calls with the value of an option."""


def _one_of(*known: str) -> Check:
    """Return what checks a status or an outcome: a mistaken one would find nothing, and say nothing."""

    def check(word: str | None) -> str | None:
        if word is not None and word.lower() not in {each.lower() for each in known}:
            near = did_you_mean(word.lower(), {each.lower() for each in known})
            raise typer.BadParameter(f"{word!r} is none of {', '.join(known)}{near}")
        return word

    return check


def _stage_and_one_of(*known: str) -> Check:
    """Return what checks the status behind the colon of "NAME:STATUS"."""
    check_status = _one_of(*known)

    def check(text: str | None) -> str | None:
        name, colon, status = (text or "").partition(":")
        if text is not None and not name:
            raise typer.BadParameter(f"{text!r} names no stage")
        if colon:
            check_status(status)
        return text

    return check


def _not_empty(text: str | None) -> str | None:
    if text == "":
        raise typer.BadParameter("it is empty; a variable that was not set?")
    return text


def _as_moment(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return moment(text, datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def status_option(*known: str, says: str) -> Any:
    """Return `--status`, which takes one of `known`, in any case."""
    return typer.Option("--status", metavar="STATUS", callback=_one_of(*known), show_default=False, help=says)


def stage_option(*known: str, says: str) -> Any:
    """Return `--stage`, which takes a name and, behind a colon, one of `known`."""
    check = _stage_and_one_of(*known)
    return typer.Option("--stage", metavar="NAME[:STATUS]", callback=check, show_default=False, help=says)


def span_option(name: str, unit: str, *, says: str, from_zero: bool = False) -> Any:
    """Return an option that takes a time span, such as `90d`; the command receives seconds.

    Args:
        name: Name of the option, such as "--max-age".
        unit: Unit that the error about a missing unit suggests.
        says: Description for the help.
        from_zero: Whether `0s` is allowed.
    """

    def check(text: str | None) -> float | None:
        if text is None:
            return None
        if text.strip().replace(".", "", 1).isdecimal():
            suggested = f"{name} {text.strip()}{unit}"
            raise typer.BadParameter(f"{text!r} has no unit; write {suggested} (units: s, m, h, d, w)")
        try:
            seconds = seconds_of(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if seconds == 0 and not from_zero:
            raise typer.BadParameter(f"{text!r} is zero; expected a longer time span")
        return seconds

    return typer.Option(name, metavar="SPAN", callback=check, show_default=False, help=says)


def json_option(says: str) -> Any:
    """Return `--json`, the flag for what programs read."""
    return typer.Option("--json", help=says)


PipelineOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", callback=_not_empty, show_default=False, help="Only of this pipeline."),
]
IdOption = Annotated[
    str | None,
    typer.Option(
        "--id",
        metavar="ID",
        callback=_not_empty,
        show_default=False,
        help="Only with this request, session, user or org id, or beginning of a run's id.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHEN",
        callback=_as_moment,
        show_default=False,
        help=f"Only what began then or later: {FORMS}. Without a zone it is the time of this machine.",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(metavar="WHEN", callback=_as_moment, show_default=False, help="Only what began before."),
]
StageOption = Annotated[
    str | None,
    typer.Option(
        "--stage", metavar="NAME", callback=_not_empty, show_default=False, help="Only of this stage."
    ),
]
