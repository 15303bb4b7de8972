"""Logs without raising."""

from __future__ import annotations

import logging
from typing import Any

from ._interrupts import INTERRUPTS

__all__ = ["log_safely"]


def log_safely(logger: logging.Logger, text: str, *args: Any, level: int = logging.WARNING) -> None:
    """Log `text`. Contain any exception that a handler or filter of the application raises.

    A log line is a courtesy; the record of the run, which is being written, is not.
    """
    try:
        logger.log(level, text, *args)
    except BaseException as error:
        INTERRUPTS.contain(error)
