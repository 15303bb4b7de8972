"""What is asked of many runs: for now what is different about some of them."""

from __future__ import annotations

from .difference import Difference, Explanation, LeftOut, Part
from .explain import explain

__all__ = ["Difference", "Explanation", "LeftOut", "Part", "explain"]
