"""`python -m tools.bench speculate`: what guessing from the text gives, and what it costs where it does not.

The scheduler's core and an executor in one process, without rings and sockets: the same requests with and
without `--speculate ngram`, interleaved. Three texts: code that is written out again with the demo model, its
ordinary answers (little to guess: what speculation costs), and a random Llama of 15 million weights, which
soon repeats itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import click
import msgspec
import numpy as np

from actors.scheduler.commands import Emit, Launch
from actors.scheduler.core import Core
from actors.scheduler.speculation import Speculation
from actors.tokenizer.codec import load_codec
from protocols.config import Config, Speculate, read_model_card
from protocols.messages import SchedulerMail, Submit
from protocols.plan import ExecutorReady
from protocols.sampling import SamplingParams
from tools.actorctl.serve import DEMO_MODEL
from tools.bench.offline import load_executor
from tools.bench.statistics import number, spread

Output = dict[int, list[int]]


@dataclasses.dataclass(frozen=True)
class Text:
    """A kind of prompts, and the model that answers them."""

    name: str
    model: pathlib.Path
    prompts: tuple[bytes, ...]
    temperature: float = 0.0


@dataclasses.dataclass(frozen=True)
class Figure:
    """One run. guessed, right: tokens; steps: plans that ran."""

    rate: float
    steps: int
    guessed: int
    right: int
    output: Output


class Engine:
    """Core and executor, plan by plan."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._executor = load_executor(config)
        self._epoch = 0

    def run(self, text: Text, crowd: int, tokens: int) -> Figure:
        """Answer `crowd` prompts of `text` together, with `tokens` tokens each."""
        self._epoch += 1 << 32
        config, executor = self._config, self._executor
        core = Core(depth=config.depth, speculation=Speculation.of(config), epoch=self._epoch)
        sizes = (executor.pages, executor.page_size, executor.slots, executor.vocab_size)
        mail: deque[SchedulerMail] = deque([ExecutorReady(1, *sizes)])
        for rid in range(crowd):
            sampling = SamplingParams(temperature=text.temperature, seed=rid, max_tokens=tokens)
            mail.append(Submit(rid, 0, 0, text.prompts[rid % len(text.prompts)], sampling))
        output: Output = {rid: [] for rid in range(crowd)}
        guessed = right = steps = 0
        plans = _turn(core, mail, output)
        started = time.perf_counter()
        while plans:
            done = executor.finish(executor.launch(plans.popleft()))
            guessed, right, steps = guessed + done.drafted, right + done.accepted, steps + 1
            plans += _turn(core, deque([done]), output)
        seconds = time.perf_counter() - started
        return Figure(sum(map(len, output.values())) / seconds, steps, guessed, right, output)


def _turn(core: Core, mail: Sequence[SchedulerMail], output: Output) -> deque[Any]:
    plans: deque[Any] = deque()
    for command in core.turn(mail):
        match command:
            case Launch(plan):
                plans.append(plan)
            case Emit(_, rows):
                for row in rows:
                    output[row.rid] += row.tokens
            case _:
                pass
    return plans


def _texts(folder: pathlib.Path) -> list[Text]:
    codec = load_codec(DEMO_MODEL)

    def ids(text: str) -> bytes:
        return codec.encode(text, add_special=False).astype("<i4").tobytes()

    functions = [inspect.getsource(member) for member in (Engine.run, _texts, _turn, _llama)]
    edits = tuple(ids(f"{code}\n# The same again:\n{code[: len(code) // 4]}") for code in functions)
    chats = tuple(
        ids(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        for question in ("Tell me a story.", "What is 12 + 30?", "Tell me about the moon.", "Who are you?")
    )
    rng = np.random.default_rng(0)
    noise = tuple(rng.integers(0, 4096, 64).astype("<i4").tobytes() for _ in range(4))
    llama = _llama(folder)
    return [
        Text("code again, greedy", DEMO_MODEL, edits),
        Text("code again, temperature 0.8", DEMO_MODEL, edits, 0.8),
        Text("answers, greedy", DEMO_MODEL, chats),
        Text("answers, temperature 0.8", DEMO_MODEL, chats, 0.8),
        Text("random Llama, greedy", llama, noise),
    ]


def _llama(folder: pathlib.Path) -> pathlib.Path:
    """A random model of 15 million weights on disk."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=7,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


@click.command()
@click.option(
    "--crowd", "crowds", multiple=True, default=(1, 4, 16), show_default=True, help="Requests at once."
)
@click.option("--output", default=128, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--speculate-tokens", default=6, show_default=True)
@click.option("--speculate-rows", default=24, show_default=True)
def speculate(
    crowds: Sequence[int],
    output: int,
    repeats: int,
    dtype: str,
    speculate_tokens: int,
    speculate_rows: int,
) -> None:
    """Tokens a second with and without speculation, and how many guesses were right."""

    def engines(model: pathlib.Path) -> list[Engine]:
        plain = Config(read_model_card(model), dtype=dtype, max_running=max(crowds))
        guessing = msgspec.structs.replace(
            plain,
            speculate=Speculate.NGRAM,
            speculate_tokens=speculate_tokens,
            speculate_rows=speculate_rows,
        )
        return [Engine(plain), Engine(guessing)]

    click.echo(
        "| text | at once | tok/s without | with | ratio | steps | guesses right | answers that differ |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        known: dict[pathlib.Path, list[Engine]] = {}
        for text in _texts(pathlib.Path(folder)):
            if text.model not in known:
                known[text.model] = engines(text.model)
            for crowd in crowds:
                click.echo(_line(text, crowd, known[text.model], output, repeats))


def _line(text: Text, crowd: int, engines: Sequence[Engine], tokens: int, repeats: int) -> str:
    rounds = [[engine.run(text, crowd, tokens) for engine in engines] for _ in range(repeats + 1)][1:]
    plain, guessing = ([round_[i] for round_ in rounds] for i in (0, 1))
    ratios = spread([with_.rate / without.rate for without, with_ in rounds])
    one, other = plain[0], guessing[0]
    differing = sum(one.output[rid] != other.output[rid] for rid in one.output)
    share = f"{100 * other.right / other.guessed:.0f} % of {other.guessed:,}" if other.guessed else "none"
    return (
        f"| {text.name} | {crowd} | {number(spread([f.rate for f in plain]).median)}"
        f" | {number(spread([f.rate for f in guessing]).median)} | {ratios}"
        f" | {one.steps:,} → {other.steps:,} | {share} | {differing} |"
    )
