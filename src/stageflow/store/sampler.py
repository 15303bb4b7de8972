"""`TailSampler`: which runs are kept on the way into the archive, decided when they are over."""

from __future__ import annotations

import os

import msgspec
from msgspec import Struct

from .._toml import parse_toml
from .._value import ValueType
from ..errors import SettingsError, did_you_mean

__all__ = ["SampleRule", "TailSampler", "read_sampler"]


class SampleRule(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """A rule: runs for which a condition holds are kept, one in so many.

    Attributes:
        where: SQL over the columns of `runs`: "user_id = 'u1'".
        one_in: How many runs one that is kept stands for, 1 or more; default 1, to keep all.
        reason: What `sample_reason` says of them; default the condition.

    Raises:
        ValueError: `one_in` is less than 1.
    """

    where: str
    one_in: float = 1.0
    reason: str | None = None

    def __post_init__(self) -> None:
        _must_be_at_least_one("SampleRule", self.one_in)


class TailSampler(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """Decides once for each run, and all runs that it started, when its record is complete.

    The first of these that fits decides: what failed or crashed, what was slow, and what is the first
    of its kind (pipeline, outcome and version) is kept; then the rules, in their order; then a rate
    for each key, minute by minute, or one in so many.

    Attributes:
        keep_failures: Keep every run that counts as a failure (see `failure_outcomes` in `Settings`), or has
            such a run or a failed stage in it; default True. A run that was cancelled externally is sampled
            like one that succeeded.
        slower_than: Seconds; runs that took longer are kept. Default None, for none.
        first_of_a_kind: Keep the first run of each pipeline, outcome and version; default True.
        rules: Rules for all others; the first that fits decides.
        per_key: Column of `runs` for whose values a target is set; default "topology".
        target_per_minute: How many runs of each key are kept a minute, about; default None, for no target.
        one_in: How many runs one that is kept stands for, where there is no target; default 1, to keep all.

    Raises:
        ValueError: A number is out of range.

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
        _must_be_at_least_one("TailSampler", self.one_in)
        for name in ("slower_than", "target_per_minute"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"TailSampler({name}={value!r}); give a number, more than 0, or None")


def _must_be_at_least_one(what: str, one_in: object) -> None:
    if not (isinstance(one_in, int | float) and one_in >= 1):
        raise ValueError(f"{what}(one_in={one_in!r}); give a number, 1 or more")


def read_sampler(path: str | os.PathLike[str]) -> TailSampler:
    """Return the sampler that a TOML file describes: the fields of `TailSampler`, and `[[rules]]`.

    Raises:
        SettingsError: A field is unknown or has a wrong value, or the file is no TOML.
        OSError: The file cannot be read.
    """
    origin = os.fspath(path)
    with open(path, "rb") as file:
        try:
            table = parse_toml(file.read())
        except ValueError as error:
            raise SettingsError(f"invalid TOML: {error}", origin) from None
    rules = table.get("rules", [])
    for place, given, kind in [
        ("$", table, TailSampler),
        *((f"$.rules[{n}]", rule, SampleRule) for n, rule in enumerate(rules) if isinstance(rule, dict)),
    ]:
        for name in given:
            if name not in kind.__struct_fields__:
                near = did_you_mean(name, kind.__struct_fields__)
                raise SettingsError(f"there is no field {name!r} at {place}{near}", origin)
    try:
        return msgspec.convert(table, TailSampler)
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(str(error), origin) from None
