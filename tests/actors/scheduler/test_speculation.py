"""What a plan lets the executor guess: bounded in all, within pages and `max_tokens`, behind other rows."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from actors.scheduler.commands import Emit
from actors.scheduler.speculation import Speculation
from protocols.config import Config, ModelCard, Speculate
from protocols.plan import Logprobs, Plan
from protocols.request import Finish
from tests.sim.world import World, tokens_of

CARD = ModelCard("m", "/m", "LlamaForCausalLM", 128, 256, (1,))


def drafts(plan: Plan) -> list[int]:
    """Guesses allowed to each decode."""
    return np.frombuffer(plan.drafts, "<i4").tolist()


def crowd(world: World, count: int, **options: object) -> None:
    world.turn(
        *(
            world.submit(rid, tokens_of(rid, 1, 2, 3), deliver=False, **options)  # type: ignore[arg-type]
            for rid in range(count)
        )
    )


def test_the_options_decide_how_much_is_guessed() -> None:
    assert Speculation.of(Config(CARD)) == Speculation(0, 0)
    assert Speculation.of(Config(CARD, speculate=Speculate.NGRAM)) == Speculation(6, 24)
    chosen = Config(CARD, speculate=Speculate.NGRAM, speculate_tokens=3, speculate_rows=9)
    assert Speculation.of(chosen) == Speculation(3, 9)


def test_without_speculation_a_plan_allows_no_guess_and_remembers_nothing() -> None:
    world = World()
    crowd(world, 2, max_tokens=12)
    world.drain()
    assert not any(plan.drafts for plan in world.plans)
    assert not any(opened.history for plan in world.plans for opened in plan.opens)


@pytest.mark.parametrize(("running", "each"), [(1, 6), (3, 4), (12, 1), (13, 0)])
def test_many_sequences_share_the_rows_until_nobody_guesses(running: int, each: int) -> None:
    world = World(depth=1, pages=400, slots=16, chunk_size=64, guesses=6, guess_rows=12)
    crowd(world, running, max_tokens=40)
    world.step()
    assert drafts(world.plans[-1]) == ([each] * running if each else [])
    world.drain()
    world.verify()


def test_who_is_penalised_does_not_guess_and_leaves_the_rows_to_others() -> None:
    world = World(depth=1, pages=400, chunk_size=64, guesses=6, guess_rows=8)
    world.turn(
        world.submit(1, tokens_of(1, 2), max_tokens=40, penalty=1.2, deliver=False),
        world.submit(2, tokens_of(3, 4), max_tokens=40, deliver=False),
    )
    world.step()
    slots = np.frombuffer(world.plans[-1].decodes, "<i4").tolist()
    assert dict(zip(slots, drafts(world.plans[-1]), strict=True)) == {
        opened.slot: 0 if opened.rid == 1 else 6 for plan in world.plans for opened in plan.opens
    }
    world.drain()
    world.verify()


def test_guesses_go_no_further_than_max_tokens() -> None:
    world = World(depth=1, pages=400, guesses=6)
    world.submit(1, tokens_of(1, 2), max_tokens=4)
    world.step()
    assert drafts(world.plans[-1]) == [2]
    world.drain()
    world.verify()


def test_guesses_count_in_the_budget_and_leave_a_page_of_it_to_prefill() -> None:
    world = World(depth=1, pages=400, page_size=4, chunk_size=12, guesses=6)
    world.submit(1, tokens_of(1, 2), max_tokens=60)
    world.step()
    world.submit(2, tokens_of(*range(40)), max_tokens=4)
    world.step()
    plan = world.plans[-1]
    assert drafts(plan) == [6]
    assert [len(chunk.tokens) // 4 for chunk in plan.chunks] == [12 - 1 - 6]
    tight = World(depth=1, pages=400, page_size=4, chunk_size=7, guesses=6)
    tight.submit(1, tokens_of(1, 2), max_tokens=60)
    tight.step()
    assert drafts(tight.plans[-1]) == [2]


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("page_size", [1, 4])
def test_right_guesses_save_steps(depth: int, page_size: int) -> None:
    plain = World(depth=depth, pages=400, page_size=page_size)
    guessing = World(depth=depth, pages=400, page_size=page_size, guesses=6)
    for world in (plain, guessing):
        world.submit(1, tokens_of(1, 2, 3), max_tokens=60)
        world.drain()
        world.verify()
    assert guessing.output == plain.output
    assert len(guessing.plans) < 0.5 * len(plain.plans)
    assert guessing.load is not None
    assert 59 - guessing.load.accepted < len(guessing.plans)
    assert 0 < guessing.load.accepted < guessing.load.drafted


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_cache_holds_what_was_confirmed_and_no_guess(depth: int) -> None:
    """The next request shares the pages of the output; a wrong token's KV among them would show."""
    world = World(depth=depth, pages=64, page_size=2, chunk_size=64, guesses=6)
    world.submit(1, tokens_of(1, 2, 3), max_tokens=20)
    world.drain()
    known = tokens_of(1, 2, 3, *world.output[1])
    world.submit(2, known, max_tokens=8)
    world.drain()
    world.verify()
    assert world.cached[2] == 22


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("stop_after", [3, 9])
def test_a_stop_token_among_right_guesses_ends_the_sequence_there(depth: int, stop_after: int) -> None:
    plain = World(depth=1, pages=64)
    plain.submit(1, tokens_of(1, 2, 3), max_tokens=30)
    plain.drain()
    stop = plain.output[1][stop_after]
    length = plain.output[1].index(stop) + 1
    world = World(depth=depth, pages=64, guesses=6)
    world.submit(1, tokens_of(1, 2, 3), max_tokens=30, stops=(stop,))
    world.drain()
    world.verify()
    assert world.output[1] == plain.output[1][:length]
    assert world.finish[1] is Finish.STOP


def test_guesses_take_no_page_that_another_sequence_needs() -> None:
    """Looking ahead evicts nobody: with few pages there are as few retractions as without guesses."""
    preemptions = []
    for guesses in (0, 6):
        world = World(depth=1, pages=29, page_size=2, chunk_size=64, slots=4, radix=False, guesses=guesses)
        crowd(world, 2, max_tokens=20)
        world.drain()
        world.verify()
        assert world.load is not None
        preemptions.append(world.load.preemptions)
    assert preemptions == [0, 0]


def test_several_tokens_of_a_step_carry_each_its_logprobs() -> None:
    world = World(depth=1, pages=64, guesses=6)
    world.submit(1, tokens_of(1, 2, 3), max_tokens=30)
    world.step()
    done = world.executor.run(world.air.popleft())
    tokens = np.frombuffer(done.tokens, "<i4").tolist()
    while len(tokens) < 2:
        world.turn(done)
        done = world.executor.run(world.air.popleft())
        tokens = np.frombuffer(done.tokens, "<i4").tolist()
    reports = tuple((index, Logprobs(-float(token))) for index, token in enumerate(tokens))
    commands = world.core.turn([msgspec.structs.replace(done, logprobs=reports)])
    (row,) = [row for command in commands if isinstance(command, Emit) for row in command.rows]
    assert list(row.tokens) == tokens
    assert [each.chosen for each in row.logprobs] == [-float(token) for token in tokens]
