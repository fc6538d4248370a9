"""From recorded operators to operations of a schedule: which operators run as one.

An operator that writes in place joins the one that made what it overwrites, when nobody else needs the old content:
then the old and the new content share their memory, as they do in eager execution. Otherwise it works on a copy. So
every operation reads values and makes new ones, and may be executed again at any time.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

from poet.trace_call import Call

SMALL = 64
"""Bytes up to which a result that only the end of the step needs is not worth an operation of its own."""

Version = tuple[int, int]
"""A storage and how often it had been written."""


@final
@dataclass(slots=True)
class Group:
    """Operators that run as one.

    Attributes:
        members: Indices of the calls, in order.
        anchor: The member at whose place in the step all run.
        random: Whether one of them draws random numbers.
        owns: Versions that they make.
    """

    members: list[int]
    anchor: int
    random: bool
    owns: set[Version] = field(default_factory=set)


def group(calls: Sequence[Call], outputs: Iterable[Version], sizes: Sequence[int]) -> list[Group]:
    """Group the operators that matter.

    Args:
        calls: All operators, in order.
        outputs: Versions that the step returns.
        sizes: Bytes of each storage.

    Returns:
        The groups in the order of their execution. Operators whose results nobody needs are left out, unless they
        draw random numbers: eager execution would draw them too.
    """
    return _joined(_Grouping(calls, set(outputs)).run(), calls, sizes)


def made(call: Call) -> list[Version]:
    """The versions that an operator makes."""
    new = [(fresh.storage, 0) for fresh in call.fresh]
    return new + [(s, v + 1) for s, v in zip(call.writes, call.versions, strict=True)]


def used(call: Call) -> list[Version]:
    """The versions that an operator reads or overwrites."""
    read = [(ref.storage, ref.version) for ref in call.reads]
    return list(dict.fromkeys([*read, *zip(call.writes, call.versions, strict=True)]))


def _joined(groups: list[Group], calls: Sequence[Call], sizes: Sequence[int]) -> list[Group]:
    """Small change (a layer counts its batches) runs with the next operation: it is not worth one of its own."""
    owned = {version for g in groups for version in g.owns}
    read = {v for g in groups for r in g.members for v in used(calls[r]) if v not in g.owns}
    kept: list[Group] = []
    waiting: list[Group] = []
    for g in groups:
        reads = {v for r in g.members for v in used(calls[r])} - g.owns
        small = sum(sizes[s] for s in {s for s, _ in g.owns}) <= SMALL
        if small and not g.random and reads.isdisjoint(owned) and g.owns.isdisjoint(read):
            waiting.append(g)
            continue
        for other in waiting:
            g.members = sorted([*g.members, *other.members])
            g.owns |= other.owns
        waiting = []
        kept.append(g)
    return kept + waiting


class _Grouping:
    def __init__(self, calls: Sequence[Call], outputs: set[Version]) -> None:
        self.calls = calls
        self.live = self._living(outputs)
        self.readers: dict[Version, list[int]] = {}
        for r in self.live:
            for version in used(calls[r]):
                self.readers.setdefault(version, []).append(r)
        self.owner: dict[Version, Group] = {}
        self.group_of: dict[int, Group] = {}
        self.randoms: list[Group] = []

    def run(self) -> list[Group]:
        for r in self.live:
            self._place(r)
        groups = {id(g): g for g in self.group_of.values()}
        return sorted(groups.values(), key=lambda g: g.anchor)

    def _living(self, outputs: set[Version]) -> list[int]:
        needed, live = set(outputs), []
        for r in range(len(self.calls) - 1, -1, -1):
            call = self.calls[r]
            if call.random or not needed.isdisjoint(made(call)):
                needed.update(used(call))
                live.append(r)
        return live[::-1]

    def _place(self, r: int) -> None:
        call = self.calls[r]
        home = None
        for overwritten in zip(call.writes, call.versions, strict=True):
            home = self.owner.get(overwritten)
            if home is not None and (anchor := self._joint_anchor(home, r, overwritten)) is not None:
                home.anchor = anchor
                insort(home.members, r)
                break
            home = None
        if home is None:
            home = Group([r], r, False)
        if call.random and not home.random:
            home.random = True
            self.randoms.append(home)
        home.owns.update(made(call))
        self.group_of[r] = home
        self.owner.update(dict.fromkeys(made(call), home))

    def _joint_anchor(self, home: Group, r: int, overwritten: Version) -> int | None:
        """Where a group can run together with a later operator that overwrites what it made; None if it cannot."""
        if any(self.group_of.get(q) is not home for q in self.readers[overwritten] if q != r):
            return None
        call = self.calls[r]
        others = [self.owner[v].anchor for v in used(call) if v in self.owner and self.owner[v] is not home]
        between = any(home.anchor < g.anchor < r for g in self.randoms if g is not home)
        if all(anchor < home.anchor for anchor in others) and not (call.random and between):
            return home.anchor
        early = any(q < r and self.group_of.get(q) is not home for v in home.owns for q in self.readers.get(v, ()))
        return None if early or (home.random and between) else r
