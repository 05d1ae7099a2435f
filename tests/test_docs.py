"""What the documents and docstrings point at is there: links, files, modules and what they define."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS = ("protocols", "runtime", "gpu", "actors", "tools", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
QUOTED = re.compile(r"`([^`\s]+)`")
FILE = re.compile(rf"(?:(?:{'|'.join(LAYERS)}|docs|examples)/)?[\w./-]*(?:\.(?:py|cpp|h|html|md|json)|/)")
"""What is quoted and looks like a file of the project, or a folder."""
NAME = re.compile(rf"`((?:{'|'.join(LAYERS)})(?:\.\w+)+)(?:\(\))?`")

DEFINED = r"\b(?:class|def) NAME\b|^ *(?:self\.)?NAME\b(?:: .*)?(?: = |$)|^from .* import .*\bNAME\b"


def _anchors(document: pathlib.Path) -> set[str]:
    """The ids that headings get."""
    headings = HEADING.findall(document.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _broken_links(document: pathlib.Path) -> Iterator[str]:
    for link in LINK.findall(document.read_text()):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            yield link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: pathlib.Path) -> None:
    assert list(_broken_links(document)) == []


def _missing_files(text: str) -> Iterator[str]:
    """Files that are named and not there. A name without a folder lies in the folder of the file, or of the
    module, that its line has named before it."""
    for line in text.splitlines():
        folder = ROOT
        for name in QUOTED.findall(line):
            if NAME.fullmatch(f"`{name}`"):
                folder = _module(name).parent
            if not FILE.fullmatch(name):
                continue
            if "/" in name:
                folder = (ROOT / name).parent if not name.endswith("/") else ROOT / name
                found = (ROOT / name).exists()
            else:
                found = (folder / name).exists()
            if not found:
                yield name


def test_the_map_of_the_files_is_true() -> None:
    assert list(_missing_files((ROOT / "docs" / "architecture.md").read_text())) == []
    assert list(_missing_files((ROOT / "CONTRIBUTING.md").read_text())) == []


def test_the_reading_order_is_as_long_as_it_says() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## The engine in an afternoon\n")[1].split("\n## ")[0]
    files = re.findall(r"^\| \d+ \| `([\w/.]+)` \|", section, re.MULTILINE)
    stated = re.search(r"about ([\d,]+) lines", section)
    assert len(set(files)) == len(files) >= 12 and stated
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert lines == pytest.approx(int(stated[1].replace(",", "")), rel=0.1)


def _module(name: str) -> pathlib.Path:
    """The file of the module or package that a dotted name begins with."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        module = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module.exists():
            return module
    raise FileNotFoundError(name)


def _defines(name: str) -> bool:
    """Whether `name` is a package, a module, or what a module defines (and a class in it)."""
    module = _module(name)
    depth = len(module.relative_to(ROOT).parts) - (module.name == "__init__.py")
    source = module.read_text()
    further = name.split(".")[depth:]
    return all(re.search(DEFINED.replace("NAME", part), source, re.MULTILINE) for part in further)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_docstrings_speak_of_is_there(layer: str) -> None:
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / layer).rglob("*.py"))
        for name in NAME.findall(path.read_text())
        if not _defines(name)
    }
    assert missing == set()


def test_what_documents_speak_of_is_there() -> None:
    spoken = {(document.name, name) for document in DOCUMENTS for name in NAME.findall(document.read_text())}
    assert {(document, name) for document, name in spoken if not _defines(name)} == set()


def test_what_is_not_there_is_noticed(tmp_path: pathlib.Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("# A title, of sorts\n[x](b.md) [y](a.md#a-title-of-sorts) [z](#nothing)\n")
    assert list(_broken_links(document)) == ["b.md", "#nothing"]
    assert list(_missing_files("`runtime/ring.py`, `channel.py`, `chanel.py`, `runtime/nobody/`")) == [
        "chanel.py",
        "runtime/nobody/",
    ]
    assert _defines("runtime.ring.Ring.attach") and not _defines("runtime.ring.Rope")
    assert _defines("runtime.channel.RELOOK") and not _defines("runtime.rings")
