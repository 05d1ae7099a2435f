"""`python -m tools.attack fuzz|disconnects`: attack a company that others use meanwhile."""

from __future__ import annotations

import click

from tools.attack.disconnects import disconnects
from tools.attack.fuzz import fuzz


@click.group()
def main() -> None:
    """Attack a company. Each command exits 1 unless nothing was found."""


main.add_command(fuzz)
main.add_command(disconnects)

if __name__ == "__main__":
    main()
