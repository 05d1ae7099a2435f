"""What a trainer does wrong: it is told so, the old weights serve on with their cache, and its next right
update is taken."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import datetime
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d as c10d

from protocols.errors import VerbError
from runtime.failpoints import VARIABLE
from tests.faults.stage import until
from tests.serving import Company, serving
from tests.streams import Generation, ask, paused_amid

INPUT_NORM = "model.layers.0.input_layernorm.weight"
PROMPT = list(range(40, 72))
NORM = "model.norm.weight"
PATIENCE = datetime.timedelta(seconds=60)
SOON = 60.0
"""Seconds that a tensor may take which is on its way."""


@dataclasses.dataclass
class Trainer:
    """Rank 0 of a group with one executor, in this process."""

    company: Company
    name: str
    pool: concurrent.futures.Executor
    group: dist.ProcessGroup | None = None

    def meet(self) -> None:
        """Make the group, anew where there was one."""
        self.part()
        store = TCPStore("127.0.0.1", 0, 2, True, PATIENCE, wait_for_workers=False, multi_tenant=True)
        joined = self.asked("weights.join", address="127.0.0.1", port=store.port, world_size=2)
        self.group, _ = c10d._new_process_group_helper(
            2, 0, [], "gloo", PrefixStore(self.name, store), group_name=self.name, timeout=PATIENCE
        )
        c10d._world.pg_group_ranks[self.group] = {0: 0, 1: 1}
        joined.result()

    def part(self) -> None:
        """Close the connections, as the system does for one that is gone."""
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None

    def asked(self, verb: str, **fields: Any) -> concurrent.futures.Future[dict[str, Any]]:
        """A verb about the group, of which the answer comes later."""
        return self.pool.submit(ask, self.company, verb, group=self.name, **fields)

    def announce(
        self, tensors: dict[str, torch.Tensor], **more: Any
    ) -> concurrent.futures.Future[dict[str, Any]]:
        """Ask the company to take tensors."""
        fields = {
            "names": list(tensors),
            "dtypes": [str(each.dtype).removeprefix("torch.") for each in tensors.values()],
            "shapes": [list(each.shape) for each in tensors.values()],
            "receive_timeout": SOON,
        }
        return self.asked("weights.receive", **{**fields, **more})

    def push(self, tensors: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
        """A whole update; its answer, or VerbError."""
        answer = self.announce(tensors, **more)
        for tensor in tensors.values():
            self.send(tensor)
        return answer.result()

    def send(self, tensor: torch.Tensor) -> None:
        """To the executor."""
        with contextlib.suppress(RuntimeError):
            dist.broadcast(tensor, src=0, group=self.group)


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    """The first change that its first executor makes ready kills it."""
    with serving(environment={VARIABLE: "executor.0/weights.staged=kill@1#1"}) as running:
        yield running


@pytest.fixture(scope="module")
def pool() -> Iterator[concurrent.futures.Executor]:
    with concurrent.futures.ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture(scope="module")
def trainer(company: Company, pool: concurrent.futures.Executor) -> Iterator[Trainer]:
    made = Trainer(company, "trainer", pool)
    yield made
    made.part()


def norm(value: float) -> dict[str, torch.Tensor]:
    """The smallest right update."""
    return {NORM: torch.full((256,), value)}


@contextlib.contextmanager
def nothing_changes(company: Company) -> Iterator[None]:
    """The weights, their checksum and what they answer are afterwards as before, and so is what is cached."""
    answer = Generation(company, PROMPT, 8).done().ids
    before, cached = ask(company, "weights.info", verify=True), company.actor("scheduler.0")["pages_cached"]
    standing = company.status()["standing"]
    yield
    assert ask(company, "weights.info", verify=True) == before
    assert company.status()["standing"] == standing
    assert company.actor("scheduler.0")["pages_cached"] == cached > 0
    assert Generation(company, PROMPT, 8).done().ids == answer


def taken(trainer: Trainer, value: float) -> None:
    """A right update is."""
    assert trainer.push(norm(value))["changed"] == 1
    assert ask(trainer.company, "weights.get", name=NORM, count=1)["values"] == [value]


def test_an_executor_that_dies_while_it_makes_them_ready(trainer: Trainer) -> None:
    company = trainer.company
    before = ask(company, "weights.info", verify=True)
    answer = Generation(company, PROMPT, 8).done().ids
    trainer.meet()
    with pytest.raises(VerbError, match="died"):
        trainer.push(norm(2.0))
    until(lambda: company.status()["state"] == "ready", "it is back", 90)
    assert company.actor("executor.0")["incarnation"] == 2
    assert ask(company, "weights.info", verify=True) == before
    assert Generation(company, PROMPT, 8).done().ids == answer
    trainer.meet()
    taken(trainer, 1.5)


WRONG: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "name": ({"model.nobody.weight": torch.ones(4)}, "hold 'model.nobody.weight'"),
    "shape": ({NORM: torch.ones(255)}, r"has the shape \[255\], but config.json asks for \[256\]"),
    "dtype": ({NORM: torch.ones(256, dtype=torch.int8)}, "int8: quantised weights are unsupported"),
    "NaN": (norm(float("nan")), f"'{NORM}' holds numbers that are infinite or NaN"),
    "infinity": (
        {**norm(1.0), INPUT_NORM: torch.full((256,), -torch.inf)},
        "NaN",
    ),
}
"""What is sent as it was announced, and does not fit."""


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit(trainer: Trainer, case: str) -> None:
    tensors, reason = WRONG[case]
    with nothing_changes(trainer.company), pytest.raises(VerbError, match=reason):
        trainer.push(tensors)
    taken(trainer, 1.25)


def test_numbers_that_are_not_finite_can_be_allowed(trainer: Trainer, tmp_path: pathlib.Path) -> None:
    company, path = trainer.company, tmp_path / "x.safetensors"
    save_file(norm(float("inf")), path)
    for verb, field in (("weights.update", "source"), ("weights.tensors", "path")):
        with nothing_changes(company), pytest.raises(VerbError, match="infinite or NaN"):
            ask(company, verb, **{field: str(path)})
        ask(company, verb, **{field: str(path)}, allow_nonfinite=True)
        ask(company, "weights.rollback")
    ask(company, "weights.update", source=str(path), allow_nonfinite=True)
    company.kill("executor.0")
    until(lambda: company.actor("executor.0")["incarnation"] == 3, "another", 90)
    until(lambda: company.status()["state"] == "ready", "it computes with them too", 90)
    ask(company, "weights.rollback")
    trainer.meet()
    taken(trainer, 1.0)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"names": [NORM, NORM], "dtypes": ["float32"] * 2, "shapes": [[256]] * 2}, "a name occurs twice"),
        ({"dtypes": ["float33"]}, "unknown dtype 'float33'"),
        ({"receive_timeout": 0.5}, "did not come, and the group 'trainer' is dissolved"),
    ],
    ids=["twice", "unknown dtype", "hangs"],
)
def test_after_what_is_never_sent_the_group_is_made_again(
    trainer: Trainer, wrong: dict[str, Any], reason: str
) -> None:
    with nothing_changes(trainer.company):
        with pytest.raises(VerbError, match=reason):
            trainer.announce(norm(3.0), **wrong).result()
        with pytest.raises(VerbError, match="in no group"):
            trainer.announce(norm(3.0)).result()
    trainer.meet()
    taken(trainer, 1.5)


@pytest.mark.parametrize(
    "wrong", [{"shapes": [[-1]]}, {"names": []}, {"mode": "never"}], ids=["shape", "names", "mode"]
)
def test_what_was_sent_for_a_refused_update_is_not_taken_for_the_next(
    trainer: Trainer, wrong: dict[str, Any]
) -> None:
    with nothing_changes(trainer.company):
        with pytest.raises(VerbError) as refusal:
            trainer.announce(norm(3.0), **wrong).result()
        assert refusal.value.code == "usage"
        with pytest.raises(VerbError, match="destroy the group and make it again"):
            trainer.announce(norm(1.75)).result()
    ask(trainer.company, "weights.leave", group=trainer.name)
    trainer.meet()
    taken(trainer, 1.75)


def test_half_of_the_tensors(trainer: Trainer) -> None:
    both = {**norm(3.0), INPUT_NORM: torch.ones(256)}
    with nothing_changes(trainer.company):
        answer = trainer.announce(both)
        trainer.send(both[NORM])
        trainer.part()
        with pytest.raises(VerbError, match=f"'{INPUT_NORM}' did not come"):
            answer.result()
    trainer.meet()
    taken(trainer, 1.0)


def test_two_trainers_at_once_and_the_company_serves_on(
    trainer: Trainer, pool: concurrent.futures.Executor
) -> None:
    company, second = trainer.company, Trainer(trainer.company, "second", pool)
    second.meet()
    before, said = ask(company, "weights.info"), Generation(company, PROMPT, 8).done().ids
    tensors = {**norm(1.25), INPUT_NORM: torch.ones(256)}
    answer = trainer.announce(tensors)
    trainer.send(tensors[NORM])
    for attempt in (
        lambda: second.announce(norm(2.0)).result(),
        lambda: ask(company, "weights.leave", group=trainer.name),
        lambda: ask(company, "weights.rollback"),
    ):
        with pytest.raises(VerbError, match="a change of weights is under way") as refusal:
            attempt()
        assert refusal.value.code == "conflict"
    assert Generation(company, PROMPT, 8).done().ids == said
    assert ask(company, "weights.info") == before
    trainer.send(tensors[INPUT_NORM])
    assert answer.result()["changed"] == 2
    with pytest.raises(VerbError, match="group 'second' was refused"):
        second.announce(norm(3.0)).result()
    ask(company, "weights.leave", group="second")
    second.meet()
    taken(second, 1.5)
    second.part()
    ask(company, "weights.leave", group="second")
    taken(trainer, 1.25)


def test_a_group_that_is_made_twice_is_the_first(trainer: Trainer) -> None:
    fields = {"address": "127.0.0.1", "port": 1, "world_size": 2, "timeout": 1}
    with nothing_changes(trainer.company):
        with pytest.raises(VerbError, match="'trainer' is there already: destroy it first") as twice:
            ask(trainer.company, "weights.join", group="trainer", **fields)
        with pytest.raises(VerbError, match="'nobody' did not come together"):
            ask(trainer.company, "weights.join", group="nobody", **fields)
        with pytest.raises(VerbError, match="'nope' cannot be had here: use gloo") as strange:
            ask(trainer.company, "weights.join", group="nobody", backend="nope", **fields)
    assert (twice.value.code, strange.value.code) == ("conflict", "usage")
    taken(trainer, 1.5)


def test_while_the_weights_are_released(trainer: Trainer) -> None:
    company = trainer.company
    before, answer = ask(company, "weights.info", verify=True), Generation(company, PROMPT, 8).done().ids
    ask(company, "memory.release", tags=["weights"])
    with pytest.raises(VerbError, match="the weights are released") as refusal:
        trainer.announce(norm(3.0)).result()
    assert refusal.value.code == "conflict"
    ask(company, "weights.leave", group=trainer.name)
    ask(company, "memory.restore")
    assert ask(company, "weights.info", verify=True) == before
    assert Generation(company, PROMPT, 8).done().ids == answer
    trainer.meet()
    taken(trainer, 1.25)


def test_while_it_is_paused_drained_or_without_pages(trainer: Trainer) -> None:
    company = trainer.company
    stream = paused_amid(company, "in_place")
    taken(trainer, 1.5)
    assert company.status()["standing"]["paused"] == "in_place"
    ask(company, "engine.resume")
    assert stream.done()[1] == "length"
    ask(company, "engine.drain")
    taken(trainer, 1.25)
    assert company.status()["standing"]["draining"]
    ask(company, "engine.resume")
    ask(company, "memory.release", tags=["kv_cache"])
    taken(trainer, 1.0)
    ask(company, "memory.restore")
    assert len(Generation(company, PROMPT, 8).done().ids) == 8


def test_fewer_numbers_than_announced(trainer: Trainer) -> None:
    """Gloo takes them for the whole."""
    with nothing_changes(trainer.company):
        answer = trainer.announce(norm(3.0))
        trainer.send(torch.full((128,), 3.0))
        with pytest.raises(VerbError, match="fewer numbers were sent than announced"):
            answer.result()
    trainer.meet()
    taken(trainer, 1.5)


def test_more_numbers_than_announced(trainer: Trainer) -> None:
    """Gloo ends the process that gets them."""
    company, before = trainer.company, ask(trainer.company, "weights.info", verify=True)
    said = Generation(company, PROMPT, 8).done().ids
    answer = trainer.announce(norm(3.0))
    trainer.send(torch.full((512,), 3.0))
    with pytest.raises(VerbError, match="died"):
        answer.result()
    assert ask(company, "weights.info", verify=True) == before
    assert Generation(company, PROMPT, 8).done().ids == said
    trainer.meet()
    taken(trainer, 1.5)


def test_while_the_company_sleeps(trainer: Trainer) -> None:
    company = trainer.company
    ask(company, "engine.sleep")
    with pytest.raises(VerbError, match="the weights are released: resume them first") as refusal:
        trainer.announce(norm(3.0)).result()
    assert refusal.value.code == "conflict"
    ask(company, "engine.wake")
    ask(company, "weights.leave", group=trainer.name)
    with pytest.raises(VerbError, match="there is no group 'trainer'"):
        ask(company, "weights.leave", group=trainer.name)
    trainer.meet()
    taken(trainer, 1.25)
