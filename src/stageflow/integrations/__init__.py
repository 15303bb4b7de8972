"""Integrations with other libraries, and the ids of the current stage for their log lines."""

from .._log_fields import stage_fields

__all__ = ["stage_fields"]
