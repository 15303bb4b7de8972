"""A reference desk: a pipeline that answers questions about Python out of Python's own language reference."""

from ._command import demo

__all__ = ["demo"]
