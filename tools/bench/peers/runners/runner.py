"""Runs one engine for the comparison, in the engine's own Python: `runner.py MODULE [FUNCTION]`.

The module lies beside this file; its function loads a model. The runner speaks lines of JSON. First comes
{"model": directory, "threads": n, "context": tokens}, answered {"version": text}; then any number of
{"prompts": [[id, ...], ...], "output": n}, each answered {"seconds": time of the whole batch, "tokens":
[[id, ...], ...]}. Anything that goes wrong is answered {"error": text} and ends the runner. What the engine
prints goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from typing import Any, TextIO


def main(module: str, function: str = "load") -> None:
    """Serve lines until stdin ends, or SIGTERM comes: engines then tidy up after themselves."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        try:
            _serve(module, function, answers)
        except Exception as error:
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})
            raise


def _serve(module: str, function: str, answers: TextIO) -> None:
    load = getattr(importlib.import_module(module), function)
    version, generate = load(**json.loads(sys.stdin.readline()))
    _answer(answers, {"version": version})
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        tokens = generate(job["prompts"], job["output"])
        _answer(answers, {"seconds": time.perf_counter() - start, "tokens": tokens})


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
