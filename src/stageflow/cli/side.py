"""A selection as people say it: a window of time (`2h..1h`), a version (`version=1.4`), or SQL as it is."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import typer

from ..clock import get_clock
from .moment import moment

__all__ = ["as_predicate"]


def as_predicate(text: str) -> str:
    """Return a selection as SQL."""
    if version := re.fullmatch(r"version=(\S+)", text):
        return "service_version = '{}'".format(version[1].replace("'", "''"))
    since, dots, until = text.partition("..")
    if not dots:
        return text
    now = datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)
    try:
        window = moment(since, now), moment(until, now)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return "started_at >= '{}'::timestamptz and started_at < '{}'::timestamptz".format(*window)
