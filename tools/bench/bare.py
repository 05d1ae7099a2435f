"""The bare executor in a process of its own, loaded once, that runs a batch whenever it is asked.

Between its turns it waits for a line on its standard input and takes nothing from whoever is measured then.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from protocols.config import Config, read_model_card
from tools.bench import offline


class Bare:
    """The child's other end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def rate(self, requests: int, prompt: int, output: int) -> float:
        """Output tokens a second of `requests` answers of `output` tokens to prompts of `prompt` random ones,
        as many at once as there are slots, prefill included."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([requests, prompt, output]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare executor ended with {self._process.wait()}")
        return float(line)


@contextlib.contextmanager
def bare(model: pathlib.Path, dtype: str, slots: int) -> Iterator[Bare]:
    """A bare executor of `slots` slots."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.bench.bare", str(model), dtype, str(slots)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Bare(process)
    finally:
        process.kill()
        process.communicate()


def _serve(model: str, dtype: str, slots: int) -> None:
    """Load, then answer each line with a rate."""
    config = Config(read_model_card(pathlib.Path(model)), dtype=dtype, max_running=slots)
    executor = offline.load_executor(config)
    epochs = itertools.count(1)
    for line in sys.stdin:
        requests, prompt, output = json.loads(line)
        case, seconds = offline.Case(min(requests, slots), prompt, output), 0.0
        batches = -(-requests // case.requests)
        for _ in range(batches):
            figure = offline.run(executor, config, case, next(epochs))
            seconds += figure.prefill_seconds + figure.decode_seconds
        print(batches * case.requests * output / seconds, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
