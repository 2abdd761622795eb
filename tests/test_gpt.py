"""A tied GPT: its backward pass against autodiff's in compiled memory and operations, and its audit."""

import jax
import jax.numpy as jnp
import pytest

import fnnet as fn

from .cases import assert_agree, gpt, gpt_block, thorough

N, STEPS, VOCABULARY = 32, 32, 65


def written_out(block, n):
    return [block] * n


def repeated(block, n):
    return [fn.Repeat(block, n)]


def recomputed(block, n):
    return [fn.Repeat(fn.Recompute(block), n)]


def problem(body, layers=4):
    net = gpt(VOCABULARY, N, body(fn.Network(*gpt_block(N, fn.Attention(4))), layers))
    x = jax.random.randint(jax.random.key(1), (8, STEPS), 0, VOCABULARY)
    return net, net.init(jax.random.key(0), (STEPS,)), x, jnp.roll(x, -1, 1)


BODIES = [(repeated, 0.6, 1.05), *thorough((written_out, 0.75, 1.05), (recomputed, 0.2, 1.2))]


@pytest.mark.thorough
@pytest.mark.parametrize("given", BODIES, ids=lambda given: given[0].__name__)
def test_memory_and_operations(given):
    """Of autodiff of the same forward pass; a second forward pass costs operations."""
    body, memory, operations = given
    net, params, x, y = problem(body)
    params = jax.tree.map(lambda p: p.astype("float32"), params)
    by_hand = jax.jit(fn.value_and_grad(net, fn.log_likelihood, micro_batch=None)).lower(params, x, y).compile()
    autodiff = jax.jit(jax.value_and_grad(fn.objective(net, fn.log_likelihood))).lower(params, x, y).compile()
    sizes = [f.memory_analysis().temp_size_in_bytes for f in (by_hand, autodiff)]
    assert sizes[0] <= memory * sizes[1]
    assert by_hand.cost_analysis()["flops"] <= operations * autodiff.cost_analysis()["flops"]


@pytest.mark.thorough
@pytest.mark.parametrize("body", [written_out, repeated, recomputed])
def test_gradients_and_audit(body):
    net, params, x, y = problem(body, 2)
    by_hand = fn.value_and_grad(net, fn.log_likelihood)(params, x, y)
    assert_agree(by_hand, jax.value_and_grad(fn.objective(net, fn.log_likelihood))(params, x, y), 1e-12, scale=1.0)
    report = fn.compare_gradients(net, fn.log_likelihood, params, x[:2, :5], y[:2, :5])
    assert report.ok, str(report)
    assert len(report.rows) > 60
