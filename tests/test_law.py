"""The law of imports: protocols <- {runtime, gpu} <- actors <- tools, and who may know Trio and torch."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALLOWED = {
    "protocols": {"protocols"},
    "runtime": {"protocols", "runtime"},
    "gpu": {"protocols", "gpu"},
    "actors": {"protocols", "runtime", "gpu", "actors"},
    "tools": {"protocols", "runtime", "gpu", "actors", "tools"},
}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.jit.load", "yaml.load", "os.system", "os.popen"}
"""Of layers that serve: what runs code that data brings along."""
LAYERS = set(ALLOWED)
TORCH_FREE_ENTRIES = (
    "actors.frontend.actor",
    "actors.tokenizer.actor",
    "actors.scheduler.actor",
    "actors.balancer",
    "actors.company",
    "runtime.process",
    "runtime.supervisor",
    "tools.actorctl.main",
)


def _sources() -> list[pathlib.Path]:
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def _imports(path: pathlib.Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module)
            case ast.ImportFrom(level=level) if level:
                raise AssertionError(f"{path}: relative imports hide the layer")
            case _:
                pass
    return found


def _violations(path: pathlib.Path) -> list[str]:
    layer = path.relative_to(ROOT).parts[0]
    roots = {name.split(".")[0] for name in _imports(path)}
    wrong = {f"imports {name}" for name in roots & LAYERS - ALLOWED[layer]}
    if "trio" in roots and layer in {"protocols", "gpu"}:
        wrong.add("imports trio")
    if "torch" in roots and layer not in {"gpu", "tools"}:
        wrong.add("imports torch")
    if "gpu" in roots and layer == "actors" and path.name not in {"executor.py", "kv_transfer.py"}:
        wrong.add("imports gpu")
    if roots & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}:
        wrong.add("imports a pickle")
    if layer != "tools":
        wrong |= {f"calls {name}" for name in _calls(path) & FORBIDDEN_CALLS}
    return [f"{path.relative_to(ROOT)} {what}" for what in sorted(wrong)]


def _calls(path: pathlib.Path) -> set[str]:
    """Names of what is called, as they are written."""
    calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {ast.unparse(function) for function in calls}


def test_every_import_points_down() -> None:
    broken = [line for path in _sources() for line in _violations(path)]
    assert broken == []


def test_the_law_can_be_broken(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    bad = tmp_path / "runtime" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("import torch\nfrom gpu.executor import Executor\nimport pickle\ntorch.load(eval('1'))\n")
    assert _violations(bad) == [
        "runtime/bad.py calls eval",
        "runtime/bad.py calls torch.load",
        "runtime/bad.py imports a pickle",
        "runtime/bad.py imports gpu",
        "runtime/bad.py imports torch",
    ]


@pytest.mark.parametrize("entry", TORCH_FREE_ENTRIES)
def test_starts_without_torch(entry: str) -> None:
    code = (
        f"import sys, {entry}\n"
        "heavy = {'torch', 'transformers', 'numpy.testing'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} imported' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_actors_import_quickly_and_stay_small() -> None:
    code = (
        "import time; start = time.perf_counter()\n"
        + "\n".join(f"import {entry}" for entry in TORCH_FREE_ENTRIES)
        + "\nlines = open('/proc/self/status').read().split('\\n')"
        + "\npeak = next(line for line in lines if line.startswith('VmHWM')).split()[1]"
        + "\nprint(time.perf_counter() - start, peak)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    kilobytes = float(done.stdout.split()[1])
    assert kilobytes < 150_000, "the torch-free actors must stay small"
