"""Tools to test pipelines: capture events, skip waits, run a single stage; with fixtures for pytest."""

from ._capture import CapturedEvents, capture_events
from ._run_stage import run_stage, run_stage_sync
from ._virtual_clock import VirtualClock

__all__ = ["CapturedEvents", "VirtualClock", "capture_events", "run_stage", "run_stage_sync"]
