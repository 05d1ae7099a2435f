"""The supervision tree as data: who is in the company, who sends to whom, who restarts with whom."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocols.config import Config

if TYPE_CHECKING:
    from runtime.verbs import Verb


class Strategy(enum.StrEnum):
    """Who is restarted when a member of a group dies (names and meaning of Erlang/OTP).

    ONE_FOR_ONE: only the dead one. ONE_FOR_ALL: every member. REST_FOR_ONE: the dead one and the
    members declared after it.
    """

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


@dataclass(frozen=True)
class Budget:
    """More than `restarts` deaths without progress of its actors within `seconds` and the group has
    failed."""

    restarts: int = 5
    seconds: float = 60.0


@dataclass(frozen=True)
class Child:
    """One actor.

    name: unique in the company. kind: what it is ("executor"). entry: "package.module:function" of its
    `async def run(context)`; the module's `accepts` is the union of its mail. stage: a stage starts
    when all of the one before are ready, and stops before it. sends: names of the actors it sends to.
    listens: it inherits the listening socket. env: added to its environment. understudy: name of a
    spare process, shared by all children that give the same name (and environment), which has imported
    their modules and takes the place of whoever dies next; "" for none.

    ready_seconds: from start to READY at most. hang_seconds: without a turn of its loop at most.
    busy_seconds: one blocking piece of work at most, once ready. stop_seconds: from SIGTERM to its end
    at most (a child that listens has the company's drain time instead).
    """

    name: str
    kind: str
    entry: str
    index: int = 0
    stage: int = 0
    sends: tuple[str, ...] = ()
    listens: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    understudy: str = ""
    ready_seconds: float = 30.0
    hang_seconds: float = 5.0
    busy_seconds: float = 60.0
    stop_seconds: float = 5.0


@dataclass(frozen=True)
class Group:
    """Members in order of declaration, restarted by one strategy within one budget."""

    name: str
    strategy: Strategy
    children: tuple[Child | Group, ...]
    budget: Budget = Budget()


@dataclass(frozen=True)
class Company:
    """A configuration and the whole tree that serves it. verbs: what administrators may ask of this company
    beyond what they may ask of any."""

    config: Config
    root: Group
    verbs: Mapping[str, Verb] = field(default_factory=dict)


Member = Child | Group


def leaves(member: Member) -> Iterator[Child]:
    """The actors of a member, in order of declaration."""
    if isinstance(member, Child):
        yield member
        return
    for child in member.children:
        yield from leaves(child)


def groups(group: Group) -> Iterator[Group]:
    """The group and all groups within it, outermost first."""
    yield group
    for member in group.children:
        if isinstance(member, Group):
            yield from groups(member)


def check(company: Company) -> None:
    """Raise ValueError where the tree contradicts itself: the mistake of whoever wrote it."""
    names = [child.name for child in leaves(company.root)]
    titles = [group.name for group in groups(company.root)]
    for kind, all_names in (("actor", names), ("group", titles)):
        twice = {name for name in all_names if all_names.count(name) > 1}
        if twice:
            raise ValueError(f"more than one {kind} is named {', '.join(sorted(twice))}")
    if not names:
        raise ValueError("the company has no actor")
    for child in leaves(company.root):
        unknown = set(child.sends) - set(names)
        if unknown:
            raise ValueError(f"{child.name} sends to unknown {', '.join(sorted(unknown))}")
        if len(set(child.sends)) != len(child.sends):
            raise ValueError(f"{child.name} names a destination twice")
        if child.entry.count(":") != 1:
            raise ValueError(f"{child.name}: entry {child.entry!r} is not 'module:function'")
    for name, children in troupes(company.root).items():
        if any(child.env != children[0].env for child in children):
            raise ValueError(f"the children of understudy {name!r} differ in their environment")


def troupes(group: Group) -> dict[str, tuple[Child, ...]]:
    """The children of each understudy, by its name."""
    found: dict[str, tuple[Child, ...]] = {}
    for child in leaves(group):
        if child.understudy:
            found[child.understudy] = (*found.get(child.understudy, ()), child)
    return found
