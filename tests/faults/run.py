"""Runs one of the players' companies: `python -m tests.faults.run KIND NAME SOCKET DRAIN PORT`."""

import sys

from protocols.errors import StartError
from runtime.supervisor import supervise
from tests.faults import players


def main() -> int:
    kind, name, socket, drain, port = sys.argv[1:]
    try:
        return supervise(players.company(kind, name, socket, float(drain), int(port)))
    except StartError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
