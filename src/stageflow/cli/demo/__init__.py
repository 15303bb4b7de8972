"""A demo pipeline that answers questions about Python from the Python language reference."""

from ._command import demo

__all__ = ["demo"]
