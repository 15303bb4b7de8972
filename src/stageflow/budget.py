"""Budgets: the maximum amount that a run may spend, and accounts of what it and its child runs spent."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from asyncio import AbstractEventLoop, _get_running_loop
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol
from weakref import WeakSet

from msgspec import Struct

from ._genai import cost_and_tokens
from ._value import ValueType
from .errors import BudgetExceededError, InvalidArgumentError, invalid_argument

__all__ = ["Account", "Budget", "BudgetedRun"]

# One lock for all accounts: it is held for a few additions. Reentrant: a signal handler may record usage.
_adding = threading.RLock()


class Budget(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """The maximum that a run may spend, including its child runs. At least one limit is required.

    Args:
        usd: Maximum cost in US dollars: the sum of `cost_usd` of all recorded calls; default no limit.
        tokens: Maximum number of input and output tokens of all recorded calls; default no limit.
        attempts: Maximum number of attempts of stages and of items of mapped stages, including retries;
            default no limit.

    Raises:
        InvalidArgumentError: No limit is set, a limit is negative, infinite or not a number, or `attempts`
            is less than 1.

    Example:
        >>> Budget(usd=0.5, tokens=100_000)
        Budget(usd=0.5, tokens=100000, attempts=None)
    """

    usd: float | None = None
    tokens: int | None = None
    attempts: int | None = None

    def __post_init__(self) -> None:
        if self.usd is None and self.tokens is None and self.attempts is None:
            raise InvalidArgumentError(
                "Budget: usd, tokens or attempts must be set", hint="write Budget(usd=1), for example"
            )
        for name, value, types, least, expected in (
            ("usd", self.usd, (int, float), 0, "0 or more US dollars"),
            ("tokens", self.tokens, (int,), 0, "an integer, 0 or more"),
            ("attempts", self.attempts, (int,), 1, "a positive integer"),
        ):
            if value is not None and not (
                isinstance(value, types) and not isinstance(value, bool) and least <= value < math.inf
            ):
                raise invalid_argument("Budget", name, value, expected)

    def __str__(self) -> str:
        limits = {"USD": self.usd, "tokens": self.tokens, "attempts": self.attempts}
        return ", ".join(f"{_number(limit)} {unit}" for unit, limit in limits.items() if limit is not None)


class BudgetedRun(Protocol):
    """The part of a run that its account uses.

    Attributes:
        loop: The event loop of the run.
    """

    loop: AbstractEventLoop

    def budget_exceeded(self, stage: int | None, error: BudgetExceededError) -> None:
        """End the run, because it or an outer run exceeds its budget. Called on its event loop.

        Args:
            stage: The number of the stage that exceeded the budget, which fails with `error`. None if it is
                not a stage of this run; then the run is cancelled.
            error: The error, which contains the amounts.
        """
        ...


class _Excess(Struct, frozen=True):
    """A limit that was exceeded, and the amount at that time."""

    unit: str
    limit: float
    spent: float


class Account:
    """What one run has spent, including its child runs, whose accounts add to this one.

    Only runs with a budget, and runs inside them, have an account.

    Args:
        budget: The budget of the run, or None.
        pipeline: Name of the pipeline.
        run_id: Id of the run.
        run: The run, until it has ended.
        parent: The account of the run that started this one, or None.
        stage: The number of the stage of that run that started this one.
    """

    __slots__ = (
        "__weakref__",
        "_attempts",
        "_budget",
        "_excess",
        "_inner",
        "_parent",
        "_pipeline",
        "_reported_by",
        "_run",
        "_run_id",
        "_stage",
        "_tokens",
        "_usd",
    )

    def __init__(
        self,
        budget: Budget | None,
        pipeline: str,
        run_id: str,
        run: BudgetedRun,
        parent: Account | None,
        stage: int,
    ) -> None:
        self._budget = budget
        self._pipeline = pipeline
        self._run_id = run_id
        self._run: BudgetedRun | None = run
        self._parent = parent
        self._stage = stage
        self._usd: float = 0
        self._tokens: float = 0
        self._attempts = 0
        self._excess: _Excess | None = None
        # The stage with which this run or an outer one exceeded its budget, if it is a stage of this run.
        self._reported_by: int | None = None
        self._inner: WeakSet[Account] = WeakSet()
        if parent is not None:
            with _adding:
                parent._inner.add(self)

    def add(self, stage: int, amounts: Mapping[str, float]) -> None:
        """Add what a stage has recorded. End the run, or an outer run, if that exceeds its budget."""
        usd, tokens = cost_and_tokens(amounts)
        if not usd and not tokens:
            return
        with _adding:
            accounts = self._and_outer()
            exceeded = [account for account in accounts if account._exceeds_with(usd, tokens)]
            if exceeded:
                self._set_reported_by(stage, exceeded[-1])
            exceeded = [account for account in accounts if account._excess is not None]
        # Even if it was already exceeded: the thread that exceeded it may not have ended the runs yet.
        if exceeded:
            exceeded[-1]._end_runs()

    def start_attempt(self, stage: int, attempts: int = 1) -> bool:
        """Count an attempt of a stage or an item. Return False if it must not start.

        It must not start if this run, or an outer one, has exceeded its budget, or would exceed it now. On
        the event loop of the run, the run has ended when this method returns False. With 0 `attempts`, this
        only checks whether a budget was exceeded.
        """
        with _adding:
            accounts = self._and_outer()
            exceeded = [account for account in accounts if account._excess is not None]
            if not exceeded:
                exceeded = [account for account in accounts if account._would_exceed(attempts)]
                if not exceeded:
                    for account in accounts:
                        account._attempts += attempts
                    return True
                self._set_reported_by(stage, exceeded[-1])
        # Also if it was exceeded before: see `add`.
        exceeded[-1]._end_runs()
        return False

    @property
    def limits_attempts(self) -> bool:
        """True if the attempts of this run, or of an outer one, are limited."""
        budgets = (account._budget for account in self._and_outer())
        return any(budget is not None and budget.attempts is not None for budget in budgets)

    def error(self, stage: str | None = None) -> BudgetExceededError | None:
        """Return a new error if this run, or an outer one, has exceeded its budget, else None.

        Args:
            stage: Name of the stage in which it is raised.
        """
        for account in self._and_outer():
            if account._excess is not None:
                return self._error_of(account, account._excess, stage)
        return None

    def close(self) -> None:
        """Mark the run as ended. Later usage counts only towards the outer runs."""
        self._run = None

    def _and_outer(self) -> list[Account]:
        """Return this account and those of the outer runs, the innermost first."""
        accounts: list[Account] = [self]
        while (parent := accounts[-1]._parent) is not None:
            accounts.append(parent)
        return accounts

    def _exceeds_with(self, usd: float, tokens: float) -> bool:
        """Add to the totals, and return whether this makes the run exceed its budget."""
        self._usd, self._tokens = _sum(self._usd, usd), _sum(self._tokens, tokens)
        budget = self._budget
        if budget is None or self._run is None or self._excess is not None:
            return False
        # Rounded, because the sum of floats is not exact: 0.1 + 0.2 is more than 0.3.
        if budget.usd is not None and _rounded(self._usd) > _rounded(budget.usd):
            self._excess = _Excess("usd", budget.usd, _rounded(self._usd))
        elif budget.tokens is not None and self._tokens > budget.tokens:
            self._excess = _Excess("tokens", budget.tokens, self._tokens)
        return self._excess is not None

    def _would_exceed(self, attempts: int) -> bool:
        """Return whether these attempts would exceed the budget; if so, mark it as exceeded."""
        limit = None if self._budget is None or self._run is None else self._budget.attempts
        if limit is None or self._attempts + attempts <= limit:
            return False
        self._excess = _Excess("attempts", limit, self._attempts)
        return True

    def _set_reported_by(self, stage: int, outermost: Account) -> None:
        for account in self._and_outer():
            if account._reported_by is None:
                account._reported_by = stage
            if account is outermost:
                return
            stage = account._stage

    def _end_runs(self) -> None:
        """End this run, which has exceeded its budget, and all runs inside it.

        All runs of an event loop end in one callback. Otherwise, the end of one run could propagate to the
        run that waits for it, which would then end for another reason. For the same reason, outer event loops
        come first.
        """
        with _adding:
            accounts: list[Account] = [self]
            for account in accounts:
                accounts.extend(account._inner)
        ends: dict[AbstractEventLoop, list[Callable[[], None]]] = {}
        for account in accounts:
            run, error = account._run, account.error()
            if run is not None and error is not None:
                end = functools.partial(run.budget_exceeded, account._reported_by, error)
                ends.setdefault(run.loop, []).append(end)
        for loop, calls in ends.items():
            if loop is _get_running_loop():
                _call_all(calls)
            else:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(_call_all, calls)

    def _error_of(self, account: Account, excess: _Excess, stage: str | None) -> BudgetExceededError:
        limit, spent = _number(excess.limit), _number(excess.spent)
        did = {
            "usd": f"spent {spent} USD, more than its budget of {limit} USD",
            "tokens": f"used {spent} tokens, more than its budget of {limit} tokens",
            "attempts": f"needs more attempts than its budget of {limit}",
        }[excess.unit]
        run = "the run" if account is self else f"the outer run of pipeline {account._pipeline!r}"
        return BudgetExceededError(
            f"{run} {did}",
            unit=excess.unit,
            limit=excess.limit,
            spent=excess.spent,
            budget_run_id=account._run_id,
            pipeline=self._pipeline,
            stage=stage,
            run_id=self._run_id,
            hint=f"increase {excess.unit} in build(budget=Budget({excess.unit}={excess.limit})) of pipeline"
            f" {account._pipeline!r}; `stageflow show {account._run_id}` shows the run",
        )


def _call_all(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _sum(total: float, amount: float) -> float:
    try:
        return total + amount
    except OverflowError:  # an integer that is too large for a float
        return math.inf


def _rounded(amount: float) -> float:
    return round(amount, 12) if type(amount) is float else amount


def _number(value: float) -> str:
    return f"{value:,}".removesuffix(".0")
