"""Says something in the application's log, and never fails or hangs a run for it."""

from __future__ import annotations

import logging
from typing import Any

from .interrupts import INTERRUPTS

__all__ = ["tell"]


def tell(logger: logging.Logger, text: str, *args: Any, level: int = logging.WARNING) -> None:
    """Log `text`. What a handler or filter of the application raises ends here.

    A log line is a courtesy; the record of the run, which is being written, is not.
    """
    try:
        logger.log(level, text, *args)
    except BaseException as error:
        INTERRUPTS.contain(error)
