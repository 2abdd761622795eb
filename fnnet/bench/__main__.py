"""The command: ``python -m fnnet.bench``."""

from ..shell import run
from .command import main

if __name__ == "__main__":
    run(main)
