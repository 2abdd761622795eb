"""Marks the exercises: which equations are not written yet, which are right, and what is wrong with the others.

    python examples/exercises/check.py                  # all
    python examples/exercises/check.py bp2 softmax      # some
    python examples/exercises/check.py --in examples/exercises/solutions

Each file of this folder leaves an equation open. Write it there, and run this. The audit compares it with autodiff of the
forward pass, which the file gives. Exits with 0 only where all that was asked for is right.
"""

import argparse
import functools
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from marks import MARKS

HERE = Path(__file__).parent


def returning(own: ModuleType, path: Path) -> None:
    """Make every function of the file, and every method of its layers, raise where it returns None."""

    def checked(f):
        @functools.wraps(f)
        def run(*args, **kwargs):
            if (result := f(*args, **kwargs)) is None:
                raise ValueError(f"{f.__name__} returns None: `return` is missing")
            return result

        return run

    for place in (own, *(each for each in vars(own).values() if isinstance(each, type))):
        for name, f in list(vars(place).items()):
            if getattr(getattr(f, "__code__", None), "co_filename", None) == str(path):
                setattr(place, name, checked(f))


def mark(name: str, folder: Path) -> tuple[str, str]:
    """("right" or "wrong" or "not written yet", what there is to say) of one exercise."""
    (path,) = folder.glob(f"[0-9][0-9]_{name}.py")
    spec = importlib.util.spec_from_file_location(f"exercise_{name}", path)
    own = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(own)
        returning(own, path)
        for told in MARKS[name](own):
            if told:
                return "wrong", told
    except Exception as error:
        if isinstance(error, NotImplementedError) or "NotImplementedError: " in str(error):
            return "not written yet", str(error).rpartition("NotImplementedError: ")[2]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        where = f"line {lines[0]} of {path.name}: " if lines else ""
        return "wrong", f"{where}{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "right", ""


def main(names: list[str], folder: str | Path = HERE) -> int:
    """How many of the chosen exercises are not right yet."""
    left = 0
    for name in names or MARKS:
        verdict, told = mark(name, Path(folder))
        left += verdict != "right"
        line = f"{name:14} {verdict}{': ' * bool(told)}{told}"
        print(line.replace("; ", "\n" + " " * 15), flush=True)
    return left


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MARKS))
    parser.add_argument("--in", dest="folder", default=HERE, metavar="FOLDER", help="where the exercises are")
    given = parser.parse_args()
    for name in given.names or MARKS:
        if name not in MARKS:
            parser.error(f"expected names of exercises, got {name}; they are {', '.join(MARKS)}")
        if not list(Path(given.folder).glob(f"[0-9][0-9]_{name}.py")):
            parser.error(f"expected a file [0-9][0-9]_{name}.py, got none in {given.folder}; --in names its folder")
    if main(given.names, given.folder):
        sys.exit(1)
