"""The audit of functions, over the table of hand-written rules: no right one fails, and every mistake is named."""

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
IN_FLOAT32 = ("elementwise", "norms", "structure")
MISTAKES = {f"{rule}: {mistake.name}": (rule, mistake) for rule in RULES for mistake in rule.mistakes}
BY_DEFAULT = [
    "sigmoid: no derivative",
    "layer_norm: no mean(u)",
    "chosen: exchanged",
]


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
        *((group, "float32") for group in IN_FLOAT32),
        *(pytest.param(group, "float32", marks=pytest.mark.thorough) for group in GROUPS if group not in IN_FLOAT32),
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
def test_a_mistake_is_named(name):
    rule, mistake = MISTAKES[name]
    report = fn.check_vjp(rule.forward, mistake.backward, *rule.point())
    top = report.rows[0]
    assert (top.leaf, top.verdict) == (mistake.leaf, "fail"), str(report)
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


def test_there_are_enough():
    assert len(RULES) >= 90
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert len(MISTAKES) == sum(len(rule.mistakes) for rule in RULES) >= 190
    assert set(BY_DEFAULT) <= MISTAKES.keys()
