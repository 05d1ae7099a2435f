"""Python text to learn from: the standard library's source and documentation.

Everything comes from the interpreter that runs this module: the library's modules without their
tests, the language reference that `pydoc` carries, and the docstrings of the built-in modules.
It is copyright of the Python Software Foundation and is used under the PSF License Agreement
(Version 2) with the licences of incorporated software, see `license()` in any interpreter.
"""

import importlib
import pydoc
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "__pycache__",
    "encodings",
    "ensurepip",
    "lib2to3",
    "idlelib",
    "turtledemo",
    "pydoc_data",
    "lib-dynload",
    "msilib",
    "distutils",
}
SKIPPED_FILES = ("_sysconfigdata", "_osx_support", "this.py", "antigravity.py", "__phello__")
LONGEST_FILE = 120_000

BUILT_IN_MODULES = (
    "builtins",
    "math",
    "itertools",
    "time",
    "sys",
    "_thread",
    "errno",
    "gc",
    "marshal",
    "_collections",
    "_functools",
    "_operator",
    "zlib",
    "array",
    "cmath",
    "select",
    "unicodedata",
)


def library_files() -> list[Path]:
    """The library's own source files, sorted, without tests and without tables of data."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(inside.parts) or path.name.startswith(SKIPPED_FILES):
            continue
        if path.stat().st_size <= LONGEST_FILE:
            found.append(path)
    return found


def documents() -> Iterator[str]:
    """Every text, one document at a time, in a fixed order."""
    for path in library_files():
        yield path.read_text(encoding="utf-8", errors="replace")
    for name in sorted(topics.topics):
        yield topics.topics[name]
    for name in BUILT_IN_MODULES:
        module = importlib.import_module(name)
        yield pydoc.plain(pydoc.render_doc(module)).partition("\nFILE\n")[0]
