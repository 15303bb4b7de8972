"""Conversions of the rows of a query to data frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..errors import MissingExtraError

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

__all__ = ["to_arrow", "to_pandas", "to_polars"]


def to_arrow(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> pyarrow.Table:
    """Return the rows as an Arrow table.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise MissingExtraError("Rows.to_arrow()", "arrow") from error
    arrays = [pyarrow.array([_plain(row[at]) for row in rows]) for at in range(len(columns))]
    return pyarrow.Table.from_arrays(arrays, names=_unique(columns))


def to_pandas(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> pandas.DataFrame:
    """Return the rows as a pandas data frame.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise MissingExtraError("Rows.to_pandas()", "pandas") from error
    return pandas.DataFrame([[*map(_plain, row)] for row in rows], columns=_unique(columns))


def to_polars(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> polars.DataFrame:
    """Return the rows as a polars data frame.

    Raises:
        MissingExtraError: polars is not installed.
    """
    try:
        import polars
    except ModuleNotFoundError as error:
        raise MissingExtraError("Rows.to_polars()", "polars") from error
    values = {
        name: polars.Series(name, [_plain(row[at]) for row in rows], strict=False)
        for at, name in enumerate(_unique(columns))
    }
    return polars.DataFrame(values)


def _unique(columns: Sequence[str]) -> list[str]:
    """Return the names of the columns, numbered if a query has several with the same name."""
    names: list[str] = []
    for name in columns:
        number, unique = 1, name
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return names


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value
