"""``python -m fnnet.audit``, which `fnnet.gradcheck.command` is. As an attribute, ``fnnet.audit`` is the function."""

import sys

from .gradcheck import audit
from .gradcheck.command import main
from .shell import run

if __name__ == "__main__":
    run(main)
sys.modules[__name__] = audit  # pyright: ignore[reportArgumentType]
