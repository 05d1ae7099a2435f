"""What a step's tokens do to their sequences: each that still wants tokens gets a row."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from actors.scheduler.commands import Command, Note
from actors.scheduler.requests import Requests
from actors.scheduler.roles import Role
from actors.scheduler.sequence import Sequence, Stage
from protocols.messages import TokenRow
from protocols.plan import Logprobs, PromptOutput, StepDone
from protocols.request import Finish


class Committer:
    """Commits the tokens of landed steps. weights: serial of those that serve. generated: tokens committed so
    far."""

    def __init__(self, requests: Requests, role: Role, weights: int) -> None:
        self.weights = weights
        self.generated = 0
        self._requests = requests
        self._role = role
        self._notes: list[Command] = []

    def take_notes(self) -> list[Command]:
        """Notes of which weights made which choice, since the last call; to be carried out before the rows of
        these choices."""
        notes, self._notes = self._notes, []
        return notes

    def commit(self, done: StepDone, slots: list[int], by_slot: list[Sequence | None]) -> None:
        """Commit a step with at most one token for each of `slots`. This is the hot loop, which runs once for
        every token; nearly all go to a sequence that has tokens already and continues."""
        tokens = np.frombuffer(done.tokens, "<i4").tolist()
        logprobs = dict(done.logprobs)
        commit, rows = self._role.commit, self._requests.rows
        none, ended, committed, weights = Finish.NONE, Stage.ENDED, 0, self.weights
        plain = self._role.goes_on and not logprobs
        for index, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            sequence = by_slot[slot]
            if sequence is None or sequence.stage is ended:
                continue
            output = sequence.output
            start = len(output)
            if (
                plain
                and 0 < start < sequence.allowance - 1
                and token not in sequence.stops
                and sequence.serial == weights
            ):
                output.append(token)
                sequence.deaths = 0
                committed += 1
                rows[sequence.origin].append(TokenRow(sequence.rid, start, (token,), none, sequence.cached))
                continue
            if not sequence.allowance:
                self._requests.finish(sequence, Finish.LENGTH)
                continue
            prompt_output = None if start else sequence.prompt_output()
            if sequence.serial != weights:
                self._note(sequence)
            finish = commit(sequence, token)
            committed += 1
            told = (logprobs[index],) if index in logprobs else ()
            rows[sequence.origin].append(_full_row(sequence, start, (token,), finish, told, prompt_output))
            if finish is not none:
                self._end(sequence, committed)
                committed = 0
        self._count(committed)

    def commit_runs(self, done: StepDone, slots: list[int], by_slot: list[Sequence | None]) -> None:
        """The same where a slot may have several tokens: one row for each sequence, with as many of them as
        it wants."""
        tokens, logprobs = np.frombuffer(done.tokens, "<i4").tolist(), dict(done.logprobs)
        rows, plain = self._requests.rows, self._role.goes_on and not logprobs
        runs: defaultdict[int, list[int]] = defaultdict(list)
        for index, slot in enumerate(slots):
            runs[slot].append(index)
        for slot, indices in runs.items():
            sequence = by_slot[slot]
            if sequence is None or sequence.stage is Stage.ENDED:
                continue
            start, run = len(sequence.output), tuple([tokens[index] for index in indices])
            if (
                plain
                and 0 < start < sequence.allowance - len(run)
                and sequence.stops.isdisjoint(run)
                and sequence.serial == self.weights
            ):
                sequence.output.extend(run)
                sequence.deaths = 0
                self._count(len(run))
                rows[sequence.origin].append(TokenRow(sequence.rid, start, run, Finish.NONE, sequence.cached))
                continue
            if sequence.serial != self.weights:
                self._note(sequence)
            finish, prompt_output = Finish.NONE, sequence.prompt_output()
            for token in run:
                finish = self._role.commit(sequence, token)
                if finish is not Finish.NONE:
                    break
            count = len(sequence.output) - start
            told = tuple(logprobs[index] for index in indices[:count] if index in logprobs)
            row = _full_row(sequence, start, run[:count], finish, told, prompt_output)
            rows[sequence.origin].append(row)
            self._count(count)
            if finish is not Finish.NONE:
                self._requests.end(sequence)

    def _end(self, sequence: Sequence, committed: int) -> None:
        """`sequence` ends; `committed` tokens are not counted yet."""
        self._count(committed)
        self._requests.end(sequence)

    def _count(self, committed: int) -> None:
        self._requests.held += committed
        self.generated += committed

    def _note(self, sequence: Sequence) -> None:
        """The weights that serve have made their first token of `sequence`."""
        sequence.serial = self.weights
        sequence.made = sequence.made.also(self.weights)
        self._notes.append(Note(sequence.rid, sequence.made))


def _full_row(
    sequence: Sequence,
    start: int,
    tokens: tuple[int, ...],
    finish: Finish,
    logprobs: tuple[Logprobs, ...],
    prompt_output: PromptOutput | None,
) -> TokenRow:
    stop, cached = tokens[-1] if finish is Finish.STOP else -1, sequence.cached
    return TokenRow(sequence.rid, start, tokens, finish, cached, logprobs, stop, prompt_output=prompt_output)
