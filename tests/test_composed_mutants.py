"""Usual mistakes planted three composites deep: the audit names the place, the equation and the leaf, and blames no other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn

from .test_mutants import DENSE, DROP, MUTANTS, M

PLACES = {
    "at the bottom": ("0 {}",),
    "repeated and recomputed": ("1.1.0.0.1.0 {}", "1.1.0.1.1.0 {}"),
    "a branch": ("2.0 {}",),
    "in a branch, past a skip": ("2.1.1.0 {}",),
}
DROPPED = ("1.1.0.0.1.1 {}", "1.1.0.1.1.1 {}")


def nested(wrong: fn.Layer, place: str) -> fn.Network:
    """Three composites deep, with one layer planted."""
    parts = {name: wrong if name == place else DENSE for name in PLACES}
    bottom, repeated, branch, skipped = parts.values()
    block = fn.Recompute(fn.Residual(repeated, wrong if place == "dropped" else DROP))
    return fn.Network(
        bottom, fn.Residual(fn.Repeat(block, 2)), fn.Parallel(branch, fn.Residual(skipped), join=fn.concatenate)
    )


def _planted():
    kinds = {}
    for mutant in MUTANTS:
        if mutant.layer == DENSE:
            kinds.setdefault((mutant.equation, mutant.leaf), []).append(mutant)
    for i, mutants in enumerate(kinds.values()):
        for j, place in enumerate(PLACES):
            for k in (0, 1):
                mutant = mutants[(2 * j + k) % len(mutants)]
                marks = () if (i, j, k) == (2, 1, 0) else pytest.mark.thorough
                yield pytest.param(mutant, place, PLACES[place], id=f"{mutant}, {place}", marks=marks)
    for mutant in MUTANTS:
        if mutant.layer == DROP:
            name = f"{mutant}, repeated and recomputed"
            yield pytest.param(mutant, "dropped", DROPPED, id=name, marks=pytest.mark.thorough)


PLANTED = list(_planted())


@pytest.mark.parametrize(("mutant", "place", "names"), PLANTED)
def test_a_mutant_deep_inside_is_named(mutant, place, names):
    wrong = mutant.planted()
    net, draw = nested(wrong, place), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), (6,)))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * draw.standard_normal(leaf.shape)), shapes)
    x, y = draw.standard_normal((M, 6)), draw.uniform(size=(M, 12))
    report = fn.compare_gradients(net, fn.quadratic, params, x, y, key=jax.random.key(7))
    named = {name.format(type(wrong).__name__) for name in names}
    failed = [row for row in report.rows if row.verdict == "fail"]
    equation = "propagate" if mutant.equation == "forward" else mutant.equation
    assert {row.layer for row in failed} == named, str(report)
    assert {(row.equation, row.leaf) for row in report.rows[: len(named)]} == {(equation, mutant.leaf)}, str(report)
    assert all(re.search(mutant.hint, row.hint) for row in report.rows[: len(named)]), str(report)


def test_there_are_enough():
    assert len({row.id for row in PLANTED}) >= 40
