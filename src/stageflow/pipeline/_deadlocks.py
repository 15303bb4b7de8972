"""Finds stages of a pipeline that could wait for each other because of its streams."""

from __future__ import annotations

from collections.abc import Sequence

from ._spec import StageSpec, limit_of

__all__ = ["deadlock_problems"]


def deadlock_problems(specs: Sequence[StageSpec]) -> list[str]:
    """Return one sentence per stream whose reader may wait for a stage that needs the stream.

    Until then, the buffer of the reader is full, so that the stream does not continue.
    """
    by_name = {spec.name: spec for spec in specs}
    problems = []
    for spec in specs:
        for ref in spec.streams:
            if ref.buffer == "collect":
                continue
            for before in spec.dependencies:
                if before == ref.name:
                    continue
                path = _path(by_name, ref.name, before)
                why = f"which depends on {ref.name!r}"
                if path is None and before in spec.ended:
                    path = _path_from_sender(by_name, ref.name, before)
                    why = f"which cannot end while {ref.name!r} waits"
                if path is not None:
                    problems.append(
                        f"stage {spec.name!r} reads the stream of {ref.name!r} and also waits for {before!r},"
                        f" {why}: when the buffer is full, the run deadlocks"
                        f" ({' -> '.join(map(repr, [*path, spec.name]))});"
                        f' use StreamRef({ref.name!r}).chunks(buffer="collect")'
                    )
                    break
        senders = _senders(by_name, spec)
        for name in senders:
            problems += _limit_problems(by_name, spec, by_name[name])
        limit = spec.limit
        if limit is not None:
            problems += [
                f"stage {spec.name!r} needs a permit of limit {limit!r}, which {before!r} may hold while it"
                f" waits for {spec.name!r} to read its stream; use two limits"
                for before in senders
                if by_name[before].limit == limit
            ]
    return problems


def _limit_problems(by_name: dict[str, StageSpec], spec: StageSpec, sender: StageSpec) -> list[str]:
    """Return a sentence if a stage that must start before a reader needs the permit of a stage that it reads.

    The reader may read the stream of `sender` through other stages.
    """
    if sender.limit is None:
        return []
    before = _ancestors(by_name, sender)
    return [
        f"stage {spec.name!r} cannot start before {name!r}, which needs a permit of limit {sender.limit!r};"
        f" {sender.name!r} may hold that permit while it waits for {spec.name!r} to read its stream;"
        " use two limits"
        for name in _ancestors(by_name, spec)
        if name != sender.name and name not in before and limit_of(by_name[name]) == sender.limit
    ]


def _ancestors(by_name: dict[str, StageSpec], spec: StageSpec) -> dict[str, None]:
    found: dict[str, None] = {}
    following = [*spec.dependencies]
    while following:
        name = following.pop()
        if name not in found:
            found[name] = None
            following += by_name[name].dependencies
    return found


def _senders(by_name: dict[str, StageSpec], spec: StageSpec) -> list[str]:
    """Return the stages that may wait for a stage to read: those whose streams it reads, and so on."""
    found: dict[str, None] = {}
    following = [spec]
    while following:
        for ref in following.pop().streams:
            if ref.buffer != "collect" and ref.name not in found:
                found[ref.name] = None
                following.append(by_name[ref.name])
    return list(found)


def _path_from_sender(by_name: dict[str, StageSpec], reader: str, before: str) -> list[str] | None:
    """Return a path to `before` from a stage whose stream `reader` reads, maybe through others, or None."""
    for sender in _senders(by_name, by_name[reader]):
        if (path := _path(by_name, sender, before)) is not None:
            return path
    return None


def _path(by_name: dict[str, StageSpec], first: str, last: str) -> list[str] | None:
    """Return a path of dependencies from one stage to another, or None."""
    previous: dict[str, str | None] = {last: None}
    following = [last]
    while following:
        name = following.pop()
        if name == first:
            path = [name]
            while (after := previous[path[-1]]) is not None:
                path.append(after)
            return path
        for before in by_name[name].dependencies:
            if before not in previous:
                previous[before] = name
                following.append(before)
    return None
