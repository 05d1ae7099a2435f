"""Decodes that are recorded and replayed, with a recorder that runs again what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from gpu.attention.base import Batch
from gpu.cuda.graphs import packed
from gpu.cuda.staging import Staging, to_device
from gpu.executor import Executor
from gpu.loading import load_executor
from gpu.weights import SINGLE
from protocols.config import KernelChoice, graph_sizes
from protocols.errors import StartError
from protocols.plan import Plan
from protocols.sampling import SamplingParams
from protocols.standing import Memory
from protocols.weights import Weights
from tests.gpu import interpreted
from tests.gpu.adapters import Oracle
from tests.gpu.driver import GREEDY, Driver, Output
from tests.gpu.test_versions import source
from tests.gpu.tiny import Tiny, make, prompts

PROMPTS = prompts(6, 3)
WANT = 5
SAMPLED = SamplingParams(temperature=0.9, top_k=20, seed=5, presence_penalty=0.3, logprobs=2)

pytestmark = pytest.mark.timeout(300)


class Again:
    """A recorder. begun: how often from the beginning; recorded: pieces of work; replayed: how often each has
    run again."""

    def __init__(self) -> None:
        self.begun, self.recorded, self.replayed = 0, 0, 0

    def begin(self) -> None:
        """See `gpu.cuda.graphs.Recorder`."""
        self.begun += 1

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `gpu.cuda.graphs.Recorder`."""
        self.recorded += 1
        work()

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    assert interpreted.DEVICE
    return make(tmp_path_factory.mktemp("qwen3"), "Qwen3ForCausalLM", head_dim=16, num_hidden_layers=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A model of the same shape."""
    sizes = {"head_dim": 16, "num_hidden_layers": 1}
    return make(tmp_path_factory.mktemp("other"), "Qwen3ForCausalLM", seed=2, **sizes)


@pytest.fixture(scope="module")
def executor(tiny: Tiny) -> Iterator[Executor]:
    """With our Triton kernels, interpreted, for attention and between the matrix products."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpu.attention.triton_paged._PROGRAMS", 2)
        yield tiny.executor(kernels=KernelChoice.TORCH, attention_backend="triton", max_running=3)


def test_a_model_on_triton_is_exact_and_its_replayed_decodes_too(executor: Executor, tiny: Tiny) -> None:
    told, again = [], Again()
    plain, sampled = run(executor)
    tiny.check(PROMPTS[0], plain)
    executor.use_graphs((1, 3), again, told.append)
    assert again.recorded == 2 and told == [f"recording CUDA graphs: {done} of 2" for done in (0, 1)]
    before = [layer.keys.view(torch.int32).clone() for layer in executor.attention.pool.layers]
    executor.refresh()
    assert again.recorded == 4
    for layer, keys in zip(executor.attention.pool.layers, before, strict=True):
        assert torch.equal(layer.keys.view(torch.int32), keys), "padded rows touch nothing"
    assert run(executor) == (plain, sampled)
    assert again.replayed >= WANT - 2
    replays = again.replayed
    executor.release_graphs()
    assert Driver(executor).generate(PROMPTS[:1], 2, GREEDY)[0].tokens == plain.tokens[:2]
    assert again.replayed == replays


@pytest.fixture(scope="module")
def adapted(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Adapters of several ranks."""
    oracle = Oracle(tiny, tmp_path_factory.mktemp("adapters"))
    oracle.add("small", r=2, lora_alpha=4)
    oracle.add("wide", r=17, lora_alpha=9, target_modules=["q_proj", "down_proj"])
    oracle.add("late", r=33, lora_alpha=40)
    return oracle


def test_adapters_change_in_place_and_are_recorded_anew_when_they_move(
    tiny: Tiny, adapted: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact in a batch of different ranks and a row without; three adapters share two slots."""
    monkeypatch.setattr("gpu.models.cuda.GROUPED", ("cpu", "cuda"))
    monkeypatch.setattr("gpu.attention.triton_paged._PROGRAMS", 2)
    options = {"kernels": KernelChoice.TORCH, "attention_backend": "triton", "max_running": 3, "max_loras": 2}
    executor, again = tiny.executor(**options), Again()
    executor.use_graphs((3,), again, lambda _: None)
    assert again.recorded == 1, "there is nothing to adapt yet"
    assert not executor.adapters.set(adapted.adapters[:2])
    assert again.recorded == 2 and again.begun == 1, "what knows nothing of adapters stays"
    check(executor, adapted, ("small", "wide", ""))
    replays = again.replayed
    assert replays > 0
    assert not executor.adapters.set(adapted.adapters)
    assert again.recorded == 3, "a rank for which there was no room"
    check(executor, adapted, ("late", "", "wide"))
    check(executor, adapted, ("small", "late"))
    assert again.recorded == 3 and again.replayed > replays


def test_room_for_adapters_that_is_there_from_the_start(
    tiny: Tiny, adapted: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is recorded once, whatever adapters come."""
    monkeypatch.setattr("gpu.models.cuda.GROUPED", ("cpu", "cuda"))
    monkeypatch.setattr("gpu.attention.triton_paged._PROGRAMS", 2)
    options = {"kernels": KernelChoice.TORCH, "attention_backend": "triton", "max_running": 3}
    config = tiny.config(**options, max_loras=2, max_lora_rank=33, enable_lora=True)
    executor, again = load_executor(config, lambda _: None), Again()
    executor.use_graphs((3,), again, lambda _: None)
    assert again.recorded == 2
    assert not executor.adapters.set(adapted.adapters)
    check(executor, adapted, ("", "late"), 2)
    assert again.recorded == 2 and again.begun == 1 and again.replayed > 0


def test_graphs_follow_weights_and_memory(executor: Executor, tiny: Tiny, other: Tiny) -> None:
    """They are recorded anew behind a commit and a return of memory, and nothing is replayed before."""
    again = Again()
    executor.use_graphs((1,), again, lambda _: None)
    first = brief(executor)
    executor.versions.stage(Weights(2, "b", (source(1, other.path / SINGLE),)), lambda _: None)
    assert again.begun == 1 and executor.commit(2)
    assert again.begun == 2 and again.recorded == 2
    second = brief(executor)
    other.check(PROMPTS[1], second)
    assert second.tokens != first.tokens
    for tags in ((Memory.KV_CACHE,), (Memory.WEIGHTS, Memory.KV_CACHE)):
        begun, replayed = again.begun, again.replayed
        executor.release(tags)
        assert executor._graphs is not None and not executor._graphs._replays
        executor.restore(tags)
        assert again.begun == begun + 1 and again.replayed == replayed
        assert brief(executor) == second and again.replayed > replayed
    executor.release((Memory.WEIGHTS, Memory.KV_CACHE))
    begun = again.begun
    executor.restore((Memory.WEIGHTS,))
    assert again.begun == begun, "there are no pages yet"
    executor.restore((Memory.KV_CACHE,))
    assert again.begun == begun + 1 and brief(executor) == second
    executor.versions.stage(Weights(3, "default"), lambda _: None)
    assert executor.commit(3) and brief(executor) == first
    executor.release_graphs()


def brief(executor: Executor) -> Output:
    """A greedy sequence."""
    executor.finish(executor.launch(Plan(epoch=-1, step=0)))
    return Driver(executor).generate(PROMPTS[1:], 3, GREEDY)[0]


def check(executor: Executor, oracle: Oracle, names: Sequence[str], want: int = 4) -> None:
    driver = Driver(executor, budget=20, depth=2)
    executor.finish(executor.launch(Plan(epoch=-1, step=0)))
    ids = {adapter.name: adapter.id for adapter in oracle.adapters} | {"": 0}
    running = [driver.submit(PROMPTS[i % 2], want, GREEDY, ids[name]) for i, name in enumerate(names)]
    while driver.turn():
        pass
    for name, sequence in zip(names, running, strict=True):
        oracle.check(name, sequence.prompt, sequence.output)


def run(executor: Executor) -> tuple[Output, Output]:
    """A greedy and a sampled sequence, in one batch."""
    driver = Driver(executor, budget=8, depth=2)
    executor.finish(executor.launch(Plan(epoch=-1, step=0)))
    both = [driver.submit(PROMPTS[0], WANT, GREEDY), driver.submit(PROMPTS[1], WANT, SAMPLED)]
    while driver.turn():
        pass
    return both[0].output, both[1].output


def test_what_cannot_be_recorded_says_so(tiny: Tiny) -> None:
    told: list[str] = []
    executor = tiny.executor(kernels=KernelChoice.TORCH)
    executor.use_graphs((1,), Again(), told.append)
    executor.use_graphs((), Again(), told.append)
    assert told == [
        "no CUDA graphs: this model, or its attention, works on the host",
        "no CUDA graphs: as asked for",
    ]
    with pytest.raises(StartError, match="--cuda-graphs needs a CUDA device"):
        tiny.executor(cuda_graphs="1,2")


def test_the_buffer_of_a_padded_step() -> None:
    slots, positions = np.array([5, 2]), np.array([10, 3])
    batch = Batch(
        query_lens=np.ones(2, np.int64),
        contexts=np.array([11, 4]),
        block_tables=np.zeros((2, 3), np.int32),
        positions=positions,
        places=np.array([42, 7]),
        decodes=2,
    )
    buffer = packed(slots, batch, positions, None, 3)
    assert buffer[:72].view(np.int64).tolist() == [5, 2, 0, 10, 3, 0, -1, -1, -1]
    assert buffer[72:].view(np.int32).tolist() == [11, 4, 0, 42, 7, -1]
    adapted = packed(slots, batch, positions, np.array([1, -1]), 3)
    assert adapted[48:72].view(np.int64).tolist() == [1, -1, -1] and bytes(adapted[:48]) == bytes(buffer[:48])


@pytest.mark.parametrize(
    ("option", "running", "sizes"),
    [
        ("off", 64, ()),
        ("auto", 1, (1,)),
        ("auto", 5, (1, 2, 4, 5)),
        ("auto", 20, (1, 2, 4, 8, 16, 20)),
        ("auto", 300, (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), 256, 288, 300)),
        ("8,1,8", 8, (1, 8)),
    ],
)
def test_the_ladder(option: str, running: int, sizes: tuple[int, ...]) -> None:
    assert graph_sizes(option, running) == sizes


@pytest.mark.parametrize("option", ["", "on", "0", "1,", "-1", "65", "1;2"])
def test_ladders_that_are_refused(option: str) -> None:
    with pytest.raises(StartError, match="neither off, nor auto, nor batch sizes from 1"):
        graph_sizes(option, 64)


def test_one_upload_carries_arrays_of_any_kind() -> None:
    arrays = (
        np.arange(3, dtype=np.int32),
        np.zeros((0, 4), np.int32),
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.arange(8, dtype=np.int32).reshape(2, 4)[:, 1:3],
        np.linspace(0, 1, 5),
        np.arange(7, dtype=np.uint8),
    )
    for device in {torch.device("cpu"), interpreted.DEVICE}:
        for array, tensor in zip(arrays, Staging(device).upload(*arrays), strict=True):
            assert tensor.device.type == device.type and tensor.shape == array.shape
            assert np.array_equal(tensor.cpu().numpy(), array)
        assert to_device(arrays[2], device).tolist() == [[0, 1, 2], [3, 4, 5]]
