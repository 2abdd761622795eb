"""How a command ends."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["run"]

CLOSED = 141  # as of what SIGPIPE ends


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what ``main`` returns, without a traceback where nobody reads on, as of ``... | head -1``."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which Python flushes as it ends
        status = CLOSED
    sys.exit(status)
