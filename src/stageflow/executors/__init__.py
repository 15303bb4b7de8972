"""Execution of synchronous functions."""

from ._threads import busy_threads, in_thread

__all__ = ["busy_threads", "in_thread"]
