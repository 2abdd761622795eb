"""The audit of functions, over the table of hand-written rules: no right one fails, and every mistake is named and, where
the table says how, explained."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

import fnnet as fn
from fnnet.gradcheck.sides import normals

from . import rules
from .cases import thorough
from .rules import RULES

GROUPS = {
    module.__name__.rpartition(".")[2]: [rule for rule in RULES if rule.forward.__module__ == module.__name__]
    for module in (
        rules.algebra, rules.attention, rules.costs, rules.elementwise, rules.norms, rules.places, rules.sequences,
        rules.structure,
    )
}  # fmt: skip
MISTAKES = {f"{rule}: {mistake.name}": (rule, mistake) for rule in RULES for mistake in rule.mistakes}
BY_DEFAULT = [
    "sigmoid: at the output",
    "sigmoid: one entry clipped",
    "sigmoid: a factor near 1",
    "swiglu: no b",
    "softmax: the sum over the examples",
    "softmax: the diagonal",
    "softmax_cross_entropy: no u",
    "layer_norm: no mean(u)",
    "layer_norm: b's first",
    "layer_norm: b not summed",
    "matmul: b not transposed",
    "embedding: set, not added",
    "rnn: no later steps",
    "two_ways_forward: the second ignored",
    "two_ways_forward: the sign of a",
    "maximum: to all",
    "hinge: always on",  # a reversed argument gives the same, by chance
]
UNEXPLAINED = 23


def together(several):
    """All of these rules as one: nearly all of an audit is compilation."""

    def forward(*args):
        outs, residuals = zip(*(rule.forward(*own) for rule, own in zip(several, args, strict=True)), strict=True)
        return outs, (residuals, args)

    def backward(kept, u):
        back = (rule.backward(*own) for rule, own in zip(several, zip(kept[0], u, strict=True), strict=True))
        return tuple(zeros_for_none(given, args) for given, args in zip(back, kept[1], strict=True))

    return forward, backward


def zeros_for_none(given, args):
    def zeros(a):
        return jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.floating) else None

    return tuple(jax.tree.map(zeros, a) if g is None else g for g, a in zip(given, args, strict=True))


@pytest.mark.parametrize(
    ("group", "dtype"),
    [
        *((group, "float64") for group in GROUPS),
        *(pytest.param(group, "float32", marks=pytest.mark.thorough) for group in GROUPS),
    ],
)
def test_right_rules_pass(group, dtype):
    several = [rule for rule in GROUPS[group] if dtype in rule.dtypes]
    report = fn.check_vjp(*together(several), *(rule.point(dtype) for rule in several))
    assert report.ok, str(report)
    assert {row.leaf.partition("]")[0] + "]" for row in report.rows if "args" in row.leaf} == {
        f"args[{i}]" for i in range(len(several))
    }


@pytest.mark.parametrize("dtype", thorough("float64", "float32", "bfloat16", "float16"))
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_right_rule_passes(rule, dtype):
    if dtype in rule.dtypes:
        report = fn.check_vjp(rule.forward, rule.backward, *rule.point(dtype))
        assert report.ok, str(report)


@pytest.mark.parametrize("name", [*BY_DEFAULT, *thorough(*(name for name in MISTAKES if name not in BY_DEFAULT))])
def test_a_mistake_is_named_and_explained(name):
    rule, mistake = MISTAKES[name]
    report = fn.check_vjp(rule.forward, mistake.backward, *rule.point())
    top = report.rows[0]
    assert (top.leaf, top.verdict) == (mistake.leaf, "fail"), str(report)
    assert re.search(mistake.hint or "^$", top.hint), f"{top.hint!r}\n{report}"
    assert not {row.leaf for row in report.rows if row.verdict == "fail"} - leaves_that_differ(rule, mistake), str(
        report
    )


def leaves_that_differ(rule, mistake):
    """Of the wrong backward pass and the right one."""
    args = rule.point()
    out, residuals = rule.forward(*args)
    u = normals(out, 0)
    found = set()
    for path, ours in jax.tree_util.tree_leaves_with_path(zeros_for_none(mistake.backward(residuals, u), args)):
        right = dict(jax.tree_util.tree_leaves_with_path(zeros_for_none(rule.backward(residuals, u), args))).get(path)
        if right is None or right.shape != ours.shape or not jnp.allclose(ours, right):
            found.add(f"args{jax.tree_util.keystr(path)}")
    return found


class TestNoHintMisleads:
    @pytest.mark.parametrize("factor", [1.0001, 0.99999, 1 + 1e-7])
    def test_a_factor_is_told_to_the_digit_that_counts(self, factor):
        report = fn.check_vjp(lambda x: (jnp.sin(x), x), lambda x, u: (factor * u * jnp.cos(x),), jnp.arange(1.0, 4))
        assert report.rows[0].hint.startswith("a constant factor ")
        assert abs(float(report.rows[0].hint.split()[-1]) - factor) < 1e-8

    def test_a_factor_of_a_single_number_explains_nothing(self):
        forward, backward = lambda x: (jnp.sin(x), x), lambda x, u: (u * jnp.cos(x) + 0.1,)
        assert fn.check_vjp(forward, backward, jnp.asarray(0.7)).rows[0].hint == ""

    @pytest.mark.parametrize(
        ("shape", "hint"), [((5, 1), "only this example is wrong"), ((5, 3), "one example is left out")]
    )
    def test_an_entry_that_was_clipped_is_no_example_left_out(self, shape, hint):
        x = jnp.linspace(0.1, 1, shape[0] * shape[1]).reshape(shape)
        report = fn.check_vjp(lambda x: (x**3, x), lambda x, u: ((3 * u * x * x).at[2].set(0),), x)
        assert report.rows[0].hint == hint

    def test_targets_of_zero_are_not_left_out(self):
        class Forgetful(type(fn.cross_entropy)):
            def output_error(self, z, y, *, weights=None):
                return super().output_error(z, y)

        cost = jax.tree_util.register_static(Forgetful)(
            **{field.name: getattr(fn.cross_entropy, field.name) for field in dataclasses.fields(fn.cross_entropy)}
        )
        net = fn.Network(fn.Dense(3, fn.sigmoid))
        x, params = jax.random.normal(jax.random.key(0), (4, 5)), net.init(jax.random.key(1), (5,))
        report = fn.compare_gradients(net, cost, params, x, jnp.zeros((4, 3)), weights=jnp.linspace(0.5, 2, 4))
        assert report.rows[0].hint == "the weights of the examples are left out"


def test_there_are_enough():
    assert len(RULES) >= 90
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert len(MISTAKES) == sum(len(rule.mistakes) for rule in RULES) >= 190
    assert set(BY_DEFAULT) <= MISTAKES.keys()
    assert sum(not mistake.hint for _, mistake in MISTAKES.values()) == UNEXPLAINED
