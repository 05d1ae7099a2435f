"""`python -m tools.pictures`: the terminal pictures of the docs, of real commands on a real company.

Each command runs in a terminal of its own (a pty), as an operator's would; what it wrote last on the screen
becomes an SVG.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence

import click
from rich.console import Console
from rich.text import Text

from tools.actorctl.serve import DEMO_MODEL
from tools.bench import load
from tools.bench.serve import random_prompts
from tools.launch import launched

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
COLUMNS, ROWS = 124, 40
_ACTORCTL = (sys.executable, "-m", "tools.actorctl.main")
_REDRAWN = re.compile(r"\x1b\[\d*[AJHK]|\x1b\[\?25[lh]|\r(?!\n)")
"""Where a live display goes back to draw itself again."""
