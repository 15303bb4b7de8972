"""Logs without raising."""

from __future__ import annotations

import logging
from typing import Any

from ._interrupts import INTERRUPTS

__all__ = ["log_safely"]


def log_safely(logger: logging.Logger, text: str, *args: Any, level: int = logging.WARNING) -> None:
    """Log `text`, and ignore exceptions from handlers and filters of the application.

    A log line is less important than the record of the run, which is being written.
    """
    try:
        logger.log(level, text, *args)
    except BaseException as error:
        INTERRUPTS.contain(error)
