"""What a scheduler shows of the adapters that its requests go through."""

from __future__ import annotations

from actors.scheduler.instruments import Instruments
from protocols.messages import Submit, TokenRow
from protocols.meters import NAMED, Named
from protocols.plan import Plan, SlotOpen
from protocols.request import Finish
from protocols.sampling import SamplingParams
from runtime.blackbox import BlackBox

SAMPLING = SamplingParams()


class Watched:
    """A scheduler's instruments, and what they show."""

    def __init__(self, box: BlackBox | None = None) -> None:
        self.box = box or BlackBox.private()
        self.instruments = Instruments(self.box)
        self._steps = 0

    def come(self, rid: int, adapter: int) -> None:
        self.instruments.heard(Submit(rid, 0, 0, b"", SAMPLING, adapter=adapter))

    def launch(self, opens: dict[int, int], closes: tuple[int, ...] = (), epoch: int = 1) -> None:
        """A step that opens slots for choices."""
        opened = tuple(SlotOpen(slot, rid, SAMPLING, 0, 1, 0) for slot, rid in opens.items())
        self.instruments.launched(Plan(epoch, self._steps, closes=closes, opens=opened))
        self._steps += 1

    @property
    def shown(self) -> tuple[list[int], list[int]]:
        """Adapters of those that run, and of those that wait."""
        return self.box.named(Named.RUNNING), self.box.named(Named.WAITING)


def test_adapters_are_shown_where_their_requests_are() -> None:
    watched = Watched()
    for rid, adapter in enumerate((0, 5, 5, 3)):
        watched.come(rid, adapter)
    assert watched.shown == ([], [3, 5])
    watched.launch({0: 0, 1: 1})
    assert watched.shown == ([5], [3, 5])
    watched.launch({2: 2, 3: 3})
    assert watched.shown == ([3, 5], [])
    watched.launch({}, closes=(3,))
    assert watched.shown == ([5], [3]), "retracted"
    watched.instruments.finished([TokenRow(1, 0, (9,), Finish.STOP)])
    assert watched.shown == ([5], [3])
    watched.instruments.ended(2)
    assert watched.shown == ([], [3])
    watched.launch({}, closes=(1, 2))
    watched.instruments.ended(3)
    assert watched.shown == ([], [])


def test_a_lost_executor_and_a_lost_scheduler() -> None:
    watched = Watched()
    watched.come(1, 7)
    watched.launch({0: 1})
    watched.launch({}, epoch=2)
    assert watched.shown == ([], [7]), "it waits to be prefilled again"
    assert Watched(watched.box).shown == ([], []), "a successor begins anew"


def test_there_is_an_end_to_the_list() -> None:
    watched = Watched()
    for rid in range(NAMED + 5):
        watched.come(rid, rid + 1)
    assert watched.shown == ([], list(range(1, NAMED + 1)))
