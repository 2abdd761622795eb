"""One mistake planted in autodiff: what a gradient would be if the derivative of one operation of the program were wrong.

`Planted` goes through the program of a function, operation by operation; `ways_back` knows for each the usual mistakes of its
derivative: one of its paths left out, its own derivative missing or applied twice, an operand that is not transposed. Each
is a case; all cases are run in one compiled program, as a batch of gradients of which each has one mistake.
"""

import itertools
import linecache
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from .rules import CALLS, RULES, bound_to, scan_split, scanned
from .sides import is_inexact
from .ways import LAYOUT, PRODUCTS, Back, Case, Way, ways_back

SKIPPED = (os.path.dirname(os.path.abspath(jax.__file__)) + os.sep, os.path.dirname(os.path.abspath(__file__)) + os.sep)
STATE = "the state that a step hands to the next"
PLAINLY: dict[Any, Any] = {}


class Planted:
    """The program of ``f``, from a list of arrays to a list of arrays, with a mistake.

    Attributes:
        cases: the mistakes, in the order of the program.
        values: (what, number of it in `all_values`) of everything that is computed on the way, but in loops.
    """

    def __init__(self, f: Callable, leaves: Sequence[Any], names: Sequence[str]) -> None:
        self.closed: Any = jax.make_jaxpr(lambda leaves: list(f(leaves)))(list(leaves))
        self.leaves: list[Any] = list(leaves)
        self.names: list[str] = list(names)
        self.index: dict[tuple[Any, ...], int] = {}
        self.cases: list[Case] = []
        self.texts: dict[int, str] = {}
        self.values: list[tuple[str, Any]] = []
        jax.eval_shape(self.all_values, self.leaves)

    def all_values(self, leaves: list[Any]) -> list[Any]:
        self.values = []
        self._outputs(None, leaves)
        found = [v for _, v in self.values]
        self.values = [(name, i) for i, (name, _) in enumerate(self.values)]
        return found

    def gradient(self, of: int, picked: Any, leaves: Any, u: Any) -> Any:
        """Of leaf ``of``, with the case that ``picked``, one number for each, has a 1 for."""

        def run(x: Any) -> list[Any]:
            return self._outputs(picked, [*leaves[:of], x, *leaves[of + 1 :]])

        return jax.vjp(run, leaves[of])[1](u)[0]

    def moved(self, of: int, leaves: Any, v: Any) -> Any:
        """The product of the first output's derivative by leaf ``of`` with v."""

        def run(x: Any) -> Any:
            return self._outputs(None, [*leaves[:of], x, *leaves[of + 1 :]])[0]

        return jax.jvp(run, (leaves[of],), (v,))[1]

    def _outputs(self, picked: Any, leaves: list[Any]) -> list[Any]:
        self.given = leaves
        for name, v in zip(self.names, self.closed.jaxpr.invars, strict=True):
            self.texts[id(v)] = name
        return self._run(self.closed.jaxpr, self.closed.consts, leaves, (), "", picked)

    def _run(
        self, jaxpr: Any, consts: Any, args: Any, place: tuple, source: str, picked: Any, new: dict | None = None
    ) -> list[Any]:
        """The results; ``new`` has, in a loop, the new state by the variable of the old one; `PLAINLY`: with no mistake."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        for i, equation in enumerate(jaxpr.eqns):
            here, name, params = (*place, i), equation.primitive.name, equation.params
            given = [v.val if isinstance(v, Literal) else known[v] for v in equation.invars]
            text = source or written(equation)
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            if name in CALLS or (name in RULES and not _is_of_jax(getattr(inner, "jaxpr", inner))):
                body = self._named(equation, inner)
                pairs = [
                    (o, v) for o, v in zip(equation.invars, body.invars, strict=True) if not isinstance(o, Literal)
                ]
                within = {**new, **{v: new[o] for o, v in pairs if o in new}} if new else new
                own = text if _is_of_jax(body) else source
                out = self._run(body, getattr(inner, "consts", ()), given, here, own, picked, within)
            elif name == "scan" and new is not PLAINLY:
                out = self._scan(equation, given, here, source, picked)
            else:
                out = self._operation(equation, given, here, text, picked, new)
            for v in equation.outvars:
                self.texts[id(v)] = self._called(equation.invars[0]) if name in LAYOUT else text
            known.update(zip(equation.outvars, out, strict=True))
            if picked is None and new is None:
                self.values += [(text, v) for v in out if is_inexact(v)]
        return [v.val if isinstance(v, Literal) else known[v] for v in jaxpr.outvars]

    def _named(self, equation: Any, inner: Any) -> Any:
        """The program inside an operation, its arguments called as outside."""
        body = getattr(inner, "jaxpr", inner)
        for outer, v in zip(equation.invars, body.invars, strict=True):
            self.texts[id(v)] = self._called(outer)
        return body

    def _scan(self, equation: Any, given: list[Any], here: tuple, source: str, picked: Any) -> list[Any]:
        inner = equation.params["jaxpr"]
        body, consts = self._named(equation, inner), getattr(inner, "consts", ())
        n, n_carry = scan_split(equation)
        olds = body.invars[n : n + n_carry]
        for v in olds:
            self.texts[id(v)] = "the state before"

        length = equation.params["length"]

        def step(*given: Any) -> list[Any]:
            *args, t = given
            for k, constant in enumerate(args[:n]):
                if is_inexact(constant):
                    ways = _at_some_steps(self._called(body.invars[k]), length)
                    (args[k],) = self._gate(
                        lambda xs, _: list(xs), [constant], [t], [], ways, (*here, "constant", k), picked
                    )
            new = self._run(body, consts, args, here, source, None, PLAINLY)[:n_carry]
            carried = list(args[n : n + n_carry])
            for k, old in enumerate(carried):
                if is_inexact(old):
                    ways = [
                        Way(Case(f"left out: the path through {STATE}: what later steps owe to this one"), _times(0.0)),
                        Way(Case(f"wrong sign of the path through {STATE}"), _times(-1.0)),
                    ]
                    (carried[k],) = self._gate(lambda xs, _: list(xs), [old], [], [], ways, (*here, "state", k), picked)
            args = [*args[:n], *carried, *args[n + n_carry :]]
            return self._run(body, consts, args, here, source, picked, dict(zip(olds, new, strict=True)))

        steps = jnp.arange(length)
        return scanned(step, equation, [*given, steps[::-1] if equation.params["reverse"] else steps])

    def _operation(
        self, equation: Any, given: list[Any], here: tuple, text: str, picked: Any, new: dict | None
    ) -> list[Any]:
        moving = [not isinstance(v, Literal) and is_inexact(a) for v, a in zip(equation.invars, given, strict=True)]

        def merged(xs: Sequence[Any], others: Sequence[Any]) -> list[Any]:
            each = {True: iter(xs), False: iter(others)}
            return [next(each[own]) for own in moving]

        def bind(xs: Sequence[Any], others: Sequence[Any]) -> list[Any]:
            return bound_to(equation, merged(xs, others))

        xs, others = ([a for a, own in zip(given, moving, strict=True) if own == which] for which in (True, False))
        if (
            new is PLAINLY
            or not xs
            or equation.primitive.name == "optimization_barrier"
            or not any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in equation.outvars)
        ):
            return bind(xs, others)
        variables = [v for v, own in zip(equation.invars, moving, strict=True) if own]
        states = {i: ("the new state", new[v]) for i, v in enumerate(variables) if new and v in new}
        instead = [(i, *state) for i, state in states.items()]
        if new is None and equation.primitive.name in PRODUCTS:
            instead += [
                (i, name, leaf)
                for i, x in enumerate(xs)
                for name, leaf in zip(self.names, self.given, strict=True)
                if jnp.shape(leaf) == jnp.shape(x) and leaf is not x
            ]
        ways = list(ways_back(equation, text, [self._called(v) for v in variables], xs, instead, new is not None))
        return self._gate(bind, xs, others, [a for *_, a in instead], ways, here, picked, merged)

    def _gate(
        self,
        bind: Callable,
        xs: list,
        others: list,
        instead: list,
        ways: list[Way],
        here: tuple,
        picked: Any,
        merged: Callable = lambda xs, others: [*xs, *others],
    ) -> list[Any]:
        """bind(xs, others), with these wrong ways back beside the right one."""
        for k, way in enumerate(ways):
            if (*here, k) not in self.index:
                self.index[(*here, k)] = len(self.cases)
                self.cases.append(way.case)
        if picked is None or not self.cases:
            return bind(xs, others)
        picks = [picked[self.index[(*here, k)]] for k in range(len(ways))]

        @jax.custom_vjp
        def operation(picks: Any, xs: Any, others: Any, instead: Any) -> list[Any]:
            return bind(xs, others)

        def forward(picks: Any, xs: Any, others: Any, instead: Any) -> tuple[list[Any], Any]:
            out, pull = jax.vjp(lambda *xs: bind(xs, others), *xs)
            return out, (picks, xs, others, instead, out, pull)

        def backward(kept: Any, u: Any) -> tuple[Any, Any, Any, Any]:
            picks, xs, others, instead, out, pull = kept
            right = found = pull(u)
            back = Back(u, right, xs, others, instead, out, lambda *xs: bind(xs, others), merged(xs, others))
            for pick, way in zip(picks, ways, strict=True):
                try:
                    wrong = way.back(back)
                except (TypeError, ValueError, NotImplementedError):  # a mistake that cannot be made here
                    continue
                found = tuple(jnp.where(pick > 0, w, a) for w, a in zip(wrong, found, strict=True))
            return None, list(found), None, None

        operation.defvjp(forward, backward)
        return operation(picks, xs, others, instead)

    def _called(self, v: Any) -> str:
        return "" if isinstance(v, Literal) else self.texts.get(id(v), "")


def _times(factor: float) -> Callable:
    return lambda at: tuple(factor * r for r in at.right)


def _at_some_steps(name: str, length: int) -> list[Way]:
    """What every step uses gets its gradient from some steps only."""

    def way(words: str, t: int, alone: bool) -> Way:
        return Way(Case(words), lambda at: (jnp.where((at.others[0] == t) == alone, at.right[0], 0),))

    return [
        way(f"{words} counted for {name}", t, alone)
        for end, t in (("first", 0), ("last", length - 1))
        for words, alone in ((f"only the {end} step is", True), (f"the {end} step is not", False))
    ]


def _is_of_jax(jaxpr: Any) -> bool:
    about = getattr(jaxpr, "debug_info", None)
    return SKIPPED[0] in (getattr(about, "func_src_info", "") or "")


def written(equation: Any) -> str:
    """The expression that an operation comes from, as its author wrote it; "" where that cannot be told."""
    try:
        codes, places = equation.source_info.traceback.raw_frames()
        for code, place in zip(codes, places, strict=True):
            if not code.co_filename.startswith(SKIPPED):
                line, last, start, end = next(itertools.islice(code.co_positions(), place // 2, None))
                lines = [linecache.getline(code.co_filename, i).encode() for i in range(line, last + 1)]
                lines[-1] = lines[-1][:end]
                lines[0] = lines[0][start:]
                text = " ".join(b" ".join(lines).decode().split())
                return f"`{text if len(text) <= 80 else text[:77] + '...'}`" if text else ""
    except (AttributeError, TypeError, ValueError, StopIteration):
        pass
    return ""
