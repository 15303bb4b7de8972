"""Processors for structlog: record log lines in the events of failed stages, and add the ids of the stage."""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping
from typing import Any

from ..._interrupts import INTERRUPTS, is_a
from ..._log_fields import stage_fields
from ..._log_tail import event_as_text, format_line
from ...context import current_stage

__all__ = ["add_stage_fields", "log_tail"]

_LEVELS = {"warn": logging.WARNING, "exception": logging.ERROR, "fatal": logging.CRITICAL} | {
    name.lower(): level for name, level in logging.getLevelNamesMapping().items() if level
}


def log_tail(logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Record an event of structlog as a log line of the current stage, and return it unchanged.

    This is a processor for loggers that do not use `logging`. Place it before the renderer, and after the
    processors whose fields the line includes. It ignores events of loggers of `structlog.stdlib`: they reach
    `logging`, and are recorded there.

    Example:
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, log_tail, structlog.dev.ConsoleRenderer()]
        )
    """
    ctx = current_stage.get()
    if ctx is not None and not is_a(logger, logging.Logger):
        try:
            level = _LEVELS.get(method_name, logging.INFO)
            line = format_line(
                time.time(),
                logging.getLevelName(level),
                str(event_dict.get("logger", "")),
                event_as_text(event_dict),
            )
            ctx._log(level, line)
        except BaseException as error:
            INTERRUPTS.contain(error)
    return event_dict


def add_stage_fields(
    logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the ids of the current stage to an event of structlog; see `stageflow.integrations.stage_fields`.

    Fields that the event already has are kept. Outside of a stage, nothing is added.

    Example:
        structlog.configure(processors=[add_stage_fields, structlog.processors.JSONRenderer()])
    """
    for name, value in stage_fields().items():
        event_dict.setdefault(name, value)
    return event_dict
