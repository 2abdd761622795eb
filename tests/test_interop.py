"""A layer as an ordinary JAX function: its derivative is the hand-written one, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.layers._layer import run_forward

from .cases import FEW, assert_agree, thorough

KEY = jax.random.key(2)


def normal(seed, shape):
    return jax.device_put(np.random.default_rng(seed).standard_normal(shape))


def both(net, key=KEY):
    """The hand-written function and the plain one, of (params, x), in training mode."""
    by_hand = fn.as_function(net, train=True)
    return (
        lambda p, x: by_hand(p, x, key=key),
        lambda p, x: run_forward(net, p, x, key=key, train=True)[0],
    )


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_its_derivative_is_autodiffs(case):
    wanted = 0 if case.tokens else (0, 1)

    def gradient(f):
        return jax.grad(lambda p, x: jnp.sum(jnp.sin(f(p, x))), wanted)

    by_hand, plain = map(gradient, both(case.layer))
    gradients = jax.jit(lambda p, x: (by_hand(p, x), plain(p, x)))(case.params(float), case.inputs(3, float))
    assert_agree(*gradients, 1e-10, zero=isinstance(case.layer, fn.BatchNorm))  # of its statistics


def network():
    net = fn.Network(
        fn.Conv(3, 3, fn.tanh), fn.MaxPool(2), fn.Dropout(0.3), fn.Network(fn.Flatten(), fn.Dense(4, fn.sigmoid))
    )
    return net, net.init(KEY, (8, 8, 1)), normal(1, (3, 5, 8, 8, 1))


@pytest.mark.parametrize(
    "cost",
    [
        lambda f: lambda p, xs: jnp.mean(f(p, xs[0]) ** 2),
        *thorough(
            lambda f: lambda p, xs: jnp.mean(jax.checkpoint(f)(p, xs[0]) ** 2),
            lambda f: lambda p, xs: jnp.sum(jax.vmap(f, (None, 0))(p, xs) ** 3),
            lambda f: lambda p, xs: jax.lax.scan(lambda c, x: (c * jnp.sum(f(p, x) ** 2), None), jnp.ones(()), xs)[0],
        ),
        lambda f: lambda p, xs: jnp.sum(f(jax.tree.map(jnp.sin, p), f(p, xs[0])[:, :1, None, None] * xs[1])),
    ],
    ids=["grad", "remat", "vmap", "scan", "twice"],
)
def test_it_composes(cost):
    net, params, xs = network()
    by_hand, plain = (jax.jit(jax.grad(cost(f)))(params, xs) for f in both(net))
    assert_agree(by_hand, plain, 1e-10)


def test_the_hand_written_rule_runs():
    @fn.layer
    class Doubled(fn.Dense):
        def gradients(self, params, cache, delta):
            return jax.tree.map(lambda g: 2 * g, super().gradients(params, cache, delta))

    wrong, right = Doubled(3, fn.tanh), fn.Dense(3, fn.tanh)
    params, x = right.init(KEY, (4,)), normal(0, (5, 4))
    twice, once = (jax.grad(lambda p, net=net: jnp.sum(fn.manual_vjp(net)(p, x)))(params) for net in (wrong, right))
    assert_agree(twice, jax.tree.map(lambda g: 2 * g, once), 1e-12)


def test_integer_inputs_and_inference_mode():
    net = fn.Network(fn.Dense(3, fn.tanh), fn.Dropout(0.5))
    params, x = net.init(KEY, (4,)), jnp.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(fn.as_function(net)(params, x), net.apply(params, x))
    by_hand, plain = (
        jax.grad(lambda p, f=f: jnp.sum(f(p)))(params)
        for f in (lambda p: fn.as_function(net)(p, x), lambda p: run_forward(net, p, x)[0])
    )
    assert_agree(by_hand, plain, 1e-12)


def test_bad_input_is_a_clear_error():
    with pytest.raises(ValueError, match=r"as_function: expected a layer or a network, got .*; see"):
        fn.as_function(jnp.tanh)
    net, params, xs = network()
    with pytest.raises(ValueError, match=r"layer 2 Dropout\(0\.3\): expected a key while training"):
        fn.as_function(net, train=True)(params, xs[0])
    with pytest.raises(ValueError, match="key: expected one PRNG key, got int 3"):
        fn.as_function(net)(params, xs[0], key=3)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: fn.as_function(net)(params, x), (xs[0],), (xs[1],))


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_forward_mode_of_its_gradient(case):
    """jax.jvp of jax.grad, and so jax.hessian: the tangent of the hand-written equations."""

    def product(f, params, x, v):
        return jax.jvp(jax.grad(lambda p: jnp.sum(jnp.sin(f(p, x)))), (params,), (v,))[1]

    params, x = case.params(float), case.inputs(3, float)
    v = jax.tree.map(jnp.sin, params)
    ours, wanted = jax.jit(lambda *given: tuple(product(f, *given) for f in both(case.layer)))(params, x, v)
    assert_agree(ours, wanted, 1e-10, zero=isinstance(case.layer, fn.BatchNorm))  # of its statistics


def test_hessian():
    net = fn.Network(fn.Dense(2, fn.tanh), fn.Dense(1, fn.sigmoid))
    params, x = net.init(KEY, (2,)), normal(0, (3, 2))
    by_hand, plain = (jax.jit(jax.hessian(lambda p, f=f: jnp.sum(jnp.sin(f(p, x)))))(params) for f in both(net))
    assert_agree(by_hand, plain, 1e-10)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda p: both(net)[0](p, x), (params,), (params,))


def inside(function, transform):
    """x -> a by ``function``, under one of the transformations that a model of another library may use."""
    return {
        "plain": lambda p, x: function(p, x),
        "remat": lambda p, x: jax.checkpoint(function)(p, x),
        "vmap": lambda p, x: jax.vmap(function, (None, 0))(p, x[:, None])[:, 0],
        "scan": lambda p, x: jax.lax.scan(lambda _, row: (None, function(p, row[None])[0]), None, x)[1],
    }[transform]


TRANSFORMS = ("plain", "remat", "vmap", "scan")


def inner_network():
    net = fn.Network(fn.Conv(3, 3, fn.tanh), fn.MaxPool(2), fn.Flatten(), fn.Dense(4, fn.sigmoid))
    return net, normal(1, (5, 8, 8, 1))


@pytest.mark.thorough
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_inside_flax(transform):
    linen = pytest.importorskip("flax.linen")
    net, x = inner_network()

    class Model(linen.Module):
        by_hand: bool

        @linen.compact
        def __call__(self, x):
            params = self.param("net", lambda key: net.init(key, x.shape[1:]))
            function = fn.as_function(net) if self.by_hand else lambda p, x: net.forward(p, x)[0]
            return linen.Dense(2, param_dtype=x.dtype)(inside(function, transform)(params, x))

    variables = Model(True).init(KEY, x)

    def gradient(model):
        return jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(model.apply(v, x)))))(variables)

    assert_agree(gradient(Model(True)), gradient(Model(False)), 1e-10)


@pytest.mark.thorough
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_inside_equinox(transform):
    eqx = pytest.importorskip("equinox")
    net, x = inner_network()

    class Model(eqx.Module):
        params: tuple
        head: eqx.nn.Linear
        by_hand: bool = eqx.field(static=True)

        def __call__(self, x):
            function = fn.as_function(net) if self.by_hand else lambda p, x: net.forward(p, x)[0]
            return jax.vmap(self.head)(inside(function, transform)(self.params, x))

    params = net.init(KEY, x.shape[1:])
    by_hand, plain = (
        eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(jnp.sin(m(x)))))(
            Model(params, eqx.nn.Linear(4, 2, key=KEY), choice)
        )
        for choice in (True, False)
    )
    assert_agree(*(jax.tree.leaves(eqx.filter(g, eqx.is_array)) for g in (by_hand, plain)), 1e-10)
