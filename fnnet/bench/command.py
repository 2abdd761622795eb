"""``python -m fnnet.bench``: its arguments, what it prints and what it writes."""

import argparse
import contextlib
import datetime
import functools
import json
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cases import Case, chosen
from .machine import limits, machine, name_of
from .peers import peers
from .problems import GRADIENT
from .run import HEADER, KINDS, measured
from .tables import documents, updated

SCHEMA = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a gradient is wrong, 2 for what cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m fnnet.bench", description="Backpropagation by hand beside jax.grad, and beside other libraries."
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="parts of names or groups; all without any")
    parser.add_argument("--quick", action="store_true", help="value and gradient at tiny shapes, one round")
    parser.add_argument("--peers", action="store_true", help="other libraries beside, where they are installed")
    parser.add_argument("--json", metavar="FILE", help="add this run to the file; in a folder, to that of this machine")
    parser.add_argument(
        "--tables", metavar="PAGE", help="write the tables of docs/benchmarks.md from the results beside it"
    )
    parser.add_argument("--rounds", type=int, help="of alternating turns, 7 by default")
    parser.add_argument("--list", action="store_true", help="the cases")
    given = parser.parse_args(arguments)
    try:
        cases = chosen(given.cases)
    except ValueError as error:
        parser.error(str(error))
    if given.list:
        for case in cases:
            print(f"{case.group:24s} {case.name}")
        return 0
    if given.tables:
        page = Path(given.tables)
        page.write_text(updated(page.read_text(), documents(page.with_suffix(""))))
        return 0
    keep = keeping(Path(given.json)) if given.json else lambda run: None
    run = measure(cases, given.quick, given.rounds or (1 if given.quick else 7), given.peers, keep)
    return int(any(row.get("failed") for row in run["rows"]))


def measure(
    cases: Sequence[Case],
    quick: bool = False,
    rounds: int = 7,
    with_peers: bool = False,
    keep: Callable[[dict[str, Any]], None] = lambda run: None,
) -> dict[str, Any]:
    """The run as JSON has it, printed line by line meanwhile, and given to ``keep`` after each row."""
    start, own = time.perf_counter(), {name: float(f"{value:.3g}") for name, value in limits(quick).items()}
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    about = {"date": date, "python": platform.python_version(), "quick": quick, "rounds": rounds, "limits": own}
    run: dict[str, Any] = {"machine": machine(), **about, "rows": []}
    print(", ".join(f"{name} {value}" for name, value in run["machine"].items()))
    print(f"limits: {own['gemm_gflops']:.0f} GFLOP/s (product), {own['memory_gb_s']:.0f} GB/s (in place)\n{HEADER}")
    say = functools.partial(print, flush=True)
    kinds, cases = ((GRADIENT,), [case for case in cases if case.quick]) if quick else (KINDS, cases)
    for case in cases:
        run["rows"].append(measured(case, quick, rounds, say, peers if with_peers else None, kinds))
        keep(run)
    print(f"{len(run['rows'])} rows in {time.perf_counter() - start:.0f} s")
    return run


def keeping(path: Path) -> Callable[[dict[str, Any]], None]:
    """Writes a run, as often as it is called, behind those that the file has of the same machine; in a folder, that of the
    machine's name.

    Raises:
        ValueError: for a file of another machine, or of another schema.
    """
    about = machine()
    path = path / f"{name_of(about)}.json" if path.is_dir() else path
    document: dict[str, Any] = {"schema": SCHEMA, "machine": about, "runs": []}
    with contextlib.suppress(FileNotFoundError):
        document = json.loads(path.read_text())
    if document["schema"] != SCHEMA or document["machine"] != about:
        raise ValueError(
            f"bench: expected {path.name} to hold runs of {about} in schema {SCHEMA}, got {document['machine']} in schema "
            f"{document['schema']}; give --json another file"
        )
    before = document["runs"]

    def keep(run: dict[str, Any]) -> None:
        own = {name: value for name, value in run.items() if name != "machine"}
        path.write_text(as_text({**document, "runs": [*before, own]}))

    return keep


def as_text(document: dict[str, Any]) -> str:
    """JSON with a line for each contender."""
    flat = re.compile(r"[\[{][^\[\]{}]*(\[[^\[\]{}]*\][^\[\]{}]*)*[\]}]")
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return flat.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text) + "\n"
