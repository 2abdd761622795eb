"""The tables of docs/benchmarks.md from the results beside it."""

import json
import re
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .behind import LIMITS
from .problems import FORWARD, GRADIENT, HAND, PLAIN, SAME, STEP

Document = dict[str, Any]
TO = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"  # a range stays on one line
SECTION = re.compile(r"(<!-- bench: (\w[\w ]*) -->\n).*?(<!-- end -->)", re.S)


def documents(folder: Path) -> list[Document]:
    """What `python -m fnnet.bench --json` wrote, the machines in order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def updated(page: str, results: list[Document]) -> str:
    """The page with its marked sections written anew: "machines", "peers", "not first", or the name of a group of rows."""

    def section(found: re.Match) -> str:
        name = found[2]
        whole = {"machines": machines, "peers": peers, "not first": not_first}
        lines = whole[name](results) if name in whole else rows_of(results, name)
        return found[1] + "\n" + "\n".join(lines) + "\n\n" + found[3]

    return SECTION.sub(section, page)


def spread(values: Iterable[float], digits: int = 2) -> str:
    """The range of the medians of several runs."""
    return span(values, f"{{:.{digits}f}}".format)


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def mib(size: int) -> str:
    return f"{size / 2**20:.2f}" if size < 10 * 2**20 else f"{size / 2**20:.0f}"


def span(values: Iterable[float], shown: Callable[[float], str] = number) -> str:
    given = list(values)
    low, high = shown(min(given)), shown(max(given))
    return low if low == high else f"{low}{TO}{high}"


def named(results: list[Document]) -> list[tuple[str, Document]]:
    return list(zip(string.ascii_uppercase, results, strict=False))


def machines(results: list[Document]) -> list[str]:
    lines = ["| below | machine | JAX | runs | matrix product, GFLOP/s | memory, GB/s |", "|---|---|---|---|---|---|"]
    for letter, document in named(results):
        m, runs = document["machine"], document["runs"]
        device = "" if m["device"] == "cpu" else f", {m['device']}"
        dates = sorted({run["date"].split()[0] for run in runs})
        own = [span(run["limits"][name] for run in runs) for name in ("gemm_gflops", "memory_gb_s")]
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines.append(
            f"| {letter} | {m['processor']}, {m['cores']} cores{device} | {m['jax']} | {when} | {own[0]} | {own[1]} |"
        )
    return lines


def found_rows(document: Document) -> dict[str, list[tuple[Document, Document]]]:
    """The runs of each row, each with the run's limits, by name."""
    found: dict[str, list[tuple[Document, Document]]] = {}
    for run in document["runs"]:
        for row in run["rows"]:
            if not row.get("failed"):
                found.setdefault(row["name"], []).append((row, run["limits"]))
    return found


def ratios(runs: list[tuple[Document, Document]], kind: str, *others: str) -> str:
    """Of each of the others, the range of the medians over runs; an empty cell for none."""
    cells = []
    for other in others:
        medians = [row["kinds"][kind][other]["ratio"][1] for row, _ in runs if other in row["kinds"].get(kind, {})]
        cells += [spread(medians)] if medians else []
    return " / ".join(cells)


def rows_of(results: list[Document], group: str) -> list[str]:
    lines = [
        "| | | gradient, ms | `jax.grad` of the same / the plain forward pass | step, ms | the same / plain | forward, ms "
        "| plain | temporaries, MiB: hand / same / plain | of the product's rate |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = dict.fromkeys(
        row["name"] for d in results for run in d["runs"] for row in run["rows"] if row["group"] == group
    )
    for name in names:
        for letter, document in named(results):
            if runs := found_rows(document).get(name):
                lines.append(f"| {name} | {letter} | {' | '.join(cells_of(runs))} |")
    return lines


def cells_of(runs: list[tuple[Document, Document]]) -> list[str]:
    def times(kind: str) -> str:
        found = [row["kinds"][kind][HAND]["ms"] for row, _ in runs if kind in row["kinds"]]
        return span(found) if found else ""

    (last, _), hand = runs[-1], [(row["kinds"][GRADIENT][HAND], own) for row, own in runs]
    memory = " / ".join(mib(f["temporaries"]) for f in last["kinds"][GRADIENT].values() if "temporaries" in f)
    rates = [100 * f["products"] / (1e6 * f["ms"]) / own["gemm_gflops"] for f, own in hand]
    share = f"{spread(rates, 0)} %" if max(rates) >= 1 else ""
    return [
        times(GRADIENT), ratios(runs, GRADIENT, SAME, PLAIN), times(STEP), ratios(runs, STEP, SAME, PLAIN), times(FORWARD),
        ratios(runs, FORWARD, PLAIN), memory, share,
    ]  # fmt: skip


def peers(results: list[Document]) -> list[str]:
    """How many times as long other libraries take for value and gradient, and for a step."""
    own = (HAND, SAME, PLAIN)
    names = list(dict.fromkeys(
        other for d in results for run in d["runs"] for row in run["rows"] for found in row["kinds"].values()
        for other in found if other not in own
    ))  # fmt: skip
    lines = ["| | | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    rows = dict.fromkeys(row["name"] for d in results for run in d["runs"] for row in run["rows"])
    for name in rows:
        for letter, document in named(results):
            runs = found_rows(document).get(name, [])
            cells = [[ratios(runs, kind, other) for kind in (GRADIENT, STEP)] for other in names]
            if any(map(any, cells)):
                shown = [", ".join(cell or "–" for cell in pair) if any(pair) else "" for pair in cells]
                lines.append(f"| {name} | {letter} | {' | '.join(shown)} |")
    return lines


def behind(results: list[Document]) -> dict[str, dict[tuple[str, str], str]]:
    """Of each row, by kind and contender, the machines on which the other was faster in every run, beyond noise: its upper
    quartile below 1 and its median below 0.97, by which equal programs differ."""
    found: dict[str, dict[tuple[str, str], str]] = {}
    for letter, document in named(results):
        for name, runs in found_rows(document).items():
            for kind in (FORWARD, GRADIENT, STEP):
                given = [row["kinds"].get(kind, {}) for row, _ in runs]
                for other in dict.fromkeys(other for kinds in given for other in kinds if other != HAND):
                    quartiles = [kinds[other]["ratio"] for kinds in given if other in kinds]
                    if max(q[2] for q in quartiles) < 1 and max(q[1] for q in quartiles) < 0.97:
                        own = f"{letter} {spread(q[1] for q in quartiles)}"
                        cells = found.setdefault(name, {})
                        cells[kind, other] = "; ".join(filter(None, [cells.get((kind, other)), own]))
    return found


def not_first(results: list[Document]) -> list[str]:
    lines = ["| row | | beside | ratio | why |", "|---|---|---|---|---|"]
    for name, cells in behind(results).items():
        for i, ((kind, other), own) in enumerate(cells.items()):
            shown = other.replace("jax.grad", "`jax.grad`")
            lines.append(f"| {'' if i else name} | {kind} | {shown} | {own} | {'' if i else LIMITS.get(name, '')} |")
    return lines
