"""`python -m tools.attack fuzz|disconnects|timing`: attack a company that others use meanwhile."""

from __future__ import annotations

import click

from tools.attack.disconnects import disconnects
from tools.attack.fuzz import fuzz
from tools.attack.timing import timing


@click.group()
def main() -> None:
    """Attack a company. Each command exits 1 unless nothing was found."""


main.add_command(fuzz)
main.add_command(disconnects)
main.add_command(timing)

if __name__ == "__main__":
    main()
