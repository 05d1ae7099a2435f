"""Files of a model and an adapter that are moved away, or written over, while a company serves from them."""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest

from protocols.adapters import WEIGHTS
from protocols.weights import SINGLE
from tests.faults.stage import until
from tests.serving import Company, serving
from tests.streams import Stream, ask
from tools.actorctl.serve import DEMO_MODEL

PIRATE = DEMO_MODEL.parent / "pirate"
TOKENS = 120


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    """A model directory that may be spoilt."""
    return pathlib.Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


@pytest.fixture
def adapter(tmp_path: pathlib.Path) -> pathlib.Path:
    """An adapter directory that may be spoilt."""
    return pathlib.Path(shutil.copytree(PIRATE, tmp_path / "pirate"))


def _overwrite(path: pathlib.Path) -> None:
    """Other bytes in the place of a file's last ones, and a shorter file."""
    with path.open("r+b") as file:
        file.seek(-(1 << 16), os.SEEK_END)
        file.write(bytes(1 << 15))
        file.truncate()


def _unshaken(company: Company, wanted: tuple[str, str]) -> None:
    """A stream goes on exactly over the death of the executor."""
    stream = Stream(company, tokens=TOKENS).begun()
    company.kill("executor.0")
    assert stream.done() == wanted


def test_what_is_gone_is_still_held(
    model: pathlib.Path, adapter: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """And what is written over, unless its writer had begun before: that ends only those who need it."""
    spoilt = pathlib.Path(shutil.copytree(adapter, tmp_path / "spoilt"))
    spoiler = (spoilt / WEIGHTS).open("r+b")
    inode = os.open(model / SINGLE, os.O_RDONLY)
    with serving("--lora", f"spoilt={spoilt}", model=str(model)) as company:
        ask(company, "lora.load", name="pirate", path=str(adapter))
        wanted, adapted = (Stream(company, tokens=TOKENS, model=m).done() for m in (company.model, "pirate"))
        assert wanted != adapted
        (model / "other").write_bytes(b"another checkpoint")
        (model / "other").rename(model / SINGLE)
        (model / "config.json").write_text("{}")
        (model / "tokenizer.json").unlink()
        spoiler.truncate(1 << 15)
        spoiler.close()
        _overwrite(adapter / WEIGHTS)
        shutil.rmtree(adapter)
        assert ask(company, "weights.info")["intact"]
        _unshaken(company, wanted)
        assert Stream(company, tokens=TOKENS, model="pirate").done() == adapted
        lost = Stream(company, tokens=TOKENS, model="spoilt")
        lost.join()
        assert "The adapter 'spoilt' cannot be loaded again" in lost.text

        _overwrite(pathlib.Path(f"/proc/self/fd/{inode}"))
        os.close(inode)
        assert ask(company, "weights.info")["intact"], "it was copied before"
        _unshaken(company, wanted)

        late = pathlib.Path(shutil.copy(DEMO_MODEL / SINGLE, tmp_path / "late.safetensors"))
        with late.open("r+b") as writer:
            ask(company, "weights.update", source=str(late))
            writer.seek(-(1 << 16), os.SEEK_END)
            writer.write(bytes(1 << 15))
        assert not ask(company, "weights.info")["intact"]
        assert Stream(company, tokens=TOKENS).done() == wanted, "what serves lies in memory"
        company.kill("executor.0")
        sentence = f"the weights {late} have been written to since they were chosen"
        until(lambda: sentence in company.stderr(), "the executor refuses to serve them")


def test_what_is_written_over_was_copied(adapter: pathlib.Path, tmp_path: pathlib.Path) -> None:
    checkpoint = tmp_path / SINGLE
    checkpoint.write_bytes(bytes(1 << 17))
    with serving("--executor", "hash", "--keep-weights", "copy", "--lora", f"pirate={adapter}") as company:
        ask(company, "weights.update", source=str(checkpoint))
        wanted, adapted = (Stream(company, model=m).done() for m in (company.model, "pirate"))
        _overwrite(checkpoint)
        _overwrite(adapter / WEIGHTS)
        assert ask(company, "weights.info")["intact"]
        company.kill("executor.0")
        assert [Stream(company, model=m).done() for m in (company.model, "pirate")] == [wanted, adapted]
