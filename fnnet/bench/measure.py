"""How times and compiled programs are measured: alternating turns, medians of ratios, what the compiler says."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

TURN = 0.03
"""Seconds that a turn takes at least, if it is not one call."""
SLOW = 0.5
"""Seconds of a call that needs no other before it."""
LIMIT = 5.0
"""Seconds that the turns of a row's contenders take in all."""


class Contender(NamedTuple):
    """A function to be compiled, and what it is given."""

    run: Callable[..., Any]
    given: tuple[Any, ...]


class Compiled(NamedTuple):
    """A compiled contender, and what the compiler says of it; all but the seconds are the same at each compilation.

    Attributes:
        call: runs it.
        products: FLOPs of its matrix products and convolutions, those of a scan as often as it runs.
        temporaries: bytes.
        flops: of all operations as XLA counts them, a loop's body once.
        accessed: bytes, likewise.
        seconds: of tracing and compilation.
    """

    call: Callable[[], Any]
    products: int
    temporaries: int
    flops: float
    accessed: float
    seconds: float


UNOPTIMISED = {"xla_backend_optimization_level": 0}
"""Options of ``jax.jit``: what is compiled so runs slower and compiles faster; its operations and buffers are the same."""


def compiled(contender: Contender, options: dict[str, Any] | None = None) -> Compiled:
    start = time.perf_counter()
    traced = jax.jit(contender.run, compiler_options=options).trace(*contender.given)
    program = traced.lower().compile()
    seconds = time.perf_counter() - start
    costs, memory = program.cost_analysis() or {}, program.memory_analysis()
    temporaries = -1 if memory is None else memory.temp_size_in_bytes
    flops, accessed = (float(costs.get(name, np.nan)) for name in ("flops", "bytes accessed"))
    call = lambda: program(*contender.given)  # noqa: E731
    return Compiled(call, products(traced.jaxpr.jaxpr), temporaries, flops, accessed, seconds)


def products(jaxpr: Any) -> int:
    """FLOPs of the matrix products and convolutions of a program, without those that nothing reads: of a scan as often as it
    runs, of a choice the fewest, of another loop once."""
    return _products(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [_products(part) for value in equation.params.values() for part in _programs(value)]
        match equation.primitive.name:
            case "dot_general":
                (over, _), _ = equation.params["dimension_numbers"]
                total += 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in over)
            case "conv_general_dilated":
                w, features = equation.invars[1].aval, equation.params["dimension_numbers"].rhs_spec[0]
                total += 2 * equation.outvars[0].aval.size * w.size // w.shape[features]
            case "scan":
                total += equation.params["length"] * sum(inner)
            case "cond":
                total += min(inner)
            case _:
                total += sum(inner)
    return total


def _programs(value: Any) -> list[Any]:
    """The programs within a parameter of an equation."""
    of_one = lambda part: getattr(part, "jaxpr", part)  # noqa: E731
    parts = value if isinstance(value, tuple | list) else [value]
    return [of_one(part) for part in parts if hasattr(of_one(part), "eqns")]


def seconds_of(run: Callable[[], Any], calls: int) -> float:
    """Seconds per call."""
    result, start = None, time.perf_counter()
    for _ in range(calls):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def alternating(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    calls: int | Sequence[int],
    warm: Sequence[int] | None = None,
) -> np.ndarray:
    """Seconds per call, (rounds, contenders). Each has its turn after as many calls that are not counted: what ran before
    it leaves cold caches, and PyTorch's threads spin on for a while after a call.

    Args:
        contenders: name: a function without arguments.
        rounds: that are counted, after one that is not.
        calls: in a turn, of all contenders or of each.
        warm: calls of each before its turn, as many by default.
    """
    counts = [calls] * len(contenders) if isinstance(calls, int) else calls
    times = np.empty((rounds + 1, len(contenders)))
    for row in times:
        for i, run in enumerate(contenders.values()):
            for _ in range((warm or counts)[i]):
                jax.block_until_ready(run())
            row[i] = seconds_of(run, counts[i])
    return times[1:]


def in_turns(
    contenders: Mapping[str, Callable[[], Any]], rounds: int, turn: float = TURN, limit: float = np.inf
) -> np.ndarray:
    """`alternating` with turns of at least ``turn`` seconds or one call, and no more rounds, but three, than in ``limit``
    seconds. A call of half a second needs none before it."""
    runs = list(contenders.values())
    for run in runs:
        jax.block_until_ready(run())
    once = [seconds_of(run, 1) for run in runs]
    counts = [max(1, round(turn / seconds)) for seconds in once]
    warm = [n if seconds < SLOW else 0 for n, seconds in zip(counts, once, strict=True)]
    of_round = sum((n + w) * seconds for n, w, seconds in zip(counts, warm, once, strict=True))
    affordable = max(3, int(min(rounds, limit / of_round - 1)))
    return alternating(contenders, min(rounds, affordable), counts, warm)


def quartiles(ratios: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def deviation(ours: Any, theirs: Any) -> float:
    """The largest difference of two pytrees, leaf by leaf, relative to the largest entry of the second's leaf; of a leaf that
    is 0 to rounding, to a millionth of the largest entry of all.

    Raises:
        ValueError: for pytrees of other structures or shapes.
    """
    ours, theirs = ({jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in leaves}
                    for leaves in map(jax.tree_util.tree_leaves_with_path, (ours, theirs)))  # fmt: skip
    shapes, wanted = ({name: leaf.shape for name, leaf in tree.items()} for tree in (ours, theirs))
    if shapes != wanted:
        raise ValueError(f"bench: expected results of the shapes {wanted}, got {shapes}")
    sizes = {name: np.max(np.abs(leaf), initial=0) for name, leaf in theirs.items()}
    least = 1e-6 * max(sizes.values())
    gaps = {name: np.max(np.abs(ours[name] - theirs[name]), initial=0) for name in ours}
    return max(float(gap / max(sizes[name], least)) if gap == gap else np.inf for name, gap in gaps.items())


class Compilations:
    """Counts XLA's compilations while it is entered."""

    heard: ClassVar[int] = 0
    listening: ClassVar[bool] = False
    before: int
    count: int

    def __enter__(self) -> "Compilations":
        if not Compilations.listening:
            jax.monitoring.register_event_duration_secs_listener(Compilations.hear)
            Compilations.listening = True
        self.before, self.count = Compilations.heard, 0
        return self

    def __exit__(self, *_: Any) -> None:
        self.count = Compilations.heard - self.before

    @staticmethod
    def hear(event: str, duration_secs: float, **_: Any) -> None:
        Compilations.heard += event == "/jax/core/compile/backend_compile_duration"
