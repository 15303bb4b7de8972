"""The metaclass of value classes: argument errors name the class and suggest the closest match."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import StructMeta

from .errors import InvalidArgumentError, did_you_mean

__all__ = ["ValueType"]

if TYPE_CHECKING:
    # Type checkers do not check the arguments of a Struct whose metaclass defines `__call__`.
    ValueType = StructMeta
else:

    class ValueType(StructMeta):
        """Creates instances of a Struct.

        Raises:
            InvalidArgumentError: An argument is unknown, or the class does not accept it by position.
        """

        def __call__(cls, *args: Any, **fields: Any) -> Any:
            try:
                return super().__call__(*args, **fields)
            except TypeError as error:
                if isinstance(error, InvalidArgumentError):  # raised by the class itself
                    raise
                names = cls.__struct_fields__
                unknown = next((name for name in fields if name not in names), None)
                if unknown is None:
                    raise InvalidArgumentError(f"{cls.__name__}(): {error}") from None
                raise InvalidArgumentError(
                    f"{cls.__name__}() has no argument {unknown!r}{did_you_mean(unknown, names)}",
                    hint=f"its arguments are {', '.join(names)}",
                ) from None
