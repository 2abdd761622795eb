"""To and from other libraries: a network as an ordinary JAX function whose ``jax.vjp`` runs the hand-written equations, and
the weights of PyTorch's recurrent layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .activations import integers_as_floats
from .layers._cells import GRU
from .layers._layer import Cache, Layer, Params, as_array, check_key, check_leaf, run_forward
from .layers._recurrent import Recurrent

__all__ = ["as_function", "from_torch", "manual_vjp", "to_torch"]


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
        return by_hand(params, jnp.asarray(x), check_key(key), as_array(mask))

    return function


manual_vjp = as_function


def from_torch(cell: Recurrent, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Params:
    """The parameters of an RNN, LSTM or GRU from the arrays of PyTorch's (``weight_ih_l0`` and so on).

    The gates are in the same order. PyTorch's two biases are added, b = b_ih + b_hh; only the n part of a GRU's b_hh stays
    apart, as b_h.

    Args:
        cell: the layer.
        w_ih: (g·n, n_in), as arrays or anything NumPy reads.
        w_hh: (g·n, n).
        b_ih: (g·n,), or None for no biases.
        b_hh: (g·n,), or None.

    Raises:
        ValueError: for arrays of other shapes.
    """
    rows, n = _rows(cell)
    given = {"w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh}
    arrays = {name: integers_as_floats(a) for name, a in given.items() if a is not None}
    wanted = {"w_ih": (rows, None), "w_hh": (rows, n), "b_ih": (rows,), "b_hh": (rows,)}
    for name in ("w_ih", "w_hh", *arrays):
        check_leaf(cell, arrays, name, wanted[name])
    dtype = arrays["w_hh"].dtype
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    b_in, b_state = (arrays.get(name, jnp.zeros(rows, dtype)) for name in ("b_ih", "b_hh"))
    params = {"w_x": arrays["w_ih"], "w_h": arrays["w_hh"]}
    if not isinstance(cell, GRU):
        return {**params, "b": b_in + b_state}
    return {**params, "b": b_in.at[: 2 * n].add(b_state[: 2 * n]), "b_h": b_state[2 * n :]}


def to_torch(cell: Recurrent, params: Params) -> dict[str, Array]:
    """The arrays of PyTorch's layer from the parameters of an RNN, LSTM or GRU: the way back of `from_torch`, with b in b_ih.

    Args:
        cell: the layer.
        params: its parameters.

    Returns:
        {weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0}, the names of a one-layer ``state_dict``.
    """
    _, n = _rows(cell)
    cell.check_params(params)
    b_state = jnp.zeros_like(params["b"])
    if isinstance(cell, GRU):
        b_state = b_state.at[2 * n :].set(params["b_h"])
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return dict(zip(names, (params["w_x"], params["w_h"], params["b"], b_state), strict=True))


def _rows(cell: Any) -> tuple[int, int]:
    if not isinstance(cell, Recurrent):
        raise ValueError(
            f"expected an fn.RNN, fn.LSTM or fn.GRU, got {cell!r}; copy the arrays of other layers by hand"
        )
    return cell.n_gates * cell.n, cell.n
