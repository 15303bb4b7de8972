"""The places that the stages of one run hold, and wait for, at limits that all runs share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .limits import Limit, Ticket
from .plan import Plan

__all__ = ["Turns"]


class Turns:
    """Made only for a run of which a stage has a limit.

    Args:
        plan: The plan of the run.
        loop: Its loop.
        its_turn: Called on the loop with the number of a stage that had to wait and has a place now.
    """

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop, its_turn: Callable[[int], None]) -> None:
        self._nodes = plan.nodes
        self._loop = loop
        self._its_turn = its_turn
        self._held: dict[int, Limit] = {}
        self._waiting: dict[Ticket, int] = {}

    def has(self, index: int) -> bool:
        """Return True if a stage may start now; otherwise it waits for its turn."""
        limit = self._nodes[index].limit
        if limit is None or index in self._held:
            return True
        ticket = Ticket(limit, self._loop, self._called)
        if limit.acquire(ticket):
            self._held[index] = limit
            return True
        self._waiting[ticket] = index
        return False

    def _called(self, ticket: Ticket) -> None:
        index = self._waiting.pop(ticket)
        self._held[index] = ticket.limit
        self._its_turn(index)

    def over(self, index: int) -> None:
        """Give back the place of a stage whose attempt has ended."""
        limit = self._held.pop(index, None)
        if limit is not None:
            limit.release()

    def withdraw(self) -> None:
        """Wait for nothing any more."""
        waiting, self._waiting = self._waiting, {}
        for ticket in waiting:
            ticket.limit.withdraw(ticket)

    def give_back(self) -> None:
        """Give back every place, also those of stages that never started."""
        for index in list(self._held):
            self.over(index)
