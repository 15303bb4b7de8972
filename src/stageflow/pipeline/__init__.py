"""Describe a pipeline, check it, run it."""

from .graph import StageGraph
from .pipeline import Pipeline

__all__ = ["Pipeline", "StageGraph"]
