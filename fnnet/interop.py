"""A layer or a network as an ordinary JAX function whose ``jax.vjp`` runs the hand-written equations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .layers._layer import Cache, Layer, Params, run_forward
from .network import check_key

__all__ = ["as_function", "manual_vjp"]


def as_function(net: Layer, *, train: bool = False) -> Callable[..., Array]:
    """The function (params, x, *, key=None, mask=None) -> a_out with the hand-written backward pass as its derivative.

    It composes with ``jit``, ``vmap``, ``scan``, ``remat`` and any ``jax.grad``, so a layer can be used inside a model of
    another library. The cotangent of a_out is ∂C/∂a_out as it comes, 1/m and all, and the equations are linear in it: the
    gradients of `Layer.backward`, which are means over the batch, are multiplied by m.

    Lost is forward mode (``jax.jvp``, ``jax.jacfwd``, ``jax.hessian``): for it, use ``net.forward(params, x)[0]``, which
    autodiff differentiates both ways.

    Args:
        net: a layer or a network.
        train: whether it runs in training mode; a net with dropout then needs a key.

    Raises:
        ValueError: for something that is no layer, and when called as ``net.apply`` and `fnnet.backprop` do.
    """
    if not isinstance(net, Layer):
        raise ValueError(f"as_function: expected a layer or a network, got {type(net).__name__}; see fn.layer")

    def run(params: Params, x: Array, key: Any, mask: Any) -> tuple[Array, Cache]:
        return run_forward(net, params, x, key=key, train=train, mask=mask)

    def forward(params: Params, x: Array, key: Any, mask: Any) -> tuple[Array, tuple[Params, Cache, Array]]:
        a, cache = run(params, x, key, mask)
        return a, (params, cache, x)

    def backward(kept: tuple[Params, Cache, Array], da: Array) -> tuple[Params, Array | None, None, None]:
        params, cache, x = kept
        da_in, grads = net.backward(params, cache, da)
        grads = jax.tree.map(lambda g, p: (da.shape[0] * g).astype(p.dtype), grads, params)
        return grads, da_in if jnp.issubdtype(x.dtype, jnp.floating) else None, None, None

    by_hand = jax.custom_vjp(lambda params, x, key, mask: run(params, x, key, mask)[0])
    by_hand.defvjp(forward, backward)

    def function(params: Params, x: Any, *, key: Any = None, mask: Any = None) -> Array:
        return by_hand(params, jnp.asarray(x), check_key(key), mask)

    return function


manual_vjp = as_function
