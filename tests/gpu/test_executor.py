"""The executor's semantics: deltas, epochs, overlap, poisoned rows, options."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from gpu.executor import Executor
from gpu.models import registry
from gpu.models.loading import load_model
from protocols.errors import StartError
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen
from protocols.sampling import SamplingParams
from tests.gpu.driver import GREEDY, Driver, ints
from tests.gpu.tiny import Tiny, make, prompts

PROMPTS = prompts(9, 21, 3, 30, 14)
SEEDED = SamplingParams(temperature=0.8, top_p=0.9, seed=1234, frequency_penalty=0.5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One model for all tests here."""
    return make(tmp_path_factory.mktemp("llama"), "LlamaForCausalLM")


@pytest.fixture(scope="module")
def executor(tiny: Tiny) -> Executor:
    """Its executor. Each test begins a new epoch, so all begin alike."""
    return tiny.executor()


@pytest.fixture
def driver(executor: Executor) -> Driver:
    """A driver whose first plan starts a new epoch."""
    fresh = Driver(executor, budget=11)
    executor.finish(executor.launch(Plan(epoch=-1, step=0)))
    return fresh


def test_sizes(executor: Executor) -> None:
    sizes = executor.pages, executor.page_size, executor.slots, executor.vocab_size, executor.asynchronous
    assert sizes == (96, 4, 8, 256, False)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_stream_is_the_same_however_it_is_scheduled(
    executor: Executor, sampling: SamplingParams, depth: int
) -> None:
    alone = [Driver(executor).generate([prompt], 12, sampling)[0].tokens for prompt in PROMPTS]
    together = Driver(executor, budget=5, depth=depth).generate(PROMPTS, 12, sampling)
    assert [output.tokens for output in together] == alone


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
def test_retraction_and_return_change_nothing(
    executor: Executor, driver: Driver, sampling: SamplingParams
) -> None:
    alone = [Driver(executor).generate([prompt], 12, sampling)[0].tokens for prompt in PROMPTS]
    driver.epoch += 1
    sequences = [driver.submit(prompt, 12, sampling) for prompt in PROMPTS]
    for turn in range(200):
        if not driver.turn():
            break
        if turn in (4, 9, 13) and driver.running:
            driver.retract(driver.running[turn % len(driver.running)])
    assert [sequence.output.tokens for sequence in sequences] == alone


def test_a_new_epoch_forgets_every_slot_and_the_streams_go_on(executor: Executor, driver: Driver) -> None:
    alone = [Driver(executor).generate([prompt], 12)[0].tokens for prompt in PROMPTS]
    driver.epoch += 1
    sequences = [driver.submit(prompt, 12) for prompt in PROMPTS]
    for turn in range(200):
        if not driver.turn():
            break
        if turn in (3, 10):
            driver.restart()
    assert [sequence.output.tokens for sequence in sequences] == alone


def test_a_slot_of_another_epoch_is_not_open(executor: Executor, driver: Driver) -> None:
    sequence = driver.submit(PROMPTS[0], 12)
    for _ in range(3):
        driver.turn()
    decode = ints([sequence.slot])
    executor.finish(executor.launch(Plan(driver.epoch, 99, decodes=decode)))
    with pytest.raises(AssertionError, match="not open"):
        executor.launch(Plan(driver.epoch + 1, 0, decodes=decode))


def test_more_sequences_than_slots(tiny: Tiny, driver: Driver) -> None:
    many = prompts(*range(1, 20))
    for prompt, output in zip(many, driver.generate(many, 5), strict=True):
        tiny.check(prompt, output)
    assert sorted(driver.free) == list(range(driver.executor.pages))


def test_a_plan_without_rows(executor: Executor) -> None:
    done = executor.finish(executor.launch(Plan(epoch=77, step=3, closes=(0, 1))))
    assert (done.epoch, done.step, done.slots, done.tokens) == (77, 3, b"", b"")


def test_a_plan_that_samples_nothing(executor: Executor) -> None:
    opening = SlotOpen(0, 0, GREEDY, 0, 6, 0)
    plan = Plan(
        78, 0, (), (opening,), (PageGrant(0, 0, ints([5, 6])),), (Chunk(0, 0, ints(PROMPTS[0][:6]), False),)
    )
    done = executor.finish(executor.launch(plan))
    assert (done.slots, done.tokens, done.failed) == (b"", b"", ())


def test_results_name_sampling_chunks_first_then_decodes(executor: Executor) -> None:
    opens = tuple(SlotOpen(slot, 0, GREEDY, 0, 3, 0) for slot in (4, 2, 6))
    grants = tuple(PageGrant(slot, 0, ints([slot])) for slot in (4, 2, 6))
    first = Plan(79, 0, (), opens, grants, tuple(Chunk(slot, 0, ints([1, 2]), slot == 4) for slot in (2, 4)))
    assert np.frombuffer(executor.finish(executor.launch(first)).slots, "<i4").tolist() == [4]
    chunks = (Chunk(6, 0, ints([1]), False), Chunk(2, 2, ints([3]), True))
    second = Plan(79, 1, (), (), (), chunks, ints([4]))
    assert np.frombuffer(executor.finish(executor.launch(second)).slots, "<i4").tolist() == [2, 4]


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (Plan(90, 0, decodes=ints([3])), "not open"),
        (
            Plan(91, 0, (), (SlotOpen(0, 0, GREEDY, 0, 1, 0),), (), (Chunk(0, 0, ints([1]), True),)),
            "no page",
        ),
        (
            Plan(
                92,
                0,
                (),
                (SlotOpen(0, 0, GREEDY, 0, 9, 4),),
                (PageGrant(0, 0, ints([1, 2])),),
                (Chunk(0, 5, ints([1]), True),),
            ),
            "does not continue",
        ),
        (
            Plan(
                93,
                0,
                (),
                (SlotOpen(0, 0, GREEDY, 0, 1, 0),),
                (PageGrant(0, 0, ints([1])),),
                (Chunk(0, 0, ints([256]), True),),
            ),
            "outside the vocabulary",
        ),
    ],
)
def test_impossible_plans_are_our_own_bugs(executor: Executor, plan: Plan, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        executor.launch(plan)


class TestPoison:
    """A row whose numbers are broken is reported, and nobody else notices: not beside it, not after it."""

    POISON = 200

    @pytest.fixture
    def poisoned(self, tmp_path: pathlib.Path) -> Tiny:
        """A model in which one token's embedding is not a number."""
        tiny = make(tmp_path, "LlamaForCausalLM")
        with torch.no_grad():
            tiny.reference.model.embed_tokens.weight[self.POISON] = torch.nan
        tiny.reference.save_pretrained(tiny.path)
        return tiny

    def test_neighbours_and_successors_are_untouched(self, poisoned: Tiny) -> None:
        clean = [[token % self.POISON for token in prompt] for prompt in PROMPTS]
        bad = [self.POISON if index == 7 else token for index, token in enumerate(clean[1])]
        driver = Driver(poisoned.executor(pages=40, max_running=4), budget=16, depth=2)
        outputs = driver.generate([clean[0], bad, clean[3], bad, *clean], 8)
        for prompt, output in zip([clean[0], bad, clean[3], bad, *clean], outputs, strict=True):
            if prompt is bad:
                assert "not numbers" in output.failure
                assert output.tokens == []
            else:
                poisoned.check(prompt, output)


class TestOptions:
    """What config and config.json may say."""

    def load(self, tiny: Tiny, **options: Any) -> Executor:
        return tiny.executor(**options)

    @pytest.mark.parametrize("dtype", ["bfloat16", "bf16"])
    def test_bfloat16_is_close_to_float32(self, tiny: Tiny, dtype: str) -> None:
        outputs = Driver(tiny.executor(dtype=dtype)).generate(PROMPTS, 6)
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            rows = tiny.logits([*prompt, *output.tokens[:-1]])[len(prompt) - 1 :].log_softmax(-1)
            for token, logprob, row in zip(output.tokens, output.logprobs, rows, strict=True):
                assert row.max() - row[token] < 0.5
                assert abs(logprob.chosen - row[token]) < 0.5

    def test_auto_takes_the_dtype_of_the_checkpoint(
        self, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cpu = torch.device("cpu")
        assert load_model(tiny.config(dtype="auto"), cpu, print)[1] == torch.float32
        half = make(tiny.path / "half", "LlamaForCausalLM", dtype="bfloat16")
        half.reference.bfloat16().save_pretrained(half.path)
        monkeypatch.setattr("gpu.device._multiplies_bfloat16", lambda: True)
        assert load_model(half.config(dtype="auto"), cpu, print)[1] == torch.bfloat16
        monkeypatch.setattr("gpu.device._multiplies_bfloat16", lambda: False)
        assert load_model(half.config(dtype="auto"), cpu, print)[1] == torch.float32

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"dtype": "int3"}, "unknown dtype"),
            ({"device": "abacus"}, "unknown device"),
            ({"device": "cuda:x"}, "unknown device"),
            ({"device": "cuda:99"}, "is not there"),
            ({"pages": 0, "kv_memory": 1000}, "less than the context"),
        ],
    )
    def test_bad_options(self, tiny: Tiny, options: dict[str, Any], complaint: str) -> None:
        with pytest.raises(StartError, match=complaint):
            tiny.executor(**options)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"architectures": ["FancyForCausalLM"]}, "unsupported architecture FancyForCausalLM"),
            ({"architectures": ["BartForConditionalGeneration"]}, "unsupported architecture"),
            ({"quantization_config": {"bits": 4}}, "quantised"),
            ({"hidden_act": "snake"}, "hidden_act 'snake'"),
            ({"num_key_value_heads": 3}, "do not divide"),
            ({"hidden_size": "wide"}, "hidden_size must be a positive integer"),
            ({"hidden_size": 32}, "has the shape"),
            ({"num_hidden_layers": 1}, "which the model of config.json does not have"),
            ({"num_hidden_layers": 3}, "lack 'model.layers.2"),
            ({"tie_word_embeddings": True, "mlp_bias": True}, "lack"),
            ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "RoPE variant 'spiral'"),
            ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "'factor' must be a positive"),
            ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "for each layer type"),
        ],
    )
    def test_configs_that_cannot_be_served(
        self, tiny: Tiny, tmp_path: pathlib.Path, change: dict[str, Any], complaint: str
    ) -> None:
        settings = json.loads((tiny.path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        (tmp_path / "model.safetensors").symlink_to(tiny.path / "model.safetensors")
        with pytest.raises(StartError, match=complaint):
            Tiny(tmp_path, None).executor()

    @pytest.mark.parametrize(
        "section",
        [
            {"rope_theta": 500.0},
            {"rope_theta": 500.0, "rope_scaling": None},
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {
                "rope_theta": 500.0,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            },
        ],
    )
    def test_rope_in_the_spelling_of_older_configs(
        self, tiny: Tiny, tmp_path: pathlib.Path, section: dict[str, Any]
    ) -> None:
        import transformers

        settings = json.loads((tiny.path / "config.json").read_text())
        del settings["rope_parameters"]
        (tmp_path / "config.json").write_text(json.dumps(settings | section))
        (tmp_path / "model.safetensors").symlink_to(tiny.path / "model.safetensors")
        reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
        assert reference.config.rope_parameters["rope_theta"] == 500.0
        old = Tiny(tmp_path, reference)
        for prompt, output in zip(PROMPTS, Driver(old.executor()).generate(PROMPTS, 6), strict=True):
            old.check(prompt, output)

    def test_frequencies_stored_in_old_checkpoints_are_ignored(
        self, tiny: Tiny, tmp_path: pathlib.Path
    ) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(tiny.path / "model.safetensors")
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((tiny.path / "config.json").read_text())
        assert isinstance(Tiny(tmp_path, None).executor(), Executor)


def test_refusing_an_architecture_needs_neither_torch_nor_transformers() -> None:
    import subprocess
    import sys

    program = (
        "import sys\n"
        "from gpu.models.registry import check_architecture, known_to_transformers\n"
        "assert len(known_to_transformers()) > 100\n"
        "try: check_architecture('NopeForCausalLM')\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[:2] == ["StartError", "[]"]
    assert "GPTNeoXForCausalLM" in registry.known_to_transformers()


def test_loading_a_model_imports_no_compiler() -> None:
    """It takes longer to import than all the rest together."""
    import subprocess
    import sys

    program = (
        "import sys\n"
        "from gpu.loading import load_executor\n"
        "from protocols.config import Config, read_model_card\n"
        "from tools.actorctl.serve import DEMO_MODEL\n"
        "load_executor(Config(read_model_card(DEMO_MODEL), name='demo', pages=64), lambda words: None)\n"
        "sys.exit(', '.join({'torch._dynamo', 'sympy', 'transformers'} & sys.modules.keys()) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
