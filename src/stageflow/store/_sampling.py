"""Tail sampling: selects the runs that the archive keeps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from .._failures import FailureOutcomes
from .._toml import parse_toml
from .._value import ValueType
from ..errors import QueryError, SettingsError, did_you_mean, invalid_argument
from ._columns import AMENDMENTS, FAILED, quoted, text
from ._merge import failed_column
from ._selection import parenthesized, parse_predicate

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["SampleRule", "SamplingResult", "TailSampler", "decide", "read_sampler", "report", "sample"]


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
    and minute, or one in `one_in`.

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

    def __post_init__(self) -> None:
        _check_one_in("TailSampler", self.one_in)
        for name in ("slower_than", "target_per_minute"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise invalid_argument("TailSampler", name, value, "a number greater than 0, or None")


def _check_one_in(owner: str, one_in: object) -> None:
    if not (isinstance(one_in, int | float) and one_in >= 1):
        raise invalid_argument(owner, "one_in", one_in, "a number of 1 or more")


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
        return msgspec.convert(table, TailSampler)
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(str(error), origin) from None


_ROOT = "coalesce(root_run_id, pipeline_run_id)"
_HASH_POSITION = "(md5_number_lower(root)::double / 18446744073709551616)"
"""SQL: a number from 0 to 1 that depends only on the id of the root run."""


class SamplingResult(Struct, frozen=True):
    """The sampling result of runs with the same key and reason.

    Attributes:
        key: Value of `per_key`.
        reason: "failed", "slow", "first of its kind", the reason of a rule, "target" or "one in N".
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


def decide(connection: DuckDBPyConnection, decided: str, sampler: TailSampler, runs: str, kinds: str) -> None:
    """Create a table of root runs with their rate, the reason, and whether they are kept.

    Args:
        connection: The DuckDB connection.
        decided: Name of the table to create.
        sampler: The sampler.
        runs: SQL query for the runs, with the columns of `runs`.
        kinds: SQL query for the known kinds of runs (pipeline, outcome, version).

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
    for rule in sampler.rules:
        parse_predicate(connection, rule.where)
    rules = [f"when {parenthesized(rule.where)} then {n}" for n, rule in enumerate(sampler.rules)]
    rates = [f"when {n} then {float(rule.one_in)!r}" for n, rule in enumerate(sampler.rules)]
    reasons = [f"when {n} then {text(rule.reason or rule.where)}" for n, rule in enumerate(sampler.rules)]
    if sampler.target_per_minute is not None:
        in_minute = "count(*) over (partition by always, rule, key, minute)"
        rate = f"greatest(1.0, {in_minute} / {float(sampler.target_per_minute)!r})"
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
                select *, pipeline_run_id as root, date_trunc('minute', started_at) as minute,
                    {key}::varchar as key, case {" ".join(rules) or "when false then 0"} end as rule,
                    row_number() over (partition by pipeline_name, outcome, service_version
                        order by started_at, pipeline_run_id) = 1
                    and (coalesce(pipeline_name, ''), coalesce(outcome, ''), coalesce(service_version, ''))
                        not in ({kinds}) as is_first
                from ({runs}) where pipeline_run_id = {_ROOT}
                qualify row_number() over (partition by pipeline_run_id order by started_at desc) = 1
            ), classified as (
                select root, coalesce(key, '') as key, minute, rule, case {" ".join(always)} end as always
                from trees left join roots using (root)
            ), rated as (
                select *, case when always is not null then 1.0
                    else coalesce(case rule {" ".join(rates) or "when 0 then 1"} end, {rate}) end as rate
                from classified
            )
            select root, key, rate, {_HASH_POSITION} < 1 / rate as kept,
                coalesce(always, case rule {" ".join(reasons) or "when 0 then ''"} end, {text(reason)})
                    as reason
            from rated
        """)
    except duckdb.Error as error:
        raise QueryError(
            f"invalid sampling rule, or unknown per_key column {sampler.per_key!r}: {error}",
            sql="; ".join(rule.where for rule in sampler.rules),
            hint="rules are SQL predicates over the columns of `runs`, and per_key is one of these columns",
        ) from None


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


def sample(
    connection: DuckDBPyConnection,
    sampler: TailSampler,
    table: str,
    archived: str | None,
    kinds: str,
    failures: FailureOutcomes,
) -> None:
    """Delete the rows of runs that are not kept from a table, and set `sample_rate` and `sample_reason`.

    A run that is partly in the archive is kept, with the rate of the archived part. A run whose end is not
    among the rows is kept too, and so are events that belong to no run.

    Args:
        connection: The connection that contains the table.
        sampler: The sampler.
        table: Name of the table of new rows.
        archived: SQL query for the archived rows that may belong to the same runs; None for no rows.
        kinds: See `decide`.
        failures: The outcomes of runs that count as failures.

    Raises:
        QueryError: A rule or the key is invalid.
    """
    decided, known, continued, fates = (
        f"{table}_{name}" for name in ("decided", "known", "continued", "fates")
    )
    ended = f"(select *, {failed_column(failures)} as {FAILED} from {table} where type = 'pipeline.wide')"
    rows = f"from {archived} where pipeline_run_id is not null" if archived else f"from {table} where false"
    connection.execute(f"""
        create or replace temp table {known} as
        select id, max(rate) as rate
        from (select unnest([pipeline_run_id, root_run_id]) as id, sample_rate as rate {rows})
        where id is not null group by 1
    """)
    connection.execute(f"""
        create or replace temp table {continued} as
        select {_ROOT} as root, max(known.rate) as rate
        from {ended} join {known} known on id in (pipeline_run_id, root_run_id) group by 1
    """)
    new = f"select * from {ended} where {_ROOT} not in (select root from {continued})"
    decide(connection, decided, sampler, new, kinds)
    connection.execute(f"""
        create or replace temp table {fates} as
        select run, coalesce(decided.rate, continued.rate, known.rate, 1.0) as rate,
            coalesce(decided.kept, true) as kept, coalesce(decided.reason, 'incomplete') as fate_reason,
            continued.root is not null or known.id is not null as is_known
        from (
            select pipeline_run_id as run, coalesce(max(root_run_id), pipeline_run_id) as root
            from {table} where pipeline_run_id is not null group by pipeline_run_id
        )
        left join {decided} decided using (root) left join {continued} continued using (root)
        left join {known} known on known.id = run
    """)
    connection.execute(f"""
        delete from {table} where pipeline_run_id in (select run from {fates} where not kept)
            -- The event that an amendment belongs to was dropped with its run.
            or (type in ({text(*AMENDMENTS)}) and pipeline_run_id not in (select id from {known}))
    """)
    connection.execute(f"""
        update {table} set
            sample_rate = case when is_known then greatest(coalesce(sample_rate, 1), rate)
                else coalesce(sample_rate, 1) * rate end,
            sample_reason = coalesce(sample_reason, fate_reason)
        from {fates} where run = pipeline_run_id
    """)
