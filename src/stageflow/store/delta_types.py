"""Maps column types of DuckDB to those of Delta Lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltalake import Field

__all__ = ["DUCKDB_TYPES", "delta_field"]

_DELTA_TYPES = {
    "VARCHAR": "string",
    "DOUBLE": "double",
    "BIGINT": "long",
    "BOOLEAN": "boolean",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
    "DATE": "date",
}

DUCKDB_TYPES = {delta: duckdb for duckdb, delta in _DELTA_TYPES.items()}


def delta_field(name: str, type: str) -> Field:
    """Return a column of a Delta table; `type` is a DuckDB type."""
    from deltalake import Field
    from deltalake.schema import ArrayType, PrimitiveType

    of = PrimitiveType(_DELTA_TYPES[type.removesuffix("[]")])
    return Field(name, ArrayType(of) if type.endswith("[]") else of)
