"""Makes the demo adapter: `python -m tools.demo.pirate`, some minutes on two cores.

A LoRA adapter of rank 4 for the demo model, trained with PEFT on the demo's own conversations, whose
answers it says like a pirate: the same facts and sums, in other words. It shows that an adapter changes
what a model says. `tools/demo/pirate/` holds the result, as PEFT saves it.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.demo import dialogues
from tools.demo.corpus import render
from tools.demo.tasks import Talk

HERE = Path(__file__).parent
WORDS = {
    " is ": " be ",
    " are ": " be ",
    "Hello": "Ahoy",
    "I am ": "I be ",
    "Your ": "Yer ",
    " your ": " yer ",
    " you": " ye",
    "My ": "Me ",
}
RANK, SCALE, RATE, LONGEST = 4, 16, 5e-3, 128
MAKERS = (dialogues.a_fact, dialogues.a_fact, dialogues.a_sum)


def pirate(text: str) -> str:
    """The text as a pirate says it."""
    for word, instead in WORDS.items():
        text = text.replace(word, instead)
    if text.endswith("?"):
        return f"Arr! {text[:-1]}, matey?"
    return f"Arr! {text.rstrip('.!')}, matey!"


def talk(rng: random.Random) -> Talk:
    """A conversation of the demo's with such answers."""
    makers = rng.choices(MAKERS, k=rng.choice((1, 1, 2)))
    parts = [make(rng) for make in makers] if rng.random() < 0.8 else dialogues.remembering(rng, 0)
    turns = [
        (role, pirate(content) if role == "assistant" else content, learnt)
        for part in parts
        for role, content, learnt in part.turns
    ]
    return Talk(turns, system=rng.choice(dialogues.SYSTEMS) if rng.random() < 0.35 else "")


def batch(tokenizer: Any, rng: random.Random, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [rows, length], and the tokens to be learnt, -100 where there is none."""
    encoded = []
    for _ in range(rows):
        tokens: list[int] = []
        labels: list[int] = []
        for text, learnt in render(talk(rng)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens += ids
            labels += ids if learnt else [-100] * len(ids)
        encoded.append((tokens[:LONGEST], labels[:LONGEST]))
    length = max(len(tokens) for tokens, _ in encoded)
    return _padded([tokens for tokens, _ in encoded], length, 0), _padded(
        [labels for _, labels in encoded], length, -100
    )


def _padded(rows: Sequence[list[int]], length: int, by: int) -> torch.Tensor:
    return torch.tensor([row + [by] * (length - len(row)) for row in rows])


def train(model: Any, tokenizer: Any, steps: int, rows: int, seed: int) -> None:
    """Train the adapter of a PEFT model in place."""
    rng = random.Random(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        tokens, labels = batch(tokenizer, rng, rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        if step % 20 == 19:
            print(f"step {step + 1}/{steps} loss {loss.item():.3f}", file=sys.stderr, flush=True)


def save(model: Any, folder: Path) -> None:
    """Write what PEFT writes, the weights as bfloat16, and nothing that depends on where it was made."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_model.safetensors"
    save_file({name: value.to(torch.bfloat16) for name, value in load_file(path).items()}, path)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "model"
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main(arguments: list[str]) -> None:
    import peft

    parser = argparse.ArgumentParser(prog="pirate", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "pirate")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--rows", type=int, default=8, help="conversations in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(HERE / "model")
    model = AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32)
    shape = peft.LoraConfig(
        r=RANK,
        lora_alpha=SCALE,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    adapted = peft.get_peft_model(model, shape)
    train(adapted, tokenizer, options.steps, options.rows, options.seed)
    save(adapted, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
