"""The attributes of an event: which have a column of their own, and what stands in `rest` of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .columns import attribute_column, caseless, is_column_name, quoted, text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "MAP",
    "Attributes",
    "Kinds",
    "all_attributes",
    "attribute_values",
    "choose_columns",
    "count_kinds",
    "others_in_rest",
    "rest_of",
]

Attributes = dict[str, str]
"""The columns of attributes: the key of each, and its type in DuckDB's words."""

Kinds = Mapping[str, Mapping[str, int]]
"""How often each attribute has which kind of value."""

_TYPE_OF = {"text": "VARCHAR", "number": "DOUBLE", "bool": "BOOLEAN"}
"""The kinds of JSON values that a column can carry, and its type then."""

_KIND_OF = {type: kind for kind, type in _TYPE_OF.items()}

MAP = "MAP(VARCHAR, JSON)"
"""What all attributes of an event are in DuckDB, before they are put into columns."""


def _kind(value: str) -> str:
    # From 2**53 on a whole number may not be the same as a double any more.
    return f"""case coalesce(left({value}, 1), 'n')
        when '"' then 'text' when 't' then 'bool' when 'f' then 'bool' when 'n' then 'null'
        when '{{' then 'object' when '[' then 'array'
        else case when length({value}) > 15 and regexp_full_match({value}, '-?[0-9]+')
            and abs(try_cast({value} as double)) >= 9007199254740992 then 'large' else 'number' end end"""


def count_kinds(connection: DuckDBPyConnection, maps: str) -> Kinds:
    """Return how often each attribute has which kind of value, the most frequent first.

    Args:
        connection: Where they are.
        maps: SQL that selects maps of attributes.
    """
    found = connection.execute(f"""
        select entry.key, {_kind("(entry.value::varchar)")} as kind, count(*)
        from (select unnest(map_entries(attributes)) as entry from ({maps}) maps(attributes))
        group by all order by count(*) desc, entry.key
    """).fetchall()
    kinds: dict[str, dict[str, int]] = {}
    for key, kind, count in found:
        kinds.setdefault(key, {})[kind] = count
    return kinds


def choose_columns(kinds: Kinds, known: Attributes, most: int) -> Attributes:
    """Return the columns of attributes: those there are, and as many new ones as there is room for."""
    chosen = dict(known)
    taken = set(map(caseless, chosen))
    for key, counts in kinds.items():
        fit = [kind for kind in counts if kind in _TYPE_OF]
        if fit and len(chosen) < most and is_column_name(key) and (name := caseless(key)) not in taken:
            chosen[key] = _TYPE_OF[max(fit, key=counts.__getitem__)]
            taken.add(name)
    return chosen


# ------------------------------------------------------------ from a map to columns


def attribute_values(attributes: Attributes, entries: str, kinds: Kinds | None = None) -> list[str]:
    """Return in SQL the values of the columns, each with its name.

    Args:
        attributes: The columns.
        entries: SQL that gives all attributes of a row.
        kinds: Which kinds of values there are in all of them, where that is known.
    """
    values = []
    for key, type in attributes.items():
        value = f"map_extract({entries}, {text(key)})[1]"
        as_text = f"({value}::varchar)"
        cast = f"{value} ->> '$'" if type == "VARCHAR" else f"{as_text}::{type}"
        if kinds is not None and key not in kinds:
            cast = f"null::{type}"
        elif kinds is None or kinds[key].keys() != {_KIND_OF[type]}:
            cast = f"case when {_kind(as_text)} = '{_KIND_OF[type]}' then {cast} end"
        values.append(f"{cast} as {quoted(attribute_column(key))}")
    return values


def rest_of(others: str, attributes: Attributes, entries: str, kinds: Kinds | None = None) -> str:
    """Return in SQL what of a row is in no column, as JSON; null for nothing.

    Args:
        others: SQL that gives what there is beside attributes, as an object of JSON, or null.
        attributes: The columns.
        entries: SQL that gives all attributes of the row.
        kinds: See `attribute_values`.
    """
    fits = {(key, _KIND_OF[type]) for key, type in attributes.items()}
    others = f"nullif({others}, '{{}}')"
    if kinds is not None and all((key, kind) in fits for key, counts in kinds.items() for kind in counts):
        return others
    pairs = text(*(f"{kind} {key}" for key, kind in sorted(fits))) or "''"
    strays = f"""list_filter(map_entries({entries}),
        lambda entry: {_kind("(entry.value::varchar)")} || ' ' || entry.key not in ({pairs}))"""
    # Put together as text: to merge two objects of JSON leaves out what is null.
    as_field = f"""'"attributes":' || to_json(map_from_entries({strays}))::varchar || '}}'"""
    return f"""case when {entries} is null or len({strays}) = 0 then {others}
        else coalesce({others}[:-2] || ',', '{{') || {as_field} end"""


# ------------------------------------------------------------ from columns to a map


def all_attributes(attributes: Attributes) -> str:
    """Return in SQL the map of all attributes of a row, out of its columns and `rest`."""
    pairs = ", ".join(
        f"{{'key': {text(key)}, 'value': to_json({quoted(attribute_column(key))})}}" for key in attributes
    )
    in_columns = f"list_filter([{pairs}], lambda pair: pair.value is not null)" if pairs else "[]"
    in_rest = f"""case when json_type(rest, '$.attributes') = 'OBJECT'
        then from_json(rest::json->'$.attributes', '"{MAP}"') end"""
    return f"""map_concat(map_from_entries({in_columns})::{MAP}, coalesce({in_rest}, map {{}}::{MAP}))"""


def others_in_rest() -> str:
    """Return in SQL what `rest` has beside attributes; null where there is none."""
    return "case when rest is not null then json_merge_patch(rest, '{\"attributes\":null}')::varchar end"
