"""Which actors are restarted after a death, when, and when the company gives up; without I/O or clock.

The policy is Erlang/OTP's, with one difference: a budget counts only deaths *without progress*. An
actor that was ready and got work done since its start is restarted at once and however often it
dies, because every restart brings the company further. An actor that dies before that is restarted
with growing pauses, and its death counts against every group around it: more than `Budget.restarts`
of them within `Budget.seconds` fail a group. A failed group is, for the group around it, a member that
died, so more is restarted; when the outermost group fails, the company ends.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

from runtime.tree import Child, Group, Member, Strategy, groups, leaves

BACKOFF = (0.0, 0.1, 0.5, 1.0, 2.0)
"""Seconds to wait after the first, second ... death without progress; the last value stays."""


@dataclass(frozen=True)
class Restart:
    """Start `names` anew in `delay` seconds; those of them that still run are killed first."""

    names: tuple[str, ...]
    delay: float = 0.0


@dataclass(frozen=True)
class GiveUp:
    """The outermost budget is spent: the company ends for the reason in `sentence`."""

    sentence: str


class Restarts:
    """Memory of the deaths without progress, and the verdict on the next death."""

    def __init__(self, root: Group) -> None:
        self._root = root
        self._paths = {child.name: _path(root, child.name) for child in leaves(root)}
        self._strikes: dict[str, deque[tuple[float, str]]] = {g.name: deque() for g in groups(root)}
        self._in_a_row: defaultdict[str, int] = defaultdict(int)

    def affected(self, name: str) -> tuple[str, ...]:
        """Names that restart together with actor `name`, in order of declaration."""
        group, member = self._paths[name][0]
        return _affected(group, member)

    def died(self, name: str, now: float, *, progress: bool) -> Restart | GiveUp:
        """The verdict on a death of actor `name` at time `now` (seconds, any origin, never backwards)."""
        if progress:
            self._forgive(name)
            return Restart(self.affected(name))
        delay = BACKOFF[min(self._in_a_row[name], len(BACKOFF) - 1)]
        self._in_a_row[name] += 1
        failed = [self._strike(group, name, now) for group, _ in self._paths[name]]
        if failed[-1]:
            return GiveUp(self._reason(name))
        depth = max((depth + 1 for depth, spent in enumerate(failed) if spent), default=0)
        return Restart(_affected(*self._paths[name][depth]), delay)

    def _reason(self, name: str) -> str:
        budget = self._root.budget
        return (
            f"{name} died again without having got any work done, and {self._root.name} allows "
            f"{budget.restarts} such deaths within {budget.seconds:g} s"
        )

    def _forgive(self, name: str) -> None:
        self._in_a_row[name] = 0
        for group, _ in self._paths[name]:
            kept = [strike for strike in self._strikes[group.name] if strike[1] != name]
            self._strikes[group.name] = deque(kept)

    def _strike(self, group: Group, name: str, now: float) -> bool:
        """Count a death against `group`; True when its budget is spent (and then starts afresh)."""
        strikes = self._strikes[group.name]
        strikes.append((now, name))
        while now - strikes[0][0] > group.budget.seconds:
            strikes.popleft()
        spent = len(strikes) > group.budget.restarts
        if spent:
            strikes.clear()
        return spent


def _path(group: Group, name: str) -> list[tuple[Group, Member]]:
    """The groups around actor `name`, innermost first, each with its member that holds the actor."""
    for member in group.children:
        if isinstance(member, Child):
            if member.name == name:
                return [(group, member)]
        elif inner := _path(member, name):
            return [*inner, (group, member)]
    return []


def _affected(group: Group, member: Member) -> tuple[str, ...]:
    match group.strategy:
        case Strategy.ONE_FOR_ONE:
            members: tuple[Member, ...] = (member,)
        case Strategy.ONE_FOR_ALL:
            members = group.children
        case Strategy.REST_FOR_ONE:
            members = group.children[group.children.index(member) :]
    return tuple(child.name for each in members for child in leaves(each))
