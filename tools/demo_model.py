"""Makes the demo model: `python -m tools.demo_model make --work-dir DIR`.

The demo model is a Llama of five layers with 4.7 million weights, trained from scratch on 9.4 million
tokens in under an hour on two CPU cores that were busy with other things too. It answers small sums and
simple questions, remembers a common name, tells stories, calls a simple function and continues
Python-like text. It exists so that the engine can be seen to work where no model can be downloaded.
It does not copy well: made-up names, longer repetitions and counting between any two numbers go wrong.

What it learns from: conversations written by `tools/demo/` itself, and the Python standard library
of the interpreter that runs this (its source, docstrings and language reference), which is
copyright of the Python Software Foundation and used under the PSF License Agreement (Version 2).
No other text and no other model went into it. The weights in `tools/demo/model/` are the averaged ones
of one run after 2300 steps of 4096 tokens. Its mix of rows was tuned while it ran, and its learning rate
was still at a fifth of the peak, so a new run gives a like model and not the same bits.

Commands, all on the same work directory:

    make      corpus, tokenizer, training, export; goes on where an interrupted run stopped
    export    the weights of the last checkpoint, averaged, into --out
    examine   held-out sums and questions put to the model in --out
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tools.demo import corpus, examine, model, python_text, training
from tools.demo.tokenizer import save_tokenizer, train_tokenizer

HERE = Path(__file__).parent / "demo" / "model"


def prepare(work: Path, out: Path, seed: int) -> tuple[Tokenizer, NDArray[np.uint16]]:
    """The tokenizer (of `out`, if it has one) and the encoded Python text, kept in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    documents = list(python_text.documents())
    kept = out / "tokenizer.json"
    if kept.exists():
        tokenizer = Tokenizer.from_file(str(kept))
    else:
        tokenizer = train_tokenizer(corpus.tokenizer_texts(documents, 20_000, seed))
    save_tokenizer(tokenizer, out)
    encoded = work / "text.npy"
    if not encoded.exists():
        np.save(encoded, corpus.encode_text(tokenizer, documents))
    return tokenizer, np.load(encoded)


def start(options: argparse.Namespace) -> tuple[training.Run, Tokenizer]:
    """A run at its last checkpoint, or at its beginning."""
    torch.set_num_threads(options.threads)
    tokenizer, text = prepare(options.work_dir, options.out, options.seed)
    packer = corpus.Packer(tokenizer, text, options.seed)
    plan = training.Plan(steps=options.steps, rows=options.rows)
    built = model.build(model.shape(options.tiny), options.seed)
    run = training.Run(built, plan, packer, options.work_dir, compiled=options.compile)
    run.resume()
    return run, tokenizer


def make(options: argparse.Namespace) -> None:
    run, tokenizer = start(options)
    run.train()
    model.export(run.model, run.averaged, tokenizer, options.out)


def export(options: argparse.Namespace) -> None:
    run, tokenizer = start(options)
    model.export(run.model, run.averaged, tokenizer, options.out)


def examination(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    print(examine.report(options.out, options.count))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="demo_model", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("make", "export", "examine"))
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "demo_model")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rows", type=int, default=16, help="rows of 256 tokens in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=400, help="sums of each kind to examine")
    parser.add_argument("--tiny", action="store_true", help="a toy shape, to try the pipeline")
    parser.add_argument("--compile", action="store_true", help="use torch.compile (needs a C++ compiler)")
    options = parser.parse_args(arguments)
    {"make": make, "export": export, "examine": examination}[options.command](options)


if __name__ == "__main__":
    main(sys.argv[1:])
