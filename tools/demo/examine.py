"""Examines a demo model directory: greedy answers to held-out sums and to the questions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.demo.corpus import follow_ups, held_out_sums, questions

Message = dict[str, str]
OPERATIONS = (("add", "+"), ("subtract", "-"), ("multiply", "x"))


class Pupil:
    """A loaded model that answers batches of conversations, greedily and in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def chat(self, talks: Sequence[list[Message]], limit: int = 150) -> list[str]:
        """The last answer of each conversation, at most `limit` tokens long."""
        prompts = [
            self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            for talk in talks
        ]
        return self.complete(prompts, limit)

    def ask(self, asked: Sequence[str], limit: int = 150) -> list[str]:
        return self.chat([[{"role": "user", "content": text}] for text in asked], limit)

    def complete(self, prompts: Sequence[str], limit: int) -> list[str]:
        """Plain continuation of each prompt."""
        batch = self.tokenizer(list(prompts), return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        with torch.inference_mode():
            out = self.model.generate(**batch, do_sample=False, max_new_tokens=limit)
        answers = out[:, batch["input_ids"].shape[1] :]
        return list(self.tokenizer.batch_decode(answers, skip_special_tokens=True))


def sum_accuracy(pupil: Pupil, operation: Any, count: int) -> tuple[float, list[str]]:
    """The share of right answers to `count` held-out sums, and the wrong ones in full."""
    wanted = list(held_out_sums(operation, count))
    given = pupil.ask([question for question, _ in wanted], limit=16)
    wrong = [
        f"{question!r}: {answer!r}, not {asked.answer!r}"
        for (question, asked), answer in zip(wanted, given, strict=True)
        if answer != asked.answer
    ]
    return 1 - len(wrong) / len(wanted), wrong


def question_accuracy(pupil: Pupil) -> tuple[float, list[str]]:
    """The same for the questions and the follow-ups."""
    talks = [[{"role": "user", "content": asked}] for asked, _ in questions()]
    expected = [answer for _, answer in questions()]
    talks += [talk for talk, _ in follow_ups()]
    expected += [answer for _, answer in follow_ups()]
    given = pupil.chat(talks)
    wrong = [
        f"{talk[-1]['content']!r}: {got!r}, not {want!r}"
        for talk, want, got in zip(talks, expected, given, strict=True)
        if got != want
    ]
    return 1 - len(wrong) / len(talks), wrong


def report(folder: Path, count: int) -> str:
    """All accuracies and all mistakes, as text."""
    pupil = Pupil(folder)
    lines = []
    for name, sign in OPERATIONS:
        share, wrong = sum_accuracy(pupil, sign, count)
        lines += [f"{name}: {share:.1%}", *(f"  {line}" for line in wrong[:12])]
    share, wrong = question_accuracy(pupil)
    lines += [f"questions: {share:.1%}", *(f"  {line}" for line in wrong)]
    return "\n".join(lines)
