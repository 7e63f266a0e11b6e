"""What every command shares: a fast --help, errors as one sentence, flags of the original systems."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from core.errors import UserError


def main(run: Callable[[Sequence[str]], int | None]) -> None:
    """Run a command: a UserError is printed as one line on stderr and exits with 2, Ctrl-C with 130."""
    try:
        sys.exit(run(sys.argv[1:]) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was complete is kept, run the same command to go on.", file=sys.stderr)
        sys.exit(130)


def dead_flag(name: str, value: object, why: str) -> None:
    """Say in one line that an accepted flag of an original system does nothing here."""
    if value is not None:
        print(f"note: {name}={value} is accepted and ignored: {why}", file=sys.stderr)
