"""A row: correctness first, then its programs and its times."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cases import Case
from .measure import LIMIT, TURN, UNOPTIMISED, Compilations, Compiled, compiled, deviation, in_turns, quartiles
from .problems import FORWARD, GRADIENT, HAND, PLAIN, SAME, STEP, Problem

TOLERANCE = 1e-10
"""Of the gradient in float64, relative to the largest entry of each leaf."""
KINDS = FORWARD, GRADIENT, STEP


def compilations(case: Case, quick: bool) -> int:
    """How often an equal network, built anew, is compiled when it is called as a user calls it."""
    problem = case.problem(quick, jnp.float32)
    problem.equal()
    with Compilations() as counted:
        problem.equal()
    return counted.count


def checked(case: Case, quick: bool, kinds: Sequence[str] = KINDS) -> float:
    """The largest deviation of the hand-written results from those of ``jax.grad`` of the same and of the plain forward pass
    in float64, of one step of training."""
    with jax.enable_x64(True):
        problem = case.problem(quick, jnp.float64, 1)
        compared = {kind: problem.kinds[kind] for kind in kinds if kind in problem.kinds and kind != FORWARD}
        runs = {kind: {name: c.run for name, c in contenders.items()} for kind, contenders in compared.items()}
        given = {kind: {name: c.given for name, c in contenders.items()} for kind, contenders in compared.items()}
        together = lambda given: jax.tree.map(lambda run, given: run(*given), runs, given)  # noqa: E731
        results = jax.jit(together, compiler_options=UNOPTIMISED)(given)
        return max(deviation_of(problem, found) for found in results.values())


def deviation_of(problem: Problem, results: dict[str, Any]) -> float:
    ours = results[HAND]
    worst = deviation(ours, results[SAME])
    return max(worst, deviation(problem.alike(ours), results[PLAIN])) if problem.comparable else worst


Say = Callable[[str], None]


def measured(
    case: Case,
    quick: bool,
    rounds: int,
    say: Say = print,
    peers: Callable[[Problem], dict] | None = None,
    kinds: Sequence[str] = KINDS,
) -> dict[str, Any]:
    """The row as JSON has it: name, group, its deviation in float64, and for each kind the figures of each contender; but for
    the quick run, how often an equal network is compiled. A row whose gradients are wrong has no figures."""
    error = checked(case, quick, kinds)
    row: dict[str, Any] = {"name": case.name, "group": case.group, "deviation": significant(error, 2)}
    if not error <= TOLERANCE:
        say(
            f"{case.name:44s} FAILED: off by {error:.1e} of the largest entry in float64, where {TOLERANCE:.0e} is allowed"
        )
        return {**row, "failed": True, "kinds": {}}
    if not quick:
        row["compilations"] = compilations(case, quick)
    problem = case.problem(quick, jnp.float32)
    others = peers(problem) if peers else {}
    found = {}
    for kind, contenders in problem.kinds.items():
        if kind not in kinds:
            continue
        programs = {name: compiled(contender, UNOPTIMISED if quick else None) for name, contender in contenders.items()}
        calls = {name: program.call for name, program in programs.items()} | others.get(kind, {})
        times = in_turns(calls, rounds, TURN / 10 if quick else TURN, LIMIT)
        found[kind] = figures(programs, list(calls), times / (problem.steps if kind == STEP else 1))
        say(line(case.name, kind, found[kind]))
    return {**row, "kinds": found}


def figures(programs: dict[str, Compiled], names: list[str], times: np.ndarray) -> dict[str, dict[str, Any]]:
    """Of each contender: milliseconds, quartiles of its time over that by hand, and what the compiler says."""
    found = {}
    for i, name in enumerate(names):
        found[name] = {"ms": significant(1e3 * float(np.median(times[:, i])), 4), "rounds": len(times)}
        if name != HAND:
            found[name]["ratio"] = [significant(q, 4) for q in quartiles(times[:, i] / times[:, 0])]
        if name in programs:
            _, work, temporaries, flops, accessed, seconds = programs[name]
            found[name] |= {"products": work, "temporaries": temporaries, "flops": flops, "bytes": accessed}
            found[name]["compile_s"] = round(seconds, 2)
    return found


def significant(x: float, digits: int) -> float:
    return float(f"{x:.{digits}g}")


HEADER = f"{'':64s}by hand  jax.grad of the same and of the plain forward pass, times as long (quartiles)"
SHORT = {SAME: "same", PLAIN: "plain"}


def line(name: str, kind: str, found: dict[str, dict[str, Any]]) -> str:
    ratios = "".join(
        f"  {SHORT.get(other, other)} {f['ratio'][1]:5.2f} ({f['ratio'][0]:.2f} to {f['ratio'][2]:.2f})"
        for other, f in found.items()
        if other != HAND
    )
    memory = " / ".join(f"{f['temporaries'] / 2**20:.2f}" for f in found.values() if "temporaries" in f)
    flops = " / ".join(f"{f['flops'] / 1e6:.4g}" for f in found.values() if "flops" in f)
    return f"{name:44s} {kind:18s} {found[HAND]['ms']:7.3f} ms{ratios}  | {memory} MiB, {flops} MFLOP"
