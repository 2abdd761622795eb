"""The mutation study inside a GPT: the usual mistakes of normalisation and attention, planted in a block of a tied network.
The audit's first line has to name the place and the equation, and its hint the mistake.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.gradcheck import formulas
from fnnet.gradcheck.mistakes import Failure, explain
from fnnet.layers import _attention as equations
from fnnet.layers import _norm as norm
from fnnet.layers._layer import run_forward

from .cases import gpt, gpt_block, thorough
from .test_mutants import Mutant, on

V, T, N, HEADS = 7, 4, 8, 2
LAYER, RMS, GROUP, BATCH = fn.LayerNorm(), fn.RMSNorm(), fn.GroupNorm(2), fn.BatchNorm()
ATTEND, TURNED, BLOCKS = fn.Attention(HEADS), fn.Attention(HEADS, rotary=100.0), fn.Attention(HEADS, block=3)


def changed_sum(change):
    """``change(u, x_hat, r, mean_u, mean_ux)`` in place of `input_error`."""

    def mistake(layer, right, params, cache, delta):
        x_hat, r = layer.x_hat(cache), cache[1 if isinstance(layer, fn.RMSNorm) else 2]
        u = norm.scaled(params["g"], delta)
        return change(u, x_hat, r, layer.mean(u), layer.mean(u * x_hat))

    return mistake


def without_gain(layer, right, params, cache, delta):
    return type(layer).__mro__[1].propagate(layer, {**params, "g": jnp.ones_like(params["g"])}, cache, delta)


def with_another_sigma(layer, right, params, cache, delta):
    a_in, mu, r, *rest = cache
    return type(layer).__mro__[1].propagate(layer, params, (a_in, mu, jnp.roll(r, 1, 0), *rest), delta)


def of_cache(layer, cache, delta):
    """q, k, v, p, o, do of a layer that keeps the probabilities."""
    a_in, _, a, p = cache
    q, k, v = layer.turned(a_in)
    return q, k, v, p, a.reshape(q.shape), delta.reshape(q.shape)


def in_attention(change):
    """``change(q, k, v, p, o, do, right parts)`` gives dq, dk, dv."""

    def mistake(layer, right, params, cache, delta):
        given = of_cache(layer, cache, delta)
        return equations.join_heads(*change(*given, equations.attend_error(*given)))

    return mistake


def without_mask(q, k, v, p, o, do, right):
    _, p = equations.attend(q, k, v, None, False)
    return equations.attend_error(q, k, v, p, o, do)


def diagonal_only(q, k, v, p, o, do, right):
    ds = p * jnp.einsum("mthd,mshd->mhts", do, v)
    root = q.shape[-1] ** 0.5
    return jnp.einsum("mhts,mshd->mthd", ds, k) / root, jnp.einsum("mhts,mthd->mshd", ds, q) / root, right[2]


def other_heads(layer, right, params, cache, delta):
    """do read as (m, T, d, h), features first."""
    m, steps, _ = delta.shape
    turned = delta.reshape(m, steps, N // HEADS, HEADS).swapaxes(2, 3).reshape(delta.shape)
    return type(layer).__mro__[1].propagate(layer, params, cache, turned)


def unturned(sign):
    def mistake(layer, right, params, cache, delta):
        dq, dk, dv = equations.attend_error(*of_cache(layer, cache, delta))
        cos, sin = equations.rotations(T, N // HEADS, layer.rotary)
        dq, dk = (x if sign == 0 else equations.rotated(x, cos, sin) for x in (dq, dk))
        return equations.join_heads(dq, dk, dv)

    return mistake


def _mutants() -> list[Mutant]:
    rows: list[Mutant] = []

    def add(layer, mistakes, equation="propagate", leaf=""):
        for name, (change, hint) in mistakes.items():
            rows.append(Mutant(f"{layer} {equation}: {name}", layer, equation, leaf, change, hint))

    no_mean = changed_sum(lambda u, x, r, mu, mx: r * (u - x * mx))
    no_x_hat = changed_sum(lambda u, x, r, mu, mx: r * (u - mu))
    add(LAYER, {
        "no mean": (no_mean, r"mean\(u\) is left out"),
        "no x̂": (no_x_hat, r"x̂ mean\(u x̂\) is left out"),
        "constant statistics": (changed_sum(lambda u, x, r, mu, mx: r * u), "statistics are taken for constants"),
        "no g": (without_gain, "g is left out"),
        "another σ": (with_another_sigma, "1/σ of another example"),
        "no σ": (changed_sum(lambda u, x, r, mu, mx: u - mu - x * mx), "1/σ is left out"),
        "σ²": (changed_sum(lambda u, x, r, mu, mx: r * r * (u - mu - x * mx)), "1/σ² stands where 1/σ belongs"),
        "sums": (changed_sum(lambda u, x, r, mu, mx: r * (u - N * (mu + x * mx))), "sums stand where the means"),
    })  # fmt: skip
    add(LAYER, {
        "no x̂": (on("g", lambda g, params, cache, delta: jnp.sum(delta, (0, 1)) / len(delta)), "x̂ is left out"),
        "a for x̂": (on("g", lambda g, params, cache, delta: jnp.einsum("mtc,mtc->c", delta, cache[0]) / len(delta)),
            "a stands where x̂ belongs"),
        "no σ": (on("g", lambda g, params, cache, delta: norm.gain_gradient(delta * (cache[0] - cache[1]))),
            "1/σ is left out of x̂"),
        "mean over the steps": (on("g", lambda g, *rest: g / T), "number of steps or places, = 4 is missing"),
    }, "gradients", "['g']")  # fmt: skip
    add(RMS, {"no x̂": (changed_sum(lambda u, x, r, mu, mx: r * u), r"x̂ mean\(u x̂\) is left out")})
    add(GROUP, {
        "no mean": (no_mean, r"mean\(u\) is left out"),
        "sums": (changed_sum(lambda u, x, r, mu, mx: r * (u - T * N / 2 * (mu + x * mx))), "sums stand where the means"),
    })  # fmt: skip
    add(BATCH, {"no x̂": (no_x_hat, r"x̂ mean\(u x̂\) is left out"), "no g": (without_gain, "g is left out")})
    root = (N // HEADS) ** 0.5
    add(ATTEND, {
        "no mask": (in_attention(without_mask), "the causal mask is left out"),
        "no scale": (in_attention(lambda *given: (root * given[-1][0], root * given[-1][1], given[-1][2])),
            "scale 1/√d is left out"),
        "scale twice": (in_attention(lambda *given: (given[-1][0] / root, given[-1][1] / root, given[-1][2])),
            "scale 1/√d is applied twice"),
        "dq and dk": (in_attention(lambda *given: (given[-1][1], given[-1][0], given[-1][2])), "dq and dk are swapped"),
        "no dv": (in_attention(lambda *given: (*given[-1][:2], 0 * given[-1][2])), "dv is left out"),
        "the diagonal only": (in_attention(diagonal_only), "only the diagonal of softmax's Jacobian"),
        "p in dv": (in_attention(lambda q, k, v, p, o, do, right: (
            *right[:2], jnp.einsum("mhts,mshd->mthd", p, do))), "p is not transposed in dv"),
        "heads": (other_heads, "heads are mixed up"),
        "heads joined": (in_attention(lambda *given: [jnp.swapaxes(x, 1, 2).reshape(x.shape) for x in given[-1]]),
            "heads are mixed up"),
    })  # fmt: skip
    add(TURNED, {
        "not turned back": (unturned(0), "dq and dk are not turned back"),
        "turned again": (unturned(1), "dq and dk are turned once more"),
        "dq and dk": (lambda layer, right, *rest: jnp.concatenate([right[..., i : i + N] for i in (N, 0, 2 * N)], -1),
            "dq and dk are swapped"),
    })  # fmt: skip
    add(BLOCKS, {
        "no scale": (lambda layer, right, *rest: right.at[..., : 2 * N].multiply(root), "scale 1/√d is left out"),
        "heads": (other_heads, "heads are mixed up"),
    })  # fmt: skip
    return rows


MUTANTS = _mutants()
BY_DEFAULT = {"Attention(2) propagate: no mask"}


def planted(mutant: Mutant) -> fn.Tied:
    """A tied GPT of one block with the mutant at 2.1.0, a normalisation, or at 2.1.2, attention."""
    wrong = mutant.planted()
    first, attention = (fn.LayerNorm(), wrong) if isinstance(wrong, fn.Attention) else (wrong, fn.Attention(HEADS))
    return gpt(V, N, gpt_block(N, attention, norm=first, wide=2))


def test_the_mutants():
    assert len(MUTANTS) >= 12
    assert {mutant.name for mutant in MUTANTS} >= BY_DEFAULT
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.name, marks=() if m.name in BY_DEFAULT else pytest.mark.thorough) for m in MUTANTS],
)
def test_a_mutant_in_a_block_is_named_and_explained(mutant):
    net, draw = planted(mutant), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), (T,)))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 + 0.5 * draw.standard_normal(leaf.shape)), shapes)
    tokens = jnp.asarray(draw.integers(V, size=(5, T + 1)))
    report = fn.compare_gradients(net, fn.log_likelihood, params, tokens[:, :-1], tokens[:, 1:])
    top, place = report.rows[0], "2.1.2" if isinstance(mutant.layer, fn.Attention) else "2.1.0"
    name = f"{place} Wrong{type(mutant.layer).__name__}"
    assert (top.layer, top.equation, top.leaf, top.verdict) == (name, mutant.equation, mutant.leaf, "fail"), str(report)
    assert {row.layer for row in report.rows if row.verdict == "fail"} == {name}, str(report)
    assert re.search(mutant.hint, top.hint), f"{top.hint!r}\n{report}"


def formulas_of(layer):
    """What is right, and the list of (mistake, what it would give), of a layer's propagate; BP4 of g for "g"."""
    draw = np.random.default_rng(0)
    attends = isinstance(layer, fn.Attention)
    a_in, delta = (jnp.asarray(draw.standard_normal((5, T, n))) for n in (3 * N if attends else N, N))
    params = jax.tree.map(lambda p: p + draw.standard_normal(p.shape), layer.init(jax.random.key(0), a_in.shape[1:]))
    _, cache = run_forward(layer, params, a_in, train=True)
    right = layer.propagate(params, cache, delta)
    if attends:
        return [(right, formulas.attention_errors(layer, a_in, None, delta))]
    of_gain = layer.gradients(params, cache, delta)["g"], formulas.gain_gradients(layer, cache, delta)
    return [(right, formulas.normalisation_errors(layer, params, cache, delta)), of_gain]


@pytest.mark.parametrize(
    "layer", [LAYER, TURNED, *thorough(RMS, GROUP, BATCH, ATTEND, fn.Attention(1, causal=False))], ids=repr
)
def test_each_mistake_is_told_from_the_others(layer):
    for right, mistakes in formulas_of(layer):
        mistakes = [(text, np.asarray(wrong)) for text, wrong in mistakes]
        assert len(mistakes) >= 2
        for text, wrong in mistakes:
            failure = Failure(
                wrong, np.asarray(right), 1e-8, 5, per_example=wrong.ndim > 1, ideas=lambda m=mistakes: iter(m)
            )
            if not failure.gives(right):  # one head is mixed up with no other, and a batch has one σ
                assert explain(failure).text == text
