"""Tail sampling: selects the runs that the archive keeps."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from .._decodable import decodable
from .._toml import parse_toml
from .._value import ValueType
from ..errors import QueryError, SettingsError, did_you_mean, invalid_argument
from ._columns import AMENDMENTS, ATTRIBUTE, FAILED, quoted, text
from ._sandbox import parts
from ._selection import as_query_error, fields_of, parenthesized, parse_predicate, unknown_field

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from ._decisions import Decisions

__all__ = [
    "NO_KINDS",
    "SampleRule",
    "SamplingResult",
    "TailSampler",
    "apply_decisions",
    "columns_of",
    "decide",
    "match_rules",
    "read_sampler",
    "report",
]


_MAX_SECONDS = 1e9


class SampleRule(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """A rule that keeps one in `one_in` of the runs that match a condition.

    Attributes:
        where: SQL predicate over the columns of `runs`: "user_id = 'u1'".
        one_in: The number of runs that a kept run represents, 1 or more; default 1, to keep all.
        reason: The value of `sample_reason` of these runs; default the condition.

    Raises:
        InvalidArgumentError: `one_in` is less than 1.
    """

    where: str
    one_in: float = 1.0
    reason: str | None = None

    def __post_init__(self) -> None:
        _check_one_in("SampleRule", self.one_in)


class TailSampler(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """Decides which runs to keep, once per root run and all its children, when the record is complete.

    The first match applies, in this order: runs that failed or crashed, slow runs and the first run of each
    kind (pipeline, outcome and version) are kept; then the rules, in their order; then a target rate per key
    and minute, or one in `one_in`. Runs that take longer than `decide_after` are always kept.

    Attributes:
        keep_failures: Keep every run that counts as a failure (see `failure_outcomes` in `Settings`), or
            contains such a run or a failed stage; default True. A run that was cancelled externally is
            sampled like one that succeeded.
        slower_than: Keep runs that took longer, in seconds; default None, to ignore the duration.
        first_of_a_kind: Keep the first run of each pipeline, outcome and version; default True.
        rules: Rules for all other runs; the first match applies.
        per_key: The column of `runs` for whose values `target_per_minute` is set; default "topology".
        target_per_minute: Approximate number of runs to keep per key and minute; default None, for no target.
        one_in: Without a target, the number of runs that a kept run represents; default 1, to keep all.
        decide_after: Maximum time to wait for the end of a run, in seconds; default 600. It limits how long
            events wait in the journal before they are exported or archived.

    Raises:
        InvalidArgumentError: A number is out of range.

    Example:
        >>> TailSampler(slower_than=2.0, per_key="topology", target_per_minute=10).keep_failures
        True
    """

    keep_failures: bool = True
    slower_than: float | None = None
    first_of_a_kind: bool = True
    rules: tuple[SampleRule, ...] = ()
    per_key: str = "topology"
    target_per_minute: float | None = None
    one_in: float = 1.0
    decide_after: float = 600.0

    def __post_init__(self) -> None:
        _check_one_in("TailSampler", self.one_in)
        if not (isinstance(self.decide_after, int | float) and 0 < self.decide_after <= _MAX_SECONDS):
            raise invalid_argument(
                "TailSampler",
                "decide_after",
                self.decide_after,
                f"a number greater than 0, at most {_MAX_SECONDS:g}",
            )
        for name in ("slower_than", "target_per_minute"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise invalid_argument("TailSampler", name, value, "a number greater than 0, or None")


def _check_one_in(owner: str, one_in: object) -> None:
    if not (isinstance(one_in, int | float) and 1 <= one_in < math.inf):
        raise invalid_argument(owner, "one_in", one_in, "a number, 1 or more")


def read_sampler(path: str | os.PathLike[str]) -> TailSampler:
    """Read a sampler from a TOML file with the fields of `TailSampler`, and `[[rules]]`.

    Raises:
        SettingsError: A field is unknown or has a wrong value, or the file is not valid TOML.
        OSError: The file cannot be read.
    """
    origin = os.fspath(path)
    with open(path, "rb") as file:
        try:
            table = parse_toml(file.read())
        except ValueError as error:
            raise SettingsError(f"invalid TOML: {error}", origin) from None
    rules = table.get("rules", [])
    for location, given, kind in [
        ("$", table, TailSampler),
        *((f"$.rules[{n}]", rule, SampleRule) for n, rule in enumerate(rules) if isinstance(rule, dict)),
    ]:
        for name in given:
            if name not in kind.__struct_fields__:
                near = did_you_mean(name, kind.__struct_fields__)
                raise SettingsError(f"unknown field {name!r} at {location}{near}", origin)
    try:
        return msgspec.convert(table, decodable(TailSampler))
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(str(error), origin) from None


_ATTRIBUTE_COLUMN = re.compile(rf'"{re.escape(ATTRIBUTE)}((?:[^"]|"")+)"')

_ROOT = "coalesce(root_run_id, pipeline_run_id)"
_HASH_POSITION = "(md5_number_lower(root)::double / 18446744073709551616)"
"""SQL: a number from 0 to 1 that depends only on the id of the root run."""


class SamplingResult(Struct, frozen=True):
    """The sampling result of runs with the same key and reason.

    Attributes:
        key: Value of `per_key`.
        reason: "failed", "slow", "first of its kind", "long", the reason of a rule, "target" or "one in N".
        runs: Number of runs.
        kept: Number of runs that are kept.
        events: Number of wide events of these runs.
        kept_events: Number of wide events that are kept.
    """

    key: str
    reason: str
    runs: int
    kept: int
    events: int
    kept_events: int


NO_KINDS = "select '', '', '' where false"
NO_MINUTES = "select '' as key, '' as minute, 0 as runs where false"


def decide(
    connection: DuckDBPyConnection,
    decided: str,
    sampler: TailSampler,
    runs: str,
    kinds: str,
    minutes: str = NO_MINUTES,
) -> None:
    """Create a table of root runs with their rate, the reason, and whether they are kept.

    For runs to which the target rate applies, the table also contains their minute.

    Args:
        connection: The DuckDB connection.
        decided: Name of the table to create.
        sampler: The sampler.
        runs: SQL query for the runs, with the columns of `runs`.
        kinds: SQL query for the known kinds of runs (pipeline, outcome, version).
        minutes: SQL query for the number of runs to which the target rate was applied before: key, minute,
            runs.

    Raises:
        QueryError: A rule or the key is invalid.
    """
    import duckdb

    always = ["when not has_root then 'incomplete'"]
    if sampler.keep_failures:
        always.append("when has_failure then 'failed'")
    if sampler.slower_than is not None:
        always.append(f"when slowest_ms > {sampler.slower_than * 1000!r} then 'slow'")
    if sampler.first_of_a_kind:
        always.append("when is_first then 'first of its kind'")
    always.append(f"when slowest_ms > {sampler.decide_after * 1000!r} then 'long'")
    _check_rules(connection, sampler)
    _check_fields(connection, sampler, runs)
    rules = [f"when {parenthesized(rule.where)} then {n}" for n, rule in enumerate(sampler.rules)]
    rates = [f"when {n} then {float(rule.one_in)!r}" for n, rule in enumerate(sampler.rules)]
    reasons = [f"when {n} then {text(rule.reason or rule.where)}" for n, rule in enumerate(sampler.rules)]
    if sampler.target_per_minute is not None:
        # The runs of this minute before these ones, and those of the previous minute, predict its total.
        in_minute = "count(*) over (partition by always, rule, classified.key, classified.minute)"
        total = f"greatest({in_minute} + coalesce(current.runs, 0), coalesce(previous.runs, 0))"
        rate = f"greatest(1.0, {total} / {float(sampler.target_per_minute)!r})"
        reason = "target"
    else:
        rate, reason = f"{float(sampler.one_in)!r}", f"one in {sampler.one_in:g}"
    key = quoted(sampler.per_key)
    try:
        connection.execute(f"""
            create or replace temp table {decided} as
            with trees as (
                select {_ROOT} as root, bool_or(pipeline_run_id = {_ROOT}) as has_root,
                    bool_or({FAILED} or coalesce(stages_failed, 0) > 0) as has_failure,
                    max(duration_ms) as slowest_ms
                from ({runs}) group by 1
            ), roots as (
                select *, pipeline_run_id as root, strftime(started_at, '%Y-%m-%dT%H:%M') as minute,
                    strftime(started_at - interval 1 minute, '%Y-%m-%dT%H:%M') as previous_minute,
                    {key}::varchar as key, case {" ".join(rules) or "when false then 0"} end as rule,
                    row_number() over (partition by pipeline_name, outcome, service_version
                        order by started_at, pipeline_run_id) = 1
                    and (coalesce(pipeline_name, ''), coalesce(outcome, ''), coalesce(service_version, ''))
                        not in ({kinds}) as is_first
                from ({runs}) where pipeline_run_id = {_ROOT}
                qualify row_number() over (partition by pipeline_run_id order by started_at desc) = 1
            ), classified as (
                select root, coalesce(key, '') as key, minute, previous_minute, rule,
                    case {" ".join(always)} end as always
                from trees left join roots using (root)
            ), rated as (
                select classified.*, case when always is not null then 1.0
                    else coalesce(case rule {" ".join(rates) or "when 0 then 1"} end, {rate}) end as rate
                from classified
                left join ({minutes}) current
                    on (current.key, current.minute) = (classified.key, classified.minute)
                left join ({minutes}) previous
                    on (previous.key, previous.minute) = (classified.key, previous_minute)
            )
            select root, key, rate::double as rate, {_HASH_POSITION} < 1 / rate as kept,
                case when always is null and rule is null then minute end as minute,
                coalesce(always, case rule {" ".join(reasons) or "when 0 then ''"} end, {text(reason)})
                    as reason
            from rated
        """)
    except duckdb.Error as error:
        raise QueryError(
            f"DuckDB cannot evaluate the sampling rules: {error}",
            sql="; ".join(rule.where for rule in sampler.rules),
        ) from None


def _check_rules(connection: DuckDBPyConnection, sampler: TailSampler) -> None:
    """Verify that each rule is a predicate over the columns of a single run.

    Raises:
        QueryError: A rule is not a valid predicate, or reads other rows.
    """
    for number, rule in enumerate(sampler.rules):
        try:
            tree = parse_predicate(connection, rule.where)
        except QueryError as error:
            raise _in_rule(number, error) from None
        # A field of a stage is a subquery, too.
        if any(part.get("class") == "SUBQUERY" for part in parts(tree)):
            refused = QueryError(
                f"{rule.where!r} reads stages or other runs; a rule can read only the sampled run",
                sql=rule.where,
                hint="add the value to the run, as in `ctx.annotate_run(hits=3)`, and use attributes.hits",
            )
            raise _in_rule(number, refused)


def _check_fields(connection: DuckDBPyConnection, sampler: TailSampler, runs: str) -> None:
    """Verify that DuckDB can evaluate the key and each rule for the columns of runs.

    Raises:
        QueryError: A field is unknown, or a rule cannot be evaluated.
    """
    import duckdb

    known = fields_of(connection, f"({runs})")
    if sampler.per_key.lower() not in {name.lower() for name in known}:
        error = unknown_field(sampler.per_key, known, sampler.per_key)
        raise QueryError(f"per_key: {error.message}", sql=sampler.per_key, hint=error.hint)
    for number, rule in enumerate(sampler.rules):
        try:
            connection.execute(f"select 1 from ({runs}) where {parenthesized(rule.where)}::boolean limit 0")
        except duckdb.Error as wrong:
            raise _in_rule(number, as_query_error(connection, wrong, rule.where, known)) from None


def _in_rule(number: int, error: QueryError) -> QueryError:
    return QueryError(f"sampling rule {number + 1}: {error.message}", sql=error.sql, hint=error.hint)


def match_rules(connection: DuckDBPyConnection, table: str, sampler: TailSampler) -> TailSampler:
    """Add a column for each rule to a table of runs, and return a sampler whose rules refer to these columns.

    A rule is evaluated on the attributes as each run recorded them, whatever the other runs recorded. If it
    is not valid for their types, it is evaluated on those that are numbers, or text that is a number; the
    others are null then, as are those of a run whose values cannot be converted. An attribute that a run does
    not have is null.

    Args:
        connection: The connection that contains the table.
        table: Name of the table, with the columns of `runs`.
        sampler: The sampler.

    Raises:
        QueryError: A rule is invalid.
    """
    _check_rules(connection, sampler)
    rules = []
    for number, rule in enumerate(sampler.rules):
        column = f"sampling rule {number}"
        connection.execute(f"alter table {table} add column {quoted(column)} boolean")
        try:
            _match_rule(connection, table, rule.where, column)
        except QueryError as error:
            raise _in_rule(number, error) from None
        rules.append(msgspec.structs.replace(rule, where=quoted(column), reason=rule.reason or rule.where))
    return msgspec.structs.replace(sampler, rules=tuple(rules))


def _match_rule(connection: DuckDBPyConnection, table: str, where: str, column: str) -> None:
    predicate = parenthesized(where)
    columns = columns_of(connection, table)
    by_lower_case = {name.lower(): name for name in columns}
    # DuckDB does not distinguish the names of columns by case.
    names = sorted(
        {
            name.lower(): name
            for name in (ATTRIBUTE + name.replace('""', '"') for name in _ATTRIBUTE_COLUMN.findall(predicate))
        }.values()
    )
    stored = [by_lower_case.get(name.lower()) for name in names]
    others = ", ".join(quoted(name) for name in columns if name not in stored)
    each = [*zip(names, stored, strict=True)]
    recorded = f"[{', '.join(_recorded_type(name, at, columns) for name, at in each)}]"
    for (types,) in connection.execute(f"select distinct {recorded} from {table}").fetchall():
        values = [
            _recorded_value(name, at, type, columns) for (name, at), type in zip(each, types, strict=True)
        ]
        numbers = [f"try_cast({value} as double)" for value in values]
        of_types = f"{recorded} = [{text(*types)}] and {quoted(column)} is null"
        errors = []
        for reading in (values, numbers, ["null"] * len(names)):
            read = [
                others,
                *(f"{value} as {quoted(name)}" for value, name in zip(reading, names, strict=True)),
            ]
            found = f"select rowid as run_row, {', '.join(read)} from {table} where {of_types}"
            error = _match(connection, table, column, f"coalesce({predicate}::boolean, false)", found)
            errors += [error] if error is not None else []
            # If a value cannot be converted, only the run that recorded it remains unmatched.
            remaining = connection.execute(f"select count(*) from {table} where {of_types}").fetchone()
            if remaining == (0,):
                break
        else:
            if len(errors) == len((values, numbers, names)):
                raise as_query_error(connection, errors[0], where, columns)


def _match(
    connection: DuckDBPyConnection, table: str, column: str, condition: str, found: str
) -> Exception | None:
    """Store whether a condition is true for each of the runs found, except those for which it is an error.

    Returns:
        Why the condition is invalid for all of them; None if it is valid.
    """
    import duckdb

    failed: duckdb.Error | None = None
    for value in (f"try({condition})", condition):  # a subquery is not supported by `try`
        try:
            connection.execute(f"""
                update {table} set {quoted(column)} = matched
                from (select run_row, {value} as matched from ({found})) where {table}.rowid = run_row
            """)
        except duckdb.Error as error:
            failed = error
        else:
            return None
    return failed


def _recorded_type(attribute: str, stored: str | None, columns: Mapping[str, str]) -> str:
    """Return SQL for the type of an attribute that a run recorded: "NULL" for none."""
    # A value of another type than the column, or whose name differs from it in case, is in `rest`.
    in_rest = f"json_type(rest, {text(_pointer(attribute))})"
    if stored is None:
        return f"coalesce({in_rest}, 'NULL')"
    in_column = f"case when {quoted(stored)} is not null then {text(columns[stored])} end"
    return f"coalesce(nullif({in_rest}, 'NULL'), {in_column}, 'NULL')"


def _recorded_value(attribute: str, stored: str | None, type: str, columns: Mapping[str, str]) -> str:
    """Return SQL for the value of an attribute that a run recorded with this type."""
    if type == "NULL":
        return "null"
    if type in ("ARRAY", "OBJECT"):
        return f"json_extract(rest, {text(_pointer(attribute))})"
    in_rest = f"json_extract_string(rest, {text(_pointer(attribute))})::{type}"
    if stored is not None and columns[stored] == type:
        return f"coalesce({in_rest}, {quoted(stored)})"
    return in_rest


def _pointer(attribute: str) -> str:
    """Return the JSON pointer of an attribute in `rest`."""
    name = attribute.removeprefix(ATTRIBUTE).replace("~", "~0").replace("/", "~1")
    return f"/attributes/{name}"


def columns_of(connection: DuckDBPyConnection, table: str) -> dict[str, str]:
    """Return the types of the columns of a table."""
    return {name: type for name, type, *_ in connection.execute(f"describe {table}").fetchall()}


def report(connection: DuckDBPyConnection, decided: str, runs: str) -> list[SamplingResult]:
    """Return the sampling decisions for these runs, most events first; `decided` is the table of `decide`."""
    found = connection.execute(f"""
        select key, reason, count(*), count(*) filter (kept),
            sum(coalesce(stages_total, 0) + 1)::bigint as events,
            coalesce(sum(coalesce(stages_total, 0) + 1) filter (kept), 0)::bigint
        from (select {_ROOT} as root, stages_total from ({runs})) join {decided} using (root)
        group by key, reason order by events desc, key, reason
    """).fetchall()
    return [SamplingResult(*row) for row in found]


def apply_decisions(
    connection: DuckDBPyConnection, table: str, archived: str | None, decisions: Decisions
) -> None:
    """Delete the rows of runs that are not kept from a table, and set `sample_rate` and `sample_reason`.

    A run that is partly in the archive, from before the journal was sampled, is kept with the rate of the
    archived part. Events that belong to no run are kept too.

    Args:
        connection: The connection that contains the table.
        table: Name of the table of new rows.
        archived: SQL query for the archived rows that may belong to the same runs; None for no rows.
        decisions: The decisions about these runs.
    """
    known, fates = f"{table}_known", f"{table}_fates"
    found = connection.execute(
        f"select distinct pipeline_run_id from {table} where pipeline_run_id is not null"
    ).fetchall()
    rows = f"from {archived} where pipeline_run_id is not null" if archived else f"from {table} where false"
    connection.execute(f"""
        create or replace temp table {known} as
        select pipeline_run_id as id, max(sample_rate) as rate {rows} group by 1
    """)
    connection.execute(
        f"create or replace temp table {fates} (run varchar, kept boolean, rate double, fate_reason varchar)"
    )
    decided = decisions.find(run for (run,) in found)
    if decided:
        runs, each = [*decided], [*decided.values()]
        connection.execute(
            f"insert into {fates} select unnest(?), unnest(?), unnest(?), unnest(?)",
            [runs, [d.kept for d in each], [d.rate for d in each], [d.reason for d in each]],
        )
    connection.execute(f"""
        delete from {table} where pipeline_run_id in (select run from {fates} where not kept)
            and pipeline_run_id not in (select id from {known})
    """)
    # The event that an amendment belongs to was dropped with its run, before the decision was deleted.
    connection.execute(f"""
        delete from {table} where type in ({text(*AMENDMENTS)})
            and pipeline_run_id not in (select run from {fates} union all select id from {known})
    """)
    connection.execute(f"""
        update {table} set
            sample_rate = case when known.id is not null
                then greatest(coalesce(sample_rate, 1), coalesce(known.rate, 1))
                else coalesce(sample_rate, 1) * coalesce(fates.rate, 1) end,
            sample_reason = coalesce(sample_reason, fate_reason)
        from (select distinct pipeline_run_id as run from {table}) runs
            left join {fates} fates using (run) left join {known} known on known.id = runs.run
        where pipeline_run_id = runs.run
    """)
