"""The core, situation by situation; `tests/sim` mixes them at random."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from actors import aborts
from actors.scheduler.commands import Emit
from actors.scheduler.core import Core
from protocols.config import Policy
from protocols.errors import computation_failed
from protocols.messages import Abort, StopHere, Submit
from protocols.oracle import continuation
from protocols.plan import ExecutorReady, Logprobs, Plan, StepDone
from protocols.request import Finish
from protocols.sampling import SamplingParams
from tests.sim.world import VOCAB, World, tokens_of


def rows(plan: Plan) -> int:
    """Rows of a plan that sample."""
    return len(plan.decodes) // 4 + sum(chunk.sample for chunk in plan.chunks)


def prompt(length: int, first: int = 0) -> bytes:
    return tokens_of(*range(first, first + length))


def test_nothing_is_planned_before_the_first_executor() -> None:
    world = World(ready=False)
    world.submit(1, prompt(5))
    assert not world.plans
    world.restart()
    world.drain()
    world.verify()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_max_tokens_wastes_no_row(depth: int) -> None:
    world = World(depth=depth)
    world.submit(1, prompt(5), max_tokens=7)
    world.drain()
    world.verify()
    assert sum(rows(plan) for plan in world.plans) == 7


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_stop_token_wastes_one_row_for_each_further_plan_in_the_air(depth: int) -> None:
    sampling = SamplingParams(seed=1, max_tokens=50, temperature=1.0)
    tokens, _ = continuation(prompt(5), sampling, 0, VOCAB)
    stop = next(token for token in tokens if tokens.index(token) >= 4)
    world = World(depth=depth)
    world.submit(1, prompt(5), max_tokens=50, stops=(stop,))
    world.drain()
    world.verify()
    assert world.finish[1] is Finish.STOP and world.output[1][-1] == stop
    assert sum(rows(plan) for plan in world.plans) == len(world.output[1]) + depth - 1


def test_overlap_launches_the_next_step_before_the_tokens_come() -> None:
    world = World(depth=2)
    world.submit(1, prompt(5))
    assert len(world.air) == 2
    assert world.air[0].chunks[0].sample and len(world.air[1].decodes) == 4


def test_decodes_come_before_chunks_and_the_budget_holds() -> None:
    world = World(depth=1, chunk_size=8, pages=64)
    world.submit(1, prompt(4), max_tokens=40)
    world.step()
    world.submit(2, prompt(30, first=10), max_tokens=4)
    world.step()
    plan = world.plans[-1]
    assert len(plan.decodes) == 4
    assert [len(chunk.tokens) // 4 for chunk in plan.chunks] == [7]
    world.drain()
    world.verify()


def test_prefill_goes_on_however_many_decode() -> None:
    world = World(depth=1, chunk_size=6, page_size=2, slots=20, pages=200)
    for rid in range(10):
        world.submit(rid, prompt(3, first=rid), max_tokens=12)
    world.drain()
    world.verify()


def test_a_full_hit_computes_the_last_token_again() -> None:
    world = World(page_size=4)
    world.submit(1, prompt(8), max_tokens=3)
    world.drain()
    world.submit(2, prompt(8), max_tokens=3)
    assert world.plans[-2].opens[0].cached == 4
    world.drain()
    world.verify()
    assert world.cached[2] == 4


def test_the_cache_holds_the_computed_tokens_and_no_more() -> None:
    """4 prompt + 5 output tokens at depth 1: the last one was never run, so 8 tokens are cached."""
    world = World(page_size=2, depth=1)
    world.submit(1, prompt(4), max_tokens=5)
    world.drain()
    assert world.load is not None and world.load.pages_cached == 4
    followup = prompt(4) + tokens_of(*world.output[1], 1, 1)
    world.submit(2, followup, max_tokens=1)
    assert world.plans[-1].opens[0].cached == 8
    world.drain()
    world.verify()


@pytest.mark.parametrize(("depth", "spare"), [(1, 1), (2, 0), (4, 0)])
def test_a_wasted_row_computes_the_stop_token_too(depth: int, spare: int) -> None:
    """At depth 1 the stop token was never run; at depth 2 and more the wasted row ran it."""
    tokens, _ = continuation(prompt(4), SamplingParams(seed=1, max_tokens=20), 0, VOCAB)
    count = next(
        index + 1 for index, token in enumerate(tokens) if index % 2 and tokens.index(token) == index
    )
    world = World(page_size=2, depth=depth)
    world.submit(1, prompt(4), max_tokens=20, stops=(tokens[count - 1],))
    world.drain()
    world.verify()
    assert world.load is not None and world.load.pages_cached == (4 + count) // 2 - spare


def test_without_radix_nothing_is_shared_or_kept() -> None:
    world = World(radix=False)
    for rid in range(3):
        world.submit(rid, prompt(9), choice=rid)
    world.drain()
    world.verify()
    assert world.load is not None and world.load.pages_cached == 0
    assert world.cached == {}


def test_choices_of_one_request_share_its_prefill() -> None:
    world = World(page_size=4, chunk_size=8, pages=64)
    for rid in range(4):
        world.submit(rid, prompt(21), choice=rid)
    world.drain()
    world.verify()
    prefilled = sum(len(chunk.tokens) // 4 for plan in world.plans for chunk in plan.chunks)
    assert prefilled == 21 + 3 * 1
    assert [world.cached.get(rid, 0) for rid in range(4)] == [0, 20, 20, 20]


def test_who_waits_for_a_prefix_does_not_hold_up_others() -> None:
    world = World(depth=1, page_size=4, chunk_size=40, slots=4, pages=64)
    world.turn(
        *(world.submit(rid, prompt(20), choice=rid, deliver=False) for rid in (1, 2)),
        world.submit(3, prompt(6, first=30), deliver=False),
    )
    assert [opened.rid for opened in world.plans[0].opens] == [1, 3]
    world.drain()
    world.verify()


def test_tenants_do_not_share() -> None:
    world = World(page_size=4)
    world.submit(1, prompt(9), salt="one")
    world.drain()
    world.submit(2, prompt(9), salt="two")
    world.drain()
    world.verify()
    assert 2 not in world.cached


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_when_pages_run_out_the_youngest_output_gives_way(depth: int) -> None:
    world = World(depth=depth, pages=29, page_size=2, chunk_size=64, slots=4, radix=False)
    mail = [
        world.submit(rid, prompt(length, first=rid), max_tokens=20, deliver=False)
        for rid, length in ((1, 4), (2, 6), (3, 4))
    ]
    world.turn(*mail)
    world.drain()
    world.verify()
    assert world.load is not None and world.load.preemptions > 0
    reopened = [opened.rid for plan in world.plans for opened in plan.opens][3:]
    assert reopened[0] == 2, "equal outputs: the longest input goes first"


def test_a_retracted_sequence_comes_back_with_its_tokens() -> None:
    world = World(depth=1, pages=14, page_size=2, chunk_size=64, slots=4, radix=False)
    for rid in (1, 2):
        world.submit(rid, prompt(4, first=rid), max_tokens=14, penalty=1.2)
    world.drain()
    world.verify()
    again = [chunk for plan in world.plans for chunk in plan.chunks][2:]
    assert again and len(again[0].tokens) // 4 > 4 and again[0].start == 0


def test_a_prompt_beyond_the_pool_gets_a_sentence() -> None:
    world = World(pages=4, page_size=2)
    world.submit(1, prompt(8))
    world.submit(2, prompt(7))
    world.drain()
    world.verify()
    assert world.finish[1] is Finish.ERROR and "holds 8 tokens" in world.errors[1]
    assert world.finish[2] is Finish.LENGTH and len(world.output[2]) == 2


def test_an_over_long_prompt_that_came_before_the_executor_is_refused_with_it() -> None:
    world = World(pages=4, page_size=2, ready=False)
    world.submit(1, prompt(9))
    assert 1 not in world.finish
    world.restart()
    assert world.finish[1] is Finish.ERROR


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_an_output_ends_with_length_where_the_pool_ends(depth: int) -> None:
    world = World(depth=depth, pages=5, page_size=2)
    world.submit(1, prompt(4), max_tokens=100)
    world.drain()
    world.verify()
    assert (world.finish[1], len(world.output[1])) == (Finish.LENGTH, 7)


def test_pages_and_slot_come_back_when_the_last_flight_has_landed() -> None:
    world = World(depth=2)
    world.submit(1, prompt(5), max_tokens=20)
    world.step()
    world.abort(1)
    assert world.load is not None
    assert world.load.running == 1 and world.load.tokens_held == 0
    world.step()
    assert world.load.running == 1
    world.step()
    assert world.load.running == 0 and world.load.pages_owned == 0
    world.verify()


def test_a_slot_is_closed_before_it_is_opened_again() -> None:
    world = World(depth=1, slots=1)
    world.submit(1, prompt(3), max_tokens=2)
    world.submit(2, prompt(3, first=9), max_tokens=2)
    world.drain()
    world.verify()
    reuse = next(plan for plan in world.plans if plan.opens and plan.opens[0].rid == 2)
    assert reuse.closes == (0,)


def test_an_abort_that_overtakes_its_submit_counts() -> None:
    world = World()
    submit = world.submit(1, prompt(3), deliver=False)
    world.abort(1)
    world.turn(submit)
    assert not world.plans
    assert world.load is not None and world.load.tokens_held == 0


def test_aborts_of_strangers_are_forgotten_some_day() -> None:
    world = World()
    for rid in range(1000, 1000 + 2 * aborts.REMEMBERED):
        world.core.turn([Abort(rid)])
    assert len(world.core._requests._aborted) == aborts.REMEMBERED


def test_stop_here_ends_a_choice_without_another_token() -> None:
    world = World(depth=2)
    world.submit(1, prompt(5), max_tokens=20)
    for _ in range(4):
        world.step()
    before = list(world.output[1])
    world.stop_here(1)
    world.drain()
    assert world.output[1] == before
    world.verify()


@pytest.mark.parametrize("end", [Abort(1), StopHere(1, 1)])
def test_tokens_that_come_together_with_the_end_are_committed_before_it(end: Abort | StopHere) -> None:
    world = World(depth=2)
    world.submit(1, prompt(5), max_tokens=20)
    done = [world.executor.run(world.air.popleft()) for _ in range(2)]
    world.turn(*done, end)
    assert len(world.output[1]) == 2
    assert world.finish[1] is (Finish.ABORT if isinstance(end, Abort) else Finish.STOP)
    world.drain()
    world.verify()


def test_what_another_epoch_computed_is_ignored() -> None:
    world = World(depth=2)
    world.submit(1, prompt(5))
    late = world.executor.run(world.air[0])
    world.restart()
    world.turn(late)
    assert world.output[1] == []
    world.drain()
    world.verify()


def test_news_of_the_same_executor_changes_nothing() -> None:
    world = World(depth=2)
    world.submit(1, prompt(5))
    world.turn(ExecutorReady(world.incarnation, *world.sizes, VOCAB))
    assert len(world.plans) == 2
    world.drain()
    world.verify()


def test_a_new_executor_begins_with_step_0_of_a_new_epoch() -> None:
    world = World()
    world.submit(1, prompt(5))
    world.step()
    first = world.plans[0].epoch
    world.restart()
    assert (world.air[0].epoch, world.air[0].step) == (first + 1, 0)
    assert world.air[0].opens[0].rid == 1


def test_a_smaller_executor_ends_what_no_longer_fits() -> None:
    world = World(pages=32, page_size=2)
    world.submit(1, prompt(5), max_tokens=30)
    for _ in range(10):
        world.step()
    known = 5 + len(world.output[1])
    world.sizes = ((known - 2) // 2, 2, 8)
    world.restart()
    assert world.finish[1] is Finish.LENGTH


def test_a_request_that_kills_executors_ends_alone_and_the_others_go_on() -> None:
    world = World(depth=2, pages=64, chunk_size=64)
    for rid in (1, 2, 3):
        world.submit(rid, prompt(4, first=rid), max_tokens=10)
    deaths = 0
    while world.air:
        named = {opened.rid for plan in world.air for opened in plan.opens}
        if 2 in named:
            deaths += 1
            world.restart()
        else:
            world.step()
    assert deaths == 3
    assert world.finish[2] is Finish.ERROR and "engine died 3 times" in world.errors[2]
    world.verify()
    assert [world.finish[rid] for rid in (1, 3)] == [Finish.LENGTH] * 2


def test_nobody_is_suspected_when_executors_are_killed_from_outside() -> None:
    world = World(depth=2, pages=64, chunk_size=64)
    world.submit(1, prompt(4), max_tokens=10)
    world.submit(2, prompt(4, first=20), max_tokens=10)
    for _ in range(5):
        world.restart(from_outside=True)
        assert len(world.air[0].opens) == 2
    world.restart()
    world.drain()
    world.verify()
    assert [world.finish[rid] for rid in (1, 2)] == [Finish.LENGTH] * 2


def test_suspects_run_alone_one_after_another_until_their_first_tokens() -> None:
    """While one is tried, the others keep what they have and pause; then all go on together."""
    world = World(depth=2, pages=64, chunk_size=64)
    lengths = {1: 4, 2: 4, 3: 4, 4: 40}
    world.turn(*(world.submit(rid, prompt(lengths[rid], first=rid), deliver=False) for rid in lengths))
    world.restart()
    world.restart()
    tried = []
    while len(tried) < 4:
        assert len(world.air) == 1
        (opened,) = world.air[0].opens
        assert len(world.air[0].chunks) == 1 and not world.air[0].decodes
        tried.append(opened.rid)
        world.step()
    assert tried == [1, 2, 3, 4]
    assert len(world.air) == 2 and len(world.air[0].decodes) // 4 == 4
    world.drain()
    world.verify()


def test_a_suspect_that_goes_away_lets_the_others_go_on() -> None:
    world = World(depth=2, pages=64, chunk_size=8)
    world.submit(1, prompt(30), max_tokens=10)
    world.submit(2, prompt(4, first=40), max_tokens=10)
    world.restart()
    world.restart()
    world.submit(3, prompt(4, first=45), max_tokens=10)
    world.step()
    world.abort(1)
    world.drain()
    world.verify()


def test_a_suspect_for_which_there_is_no_room_waits_and_the_others_go_on() -> None:
    world = World(depth=2, pages=12, page_size=2, chunk_size=64, radix=False)
    world.submit(1, prompt(10), max_tokens=6)
    world.restart()
    world.submit(2, prompt(10, first=20), max_tokens=6)
    world.restart()
    world.drain()
    world.verify()


def test_progress_between_deaths_clears_a_request() -> None:
    world = World(depth=1, pages=64, chunk_size=64)
    world.submit(1, prompt(4), max_tokens=10)
    for _ in range(6):
        world.step()
        world.restart()
    world.drain()
    world.verify()
    assert world.finish[1] is Finish.LENGTH


def test_a_failed_row_ends_its_request_and_nobody_elses() -> None:
    world = World(depth=2, pages=64, page_size=2)
    world.submit(1, prompt(6), max_tokens=10)
    world.submit(2, prompt(6, first=20), max_tokens=10)
    done = world.executor.run(world.air.popleft())
    slot = int(np.frombuffer(done.slots, "<i4")[0])
    tokens = np.frombuffer(done.tokens, "<i4").copy()
    tokens[0] = -1
    failed = ((slot, computation_failed("the logits are not finite")),)
    world.turn(msgspec.structs.replace(done, tokens=tokens.tobytes(), failed=failed))
    assert world.finish[1] is Finish.ERROR and world.errors[1] == "the logits are not finite"
    world.drain()
    assert world.finish[2] is Finish.LENGTH
    world.submit(3, prompt(6), max_tokens=2)
    assert world.plans[-2].opens[0].cached == 0, "what was computed badly must not be cached"


def test_logprobs_go_to_the_row_of_their_slot() -> None:
    core = Core(depth=1, chunk_size=64)
    sampling = SamplingParams(seed=1, max_tokens=4)
    mail = [Submit(rid, 0, 0, prompt(3, first=rid), sampling) for rid in (1, 2)]
    core.turn([ExecutorReady(1, 64, 4, 8, VOCAB), *mail])
    slots, tokens = np.array([1, 0], "<i4").tobytes(), np.array([8, 9], "<i4").tobytes()
    value = Logprobs(-0.5, (8,), (-0.5,))
    (emit,) = [
        c
        for c in core.turn([StepDone(core.epoch, 0, slots, tokens, 5, ((0, value),))])
        if isinstance(c, Emit)
    ]
    assert {row.rid: (row.tokens, row.logprobs) for row in emit.rows} == {2: ((8,), (value,)), 1: ((9,), ())}


def test_one_message_for_each_tokenizer_and_turn() -> None:
    core = Core(depth=1, chunk_size=64)
    sampling = SamplingParams(seed=1, max_tokens=4)
    mail = [Submit(rid, rid % 2, 0, prompt(3, first=rid), sampling) for rid in range(6)]
    core.turn([ExecutorReady(1, 64, 4, 8, VOCAB), *mail])
    slots = np.arange(6, dtype="<i4")
    done = StepDone(core.epoch, 0, slots.tobytes(), np.full(6, 9, "<i4").tobytes(), 5)
    emits = [command for command in core.turn([done]) if isinstance(command, Emit)]
    assert sorted((emit.origin, len(emit.rows)) for emit in emits) == [(0, 3), (1, 3)]


def test_the_load_counts_tokens_and_the_last_dispatch() -> None:
    world = World(ready=False)
    submit = world.submit(1, prompt(5), deliver=False)
    world.turn(msgspec.structs.replace(submit, dispatch=7))
    assert world.load is not None
    assert (world.load.tokens_held, world.load.last_dispatch, world.load.waiting) == (5, 7, 1)
    world.restart()
    world.step()
    assert world.load.tokens_held == 6


@pytest.mark.parametrize(
    ("policy", "order"),
    [(Policy.FCFS, [1, 2, 3, 4]), (Policy.PRIORITY, [2, 4, 1, 3]), (Policy.LPM, [3, 1, 2, 4])],
)
def test_policies_order_the_queue(policy: Policy, order: list[int]) -> None:
    world = World(policy=policy, slots=1, pages=64, page_size=2)
    world.submit(0, prompt(6, first=30), max_tokens=2)
    world.drain()
    mail = [
        world.submit(rid, prompt(6, first=30 if rid == 3 else 6 * rid), priority=priority, deliver=False)
        for rid, priority in ((1, 1), (2, -1), (3, 1), (4, 0))
    ]
    world.turn(*mail)
    world.drain()
    world.verify()
    assert [opened.rid for plan in world.plans for opened in plan.opens][1:] == order
