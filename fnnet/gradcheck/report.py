"""What an audit returns: rows that can be read as records, and the table that printing shows."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..columns import aligned

__all__ = ["Report", "Row"]

BY_AUTODIFF = "autodiff of the forward pass"
COLOURS = {
    "fail": "31;1",
    "consequence": "33",
    "vacuous": "35",
    "both valid subgradients": "36",
    "precision": "36",
    "better than autodiff": "36",
    "approximate": "36",
    "replaced": "36",
}


@dataclass(frozen=True)
class Row:
    """One comparison. Differences are relative to the largest entry of the reference; NaN where there is none.

    Attributes:
        layer: the layer's place and name, such as "2 Dense" or "1.0 Conv"; "cost", "penalty" or "network".
        equation: the method's name: error, propagate, gradients, backward; output_error or output_gradient of the cost.
        leaf: the leaf of the gradient, such as "['w']"; "" for an error.
        verdict: one of

            - "pass": both sides agree.
            - "fail": the equation itself is wrong.
            - "consequence": it is right, what it was fed is not.
            - "better than autodiff": manual is nearer to the true value than autodiff is, or finite where autodiff is not, as
              float64, a computation with more digits or central differences tell.
            - "both valid subgradients": the sides differ only at kinks and ties, where either is a derivative.
            - "approximate": right to 1e-8 in float64, not to 1e-10, and nothing explains the difference.
            - "precision": right in float64, and no further off in this dtype than rounding explains.
            - "replaced": another equation is used here, by a `fnnet.Swapped` network's rule or an activation's surrogate;
              ``angle`` and ``ratio`` say how far from the true one. Everything else is judged as ever.
            - "zero to rounding": the reference is below 100 eps of the layer's largest gradient, or the rounding of a
              sum that cancels.
            - "vacuous": the reference is 0 everywhere, or nothing could judge: nothing was tested.

            Audits of functions add "intended": right for what it is meant to be the derivative of.
        difference: isolated, manual against autodiff.
        chained: the network's own error or gradient against autodiff's.
        in_float64: isolated, manual against autodiff, both in float64.
        manual_error: manual against autodiff in float64.
        autodiff_error: autodiff against autodiff in float64.
        size: the largest |autodiff|.
        joint: whether error, propagate and gradients could only be judged together (a layer without ``probe``).
        count: how many entries differ, where the sides disagree.
        index: where they differ most: the index in the array, the example first where it has one.
        example: the example at fault, where it is one.
        values: manual and autodiff at ``index``.
        hint: the usual mistake that explains the difference to rounding; "" where none does.
        finite_difference: the gradient along a random direction against central differences in float64, on request.
        angle: of what a rule sends down (of δ, for ``error``) to the true one, all examples as one vector, in degrees.
        ratio: of their norms, the rule's over the true one.
    """

    layer: str
    equation: str
    leaf: str
    verdict: str
    difference: float = float("nan")
    chained: float = float("nan")
    in_float64: float = float("nan")
    manual_error: float = float("nan")
    autodiff_error: float = float("nan")
    size: float = 0.0
    joint: bool = False
    count: int = 0
    index: tuple[int, ...] | None = None
    example: int | None = None
    values: tuple[float, float] | None = None
    hint: str = ""
    finite_difference: float = float("nan")
    angle: float = float("nan")
    ratio: float = float("nan")

    @property
    def note(self) -> str:
        """Where the sides differ and what explains it, in words; "" where they agree."""
        return self.told("autodiff")

    def told(self, reference: str) -> str:
        """`note`, with what the reference is called."""
        parts = []
        if self.values is not None:
            ours, right = self.values
            place = f" at {list(self.index)}" if self.index else ""
            some = f"{self.count} entries differ, most{place}" if self.count > 1 else f"one entry differs{place}"
            parts.append(f"{some}: manual {ours:.4g}, {reference} {right:.4g}")
        if self.example is not None:
            parts.append(f"example {self.example}")
        if self.hint:
            parts.append(self.hint)
        return "; ".join(parts)


@dataclass(frozen=True)
class Report:
    """What an audit returns; printing it shows what was found, in colour on a terminal (unless NO_COLOR is set).

    Printed, it says in one sentence whether all agree, and then names the equations layer by layer; where something failed,
    the rows that did stand there with all their numbers. `full` shows every row so.

    Attributes:
        rows: failed causes first, then consequences, then the rest; each from the last layer to the first.
        dtype: of the parameters.
        judge: what the hand-written side was compared with.
        notes: what else there is to say of the audit.
    """

    rows: tuple[Row, ...]
    dtype: str
    judge: str = BY_AUTODIFF
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self._failed

    @property
    def first(self) -> str | None:
        """The first layer that disagrees, on the way back from the cost; None where all agree."""
        return None if self.ok else self.rows[0].layer

    def raise_if_failed(self, *, vacuous: bool = False) -> None:
        """For tests: ``fn.compare_gradients(...).raise_if_failed()``.

        Args:
            vacuous: whether rows that tested nothing are allowed.

        Raises:
            AssertionError: that carries the full table, unless `ok`; and for vacuous rows, unless they are allowed.
        """
        if not self.ok:
            raise AssertionError(f"manual gradients disagree with {self.judge}\n{self._full(colour=False)}")
        empty = self._count("vacuous")
        if not vacuous and (empty or not self.rows):
            found = f"{empty} of {len(self.rows)} comparisons are vacuous" if empty else "nothing was compared"
            remedy = "audit at other parameters and inputs, or allow it: raise_if_failed(vacuous=True)"
            raise AssertionError(f"{found}: {remedy}\n{self._full(colour=False)}")

    def full(self) -> str:
        """The table of every row with all its numbers, then what was found: the text for ``print(report.full())``."""
        return self._full(colour=_in_colour())

    def to_markdown(self) -> str:
        """The full table in Markdown, and a list of what was found."""
        head, *lines = self._table(self.rows)
        rules = tuple("---" for _ in head)
        table = [f"| {' | '.join(line)} |" for line in (head, rules, *lines)]
        notes = [f"- {note}" for note in [*self._notes(), *self.notes]]
        return "\n".join([*table, *([""] if notes else []), *notes])

    def __str__(self) -> str:
        table = self._by_layer(_in_colour()) if self.ok else self._numbers(self._failed, _in_colour())
        judged = f"Judged by {self._judged()}. All {len(self.rows)} comparisons in numbers: print(report.full())"
        return "\n".join([*self._found(), "", *table, "", *self.notes, judged])

    @property
    def _failed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict in ("fail", "consequence"))

    @property
    def _of_network(self) -> bool:
        return self.judge == BY_AUTODIFF

    @property
    def _reference(self) -> str:
        return "autodiff" if self.judge.startswith("autodiff") else "differences"

    def _count(self, verdict: str) -> int:
        return sum(row.verdict == verdict for row in self.rows)

    def _full(self, *, colour: bool) -> str:
        about = [*self.notes, f"Judged by {self._judged()}."]
        return "\n".join([*self._found(), "", *self._numbers(self.rows, colour), *about])

    def _found(self) -> list[str]:
        """What there is to say first."""
        return [self._agreement() if self.ok else self._disagreement(), *self._notes()]

    def _table(self, rows: Sequence[Row]) -> list[tuple[str, ...]]:
        """Its heads, then a line of texts for each row."""
        columns = {
            "isolated": "difference",
            "chained": "chained",
            "in float64": "in_float64",
            "manual": "manual_error",
            "autodiff": "autodiff_error",
            "finite diff.": "finite_difference",
        }
        optional = ["chained", "finite diff."] if self._of_network else list(columns)[1:]
        for name in optional:
            if all(np.isnan(getattr(row, columns[name])) for row in self.rows):
                del columns[name]
        table: list[tuple[str, ...]] = [("layer", "equation", "leaf", "verdict", *columns)]
        for row in rows:
            numbers = (getattr(row, name) for name in columns.values())
            texts = ("-" if np.isnan(number) else f"{number:.1e}" for number in numbers)
            table.append((row.layer, row.equation + " (joint)" * row.joint, row.leaf or "-", row.verdict, *texts))
        return table

    def _numbers(self, rows: Sequence[Row], colour: bool) -> list[str]:
        """The lines of the table of these rows, and what its columns are."""
        table = self._table(rows)
        head = table[0]
        both = ", ".join(name for name in ("isolated", "chained", "in float64") if name in head)
        each = "; manual, autodiff: each against autodiff in float64" if "manual" in head else ""
        legend = f"({both}: manual against {self._reference}{each}; relative to the largest entry)"
        return [*_aligned(table, [row.verdict for row in rows] if colour else ()), legend]

    def _by_layer(self, colour: bool) -> list[str]:
        """A line for each layer and verdict, with its equations."""
        groups: dict[tuple[str, str], dict[str, list[str]]] = {}
        for row in self.rows:
            equations = groups.setdefault((row.layer, row.verdict), {})
            equations.setdefault(row.equation + " (joint)" * row.joint, []).append(row.leaf)
        table = [("layer", "verdict", "equations")]
        for place, equations in groups.items():
            names = ", ".join(f"{name} {', '.join(leaves)}".rstrip() for name, leaves in equations.items())
            table.append((*place, names))
        return _aligned(table, [verdict for _, verdict in groups] if colour else ())

    def _notes(self) -> list[str]:
        reference = "autodiff" if self.judge.startswith("autodiff") else "measured"
        told = ("fail", "both valid subgradients", "better than autodiff", "approximate", "vacuous", "replaced")
        return [
            f"{row.layer}, {row.equation}{f' {row.leaf}' if row.leaf else ''}: {row.told(reference)}"
            for row in self.rows
            if row.verdict in told and row.note
        ]

    def _judged(self) -> str:
        if "float64" in self.judge:
            return self.judge
        doubled = any(not np.isnan(row.in_float64) for row in self.rows)
        return f"{self.judge} in {self.dtype}{' and in float64' * doubled}"

    def _disagreement(self) -> str:
        first = self.rows[0]
        way = ", on the way back from the cost: layer" if self._of_network else ":"
        return f"The first to disagree{way} {first.layer}, {first.equation} {first.leaf}".rstrip()

    def _agreement(self) -> str:
        empty, other = self._count("vacuous"), self._count("replaced")
        agreed = len(self.rows) - empty - other
        sentence = (
            f"All {agreed} comparisons agree in {self.dtype}" if agreed else f"Nothing was compared in {self.dtype}"
        )
        plain = all(row.verdict in ("pass", "precision", "zero to rounding", "vacuous") for row in self.rows)
        compared = [row for row in self.rows if row.verdict in ("pass", "precision")]
        apart = np.array([[row.difference, row.chained] for row in compared])
        if plain and not np.isnan(apart).all():
            apart = np.nanmax(apart)
            sentence += ": the hand-written gradients are those of jax.grad" * self._of_network
            sentence += f", to {apart:.1e} of the largest entry" if apart else ", exactly"
        sentence += f". {other} replaced: another equation is used there" * (other > 0)
        return sentence + f". {empty} vacuous: nothing was tested there" * (empty > 0) + "."


def _in_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _aligned(table: Sequence[Sequence[str]], verdicts: Sequence[str]) -> list[str]:
    """The lines of a table, its head underlined; each in the colour of its verdict where these are given."""
    head, *lines = aligned(table)
    paints = [COLOURS.get(verdict) for verdict in verdicts] or [None] * len(lines)
    painted = (f"\033[{paint}m{line}\033[0m" if paint else line for line, paint in zip(lines, paints, strict=True))
    return [head, "-" * max(map(len, (head, *lines))), *painted]
