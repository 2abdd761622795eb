"""The mutation study of recurrence: the usual mistakes of backpropagation through time. The audit's first line has to name
the equation and the leaf, and its hint the mistake.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.layers._layer import run_forward

from .test_mutants import Mutant, on

M, T, N = 5, 4, 3
RNN, GRU, LSTM = fn.RNN(N), fn.GRU(N), fn.LSTM(N)


def states(layer, params, cache):
    return run_forward(type(layer).__mro__[1](N), params, cache.x, train=True)[0]


def through_time(transposed=True, sign=1.0, derivative=True):
    """δ_t = (da_t ± δ_{t+1} w_h) ⊙ (1 − h_t²), by hand."""

    def mistake(layer, right, params, cache, da):
        h = states(layer, params, cache)
        w, later, found = params["w_h"] if transposed else params["w_h"].T, jnp.zeros_like(da[:, 0]), []
        for t in reversed(range(T)):
            later = (da[:, t] + sign * later @ w) * (1 - h[:, t] ** 2 if derivative else 1)
            found.append(later)
        return jnp.stack(found[::-1], 1)

    return mistake


def of_other_states(w_h, params, cache, delta):
    h = states(RNN_PLANTED, params, cache)
    return jnp.einsum("mtj,mtk->jk", delta, h) / M


RNN_PLANTED = Mutant("", RNN, "gradients", "['w_h']", lambda layer, right, *rest: right, "").planted()


def of_last_step(b, params, cache, delta):
    return jnp.sum(delta[:, -1], 0) / M


@fn.layer
class Gated:
    """a = s ⊙ x + (1 − s) ⊙ v with s = σ(g ⊙ x)."""

    sign: float = 1.0
    gate: float = 1.0

    def init(self, key, input_shape):
        return {"g": jax.random.normal(key, input_shape), "v": jnp.ones(input_shape)}

    def forward(self, params, a_in, *, probe=None):
        s = jax.nn.sigmoid(params["g"] * a_in)
        a = s * a_in + (1 - s) * params["v"]
        return a if probe is None else a + probe, (a_in, s)

    def propagate(self, params, cache, delta):
        a_in, s = cache
        d_s = (a_in - self.sign * params["v"]) * s * (1 - s)
        return delta * (s + self.gate * d_s * params["g"])

    def gradients(self, params, cache, delta):
        a_in, s = cache
        d_g = delta * (a_in - params["v"]) * s * (1 - s) * a_in
        return {"g": jnp.mean(d_g, 0), "v": jnp.mean(delta * (1 - s), 0)}


@pytest.mark.parametrize(
    ("layer", "hint"),
    [
        (Gated(sign=-1.0), r"wrong sign of the path through `\(1 - s\) \* params"),
        (Gated(gate=0.0), "left out: the path through logistic of `jax.nn.sigmoid"),
        (Gated(gate=2.0), "counted twice: the path through logistic of `jax.nn.sigmoid"),
    ],
    ids=["a term's sign", "the gate held fixed", "the gate twice"],
)
def test_one_of_several_added_terms_of_an_own_layer(layer, hint):
    draw = np.random.default_rng(0)
    params = {name: jnp.asarray(draw.standard_normal(N)) for name in "gv"}
    report = fn.check_layer(layer, params, draw.standard_normal((M, N)))
    top = report.rows[0]
    assert (top.equation, top.verdict) == ("propagate", "fail"), str(report)
    assert re.search(hint, top.hint), f"{top.hint!r}\n{report}"


MUTANTS = [
    Mutant("RNN error: no later steps", RNN, "error", "", through_time(sign=0.0), "left out.*at every step"),
    Mutant("RNN error: sign of later steps", RNN, "error", "", through_time(sign=-1.0), "wrong sign.*at every step"),
    Mutant("RNN error: w_h transposed", RNN, "error", "", through_time(transposed=False), "states.*transpose"),
    Mutant("RNN error: no σ'", RNN, "error", "", through_time(derivative=False), "derivative of .*tanh.* is missing"),
    Mutant("RNN error: σ' only", RNN, "error", "", lambda layer, right, params, cache, da: da, "σ' is missing"),
    Mutant("RNN error: time reversed", RNN, "error", "", lambda layer, right, *rest: right[:, ::-1], "reversed along axis 1"),
    Mutant("RNN error: a step late", RNN, "error", "",
        lambda layer, right, *rest: jnp.roll(right, 1, 1).at[:, 0].set(0), "off by one along axis 1"),
    Mutant("RNN gradients: h_t for h_{t−1}", RNN, "gradients", "['w_h']", on("w_h", of_other_states),
        "the new state stands where the state before belongs"),
    Mutant("RNN gradients: w_h transposed", RNN, "gradients", "['w_h']", on("w_h", lambda g, *rest: g.T), "transposed"),
    Mutant("RNN gradients: the last step's b", RNN, "gradients", "['b']", on("b", of_last_step), "only the last step"),
    Mutant("RNN gradients: the mean over the steps", RNN, "gradients", "['b']", on("b", lambda g, *rest: g / T),
        "number of steps"),
    Mutant("RNN propagate: w_x transposed", RNN, "propagate", "",
        lambda layer, right, params, cache, delta: delta @ params["w_x"].T, "transpose"),
    Mutant("GRU error: time reversed", GRU, "error", "", lambda layer, right, *rest: right[:, ::-1], "reversed along axis 1"),
    Mutant("LSTM gradients: the last step's b", LSTM, "gradients", "['b']", on("b", of_last_step), "only the last step"),
]  # fmt: skip
BY_DEFAULT = {"RNN error: no later steps", "RNN gradients: h_t for h_{t−1}"}


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.name, marks=() if m.name in BY_DEFAULT else pytest.mark.thorough) for m in MUTANTS],
)
def test_a_mutant_of_recurrence_is_named_and_explained(mutant):
    layer, draw = mutant.planted(), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), (T, N)))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * draw.standard_normal(leaf.shape)), shapes)
    report = fn.check_layer(layer, params, draw.standard_normal((M, T, N)))
    top = report.rows[0]
    assert (top.equation, top.leaf, top.verdict) == (mutant.equation, mutant.leaf, "fail"), str(report)
    assert re.search(mutant.hint, top.hint), f"{top.hint!r}\n{report}"
