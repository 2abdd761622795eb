"""The machine itself: its energies, what one side's units say of the other's, and samples of both.

Legend, parameters and E(v, h) as in `fnnet.rbm`. Source: Smolensky (1986); Hinton (2010), a practical guide.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from ..activations import at_least_float32, on_last_axis, sigmoid_function, wide_dtype
from ..forms import stored
from ..given import whole
from ..layers._layer import as_array, check_key

__all__ = [
    "data_biases",
    "draw",
    "energy",
    "free_energy",
    "gibbs",
    "hidden_inputs",
    "hidden_probabilities",
    "init",
    "reconstruct",
    "reconstruction_error",
    "sample_hidden",
    "sample_visible",
    "visible_inputs",
    "visible_means",
]

Params = dict[str, Array]
Visible = Literal["bernoulli", "gaussian"]

jit: functools.partial[Callable[..., Any]] = functools.partial(jax.jit, static_argnames="visible")


@jax.transfer_guard("allow")  # its constants
def init(key: Array, n_visible: int, n_hidden: int, *, data: Any = None, std: float = 0.01) -> Params:
    """w ~ N(0, std²), c = 0, and b = 0, or the `data_biases` of ``data`` (for Bernoulli visible units).

    Raises:
        ValueError: for numbers of units that are not positive integers, or data of another width or outside [0, 1].
    """
    check_given("rbm.init", key)
    for name, value in (("n_visible", n_visible), ("n_hidden", n_hidden)):
        whole("rbm.init", name, value)
    dtype = jnp.result_type(float)
    b = jnp.zeros(n_visible, dtype) if data is None else data_biases(data).astype(dtype)
    if b.shape != (n_visible,):
        raise ValueError(
            f"rbm.init: expected data (m, {n_visible}) for n_visible={n_visible}, got {b.shape[0]} columns"
        )
    w = jnp.asarray(std, dtype) * jax.random.normal(key, (n_hidden, n_visible), dtype)
    return {"w": w, "b": b, "c": jnp.zeros(n_hidden, dtype)}


def data_biases(data: Any) -> Array:
    """ln(p/(1 − p)) for the mean p of each unit over the data, kept within [0.01, 0.99]: the visible biases of a machine
    without weights that fits 0/1 data best. Shapes (m, n_v) -> (n_v,). Source: Hinton (2010), section 8.

    Raises:
        ValueError: for an empty batch, or data outside [0, 1].
    """
    data = _check_values("rbm.data_biases", "data", data, "bernoulli")
    p = jnp.clip(jnp.mean(data, axis=0, dtype=jnp.result_type(float)), 0.01, 0.99)
    return jnp.log(p) - jnp.log1p(-p)


@jax.jit
def hidden_inputs(params: Params, v: Array) -> Array:
    """c_j + Σ_i w_ji v_i, at least in float32. Shapes (m, n_v) -> (m, n_h)."""
    check_units(params, "v", v, 1)
    return _product("...i,ji->...j", v, params["w"]) + on_last_axis(at_least_float32(params["c"]), v.ndim)


@jax.jit
def visible_inputs(params: Params, h: Array) -> Array:
    """b_i + Σ_j h_j w_ji, at least in float32. Shapes (m, n_h) -> (m, n_v)."""
    check_units(params, "h", h, 0)
    return _product("...j,ji->...i", h, params["w"]) + on_last_axis(at_least_float32(params["b"]), h.ndim)


def _product(equation: str, units: Array, w: Array) -> Array:
    return jnp.einsum(equation, units.astype(w.dtype), w, preferred_element_type=wide_dtype(w.dtype))


@jit
def energy(params: Params, v: Array, h: Array, *, visible: Visible = "bernoulli") -> Array:
    """E(v, h) = −b·v − c·h − h w vᵀ in nats; the first term is ½‖v − b‖² for Gaussian visible units. Shape (m,)."""
    check_units(params, "h", h, 0)
    z = hidden_inputs(params, v)
    return visible_energy(params["b"], v, visible) - jnp.sum(z * h.astype(z.dtype), axis=-1)


@jit
def free_energy(params: Params, v: Array, *, visible: Visible = "bernoulli") -> Array:
    """F(v) = −ln Σ_h e^{−E(v, h)} = −b·v − Σ_j ln(1 + e^{c_j + w_j·v}) in nats; the first term is ½‖v − b‖² for Gaussian
    visible units. Shapes (m, n_v) -> (m,).
    """
    z = hidden_inputs(params, v)
    return visible_energy(params["b"], v, visible) - jnp.sum(jax.nn.softplus(z), axis=-1)


def visible_energy(b: Array, v: Array, visible: Visible) -> Array:
    """The part of E that is the visible units' own."""
    check_kind(visible)
    b = on_last_axis(at_least_float32(b), v.ndim)
    if visible == "gaussian":
        return jnp.sum((v.astype(b.dtype) - b) ** 2, axis=-1) / 2
    return -jnp.sum(b * v.astype(b.dtype), axis=-1)


@jax.jit
def hidden_probabilities(params: Params, v: Array) -> Array:
    """p(h_j = 1 | v) = s(c_j + w_j·v). Shapes (m, n_v) -> (m, n_h)."""
    return sigmoid_function(hidden_inputs(params, v))


@jit
def visible_means(params: Params, h: Array, *, visible: Visible = "bernoulli") -> Array:
    """E[v_i | h] = s(b_i + Σ_j h_j w_ji), without s for Gaussian visible units. Shapes (m, n_h) -> (m, n_v)."""
    check_kind(visible)
    z = visible_inputs(params, h)
    return z if visible == "gaussian" else sigmoid_function(z)


@jax.jit
def draw(key: Array, p: Array) -> Array:
    """1 with probability p, else 0: a float32 uniform below p, the same with and without x64."""
    wide = at_least_float32(p)
    return (jax.random.uniform(key, p.shape, jnp.float32).astype(wide.dtype) < wide).astype(p.dtype)


@jax.jit
def sample_hidden(params: Params, key: Array, v: Array) -> Array:
    """h drawn from p(h | v). Shapes (m, n_v) -> (m, n_h)."""
    return draw(key, hidden_probabilities(params, v))


@jit
def sample_visible(params: Params, key: Array, h: Array, *, visible: Visible = "bernoulli") -> Array:
    """v drawn from p(v | h). Shapes (m, n_h) -> (m, n_v)."""
    mean = visible_means(params, h, visible=visible)
    return mean + jax.random.normal(key, mean.shape, mean.dtype) if visible == "gaussian" else draw(key, mean)


@jit
def reconstruct(params: Params, v: Array, *, visible: Visible = "bernoulli") -> Array:
    """E[v | h] with h = p(h | v): up and down once, without sampling. Shapes (m, n_v) -> (m, n_v)."""
    return visible_means(params, hidden_probabilities(params, v), visible=visible)


@jit
def reconstruction_error(params: Params, v: Array, *, visible: Visible = "bernoulli") -> Array:
    """(1/m) Σ_x ‖v − E[v | h]‖² with h = p(h | v); a scalar."""
    check_batch(v)
    return jnp.mean(reconstruction_errors(params, v, visible=visible))


def reconstruction_errors(params: Params, v: Array, *, visible: Visible) -> Array:
    """‖v − E[v | h]‖² of each example. Shapes (m, n_v) -> (m,)."""
    back = reconstruct(params, v, visible=visible)
    return jnp.sum((v.astype(back.dtype) - back) ** 2, axis=-1)


class Step(NamedTuple):
    """Where a chain is: v, p(h | v) and h drawn from it."""

    v: Array
    p: Array
    h: Array


@jit
def gibbs_steps(params: Params, key: Array, h: Array, k: Any, *, visible: Visible) -> Step:
    """k steps from h on: v ~ p(v | h), then h ~ p(h | v). The last one stands outside the loop, where XLA can fuse it."""

    def step(h: Array, i: Any) -> Step:
        visible_key, hidden_key = jax.random.split(jax.random.fold_in(key, i))
        v = stored(sample_visible(params, visible_key, h, visible=visible))
        p = stored(hidden_probabilities(params, v))
        return Step(v, p, draw(hidden_key, p))

    h, k = h.astype(wide_dtype(params["w"].dtype)), jnp.asarray(k).astype(jnp.int32)
    return step(jax.lax.fori_loop(0, k - 1, lambda i, h: step(h, i).h, h), k - 1)


def gibbs(params: Params, key: Array, v: Array, *, k: int = 1, visible: Visible = "bernoulli") -> Array:
    """v after k steps of Gibbs sampling: h ~ p(h | v), then v ~ p(v | h), k times. Shapes (m, n_v) -> (m, n_v).

    Raises:
        ValueError: for k < 1.
    """
    check_given("rbm.gibbs", key)
    return _gibbs(params, key, as_array(v), as_array(whole("rbm.gibbs", "k", k)), visible=visible)


@jit
def _gibbs(params: Params, key: Array, v: Array, k: Any, *, visible: Visible) -> Array:
    first, key = jax.random.split(key)
    return gibbs_steps(params, key, sample_hidden(params, first, v), k, visible=visible).v


def check_given(function: str, key: Any) -> None:
    """Raise a ValueError unless it is a PRNG key."""
    if check_key(key) is None:
        raise ValueError(f"{function}: expected a key to draw with, got None; make one with jax.random.key(seed)")


def check_kind(visible: Any) -> None:
    """Raise a ValueError unless visible is one of the two kinds."""
    if visible not in ("bernoulli", "gaussian"):
        raise ValueError(f"rbm: expected visible='bernoulli' or 'gaussian', got {visible!r}")


def check_batch(v: Any) -> None:
    if not hasattr(v, "ndim") or v.ndim != 2 or v.shape[0] == 0:
        raise ValueError(
            f"rbm: expected a batch (m, n_v) of at least one example, got {_shape(v)}; flatten images with "
            f"x.reshape(len(x), -1)"
        )


def _shape(a: Any) -> str:
    return f"shape {a.shape}" if hasattr(a, "shape") else type(a).__name__


def check_machine(params: Any, owner: str = "rbm") -> None:
    """Raise a ValueError unless params are {w (n_h, n_v), b (n_v), c (n_h)}."""
    is_dict = isinstance(params, dict)
    got = {name: _shape(leaf) for name, leaf in params.items()} if is_dict else type(params).__name__
    fits = is_dict and params.keys() == {"w", "b", "c"} and all(hasattr(leaf, "shape") for leaf in params.values())
    if not fits or params["w"].ndim != 2 or params["w"].shape != params["c"].shape + params["b"].shape:
        raise ValueError(
            f"{owner}: expected parameters {{w (n_h, n_v), b (n_v), c (n_h)}}, got {got}; make them with rbm.init"
        )
    for name, leaf in params.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{owner}: expected parameters of a float dtype, got {leaf.dtype} for {name}; convert it")


def check_units(params: Any, name: str, units: Array, axis: int) -> None:
    """Raise a ValueError unless params are a machine's, and units as many as its w has along an axis."""
    check_machine(params)
    if not hasattr(units, "ndim") or units.ndim == 0 or units.shape[-1] != params["w"].shape[axis]:
        which = "hidden" if axis == 0 else "visible"
        raise ValueError(
            f"rbm: expected {name} with the machine's {params['w'].shape[axis]} {which} units on the last axis, got "
            f"{_shape(units)}; flatten images to (m, n_v) with x.reshape(len(x), -1)"
        )
    if jnp.issubdtype(units.dtype, jnp.complexfloating):
        raise ValueError(
            f"rbm: expected real {name}, got {units.dtype}; real and imaginary parts are units of their own"
        )


def check_data(function: str, name: str, params: Params, data: Any, visible: Visible) -> Array:
    """Data as an array, or a ValueError where its shape or its values do not suit the machine."""
    check_kind(visible)
    data = as_array(data)
    check_units(params, name, data, 1)
    return _check_values(function, name, data, visible)


_range = jax.jit(lambda data: (jnp.min(data), jnp.max(data)))
_all_finite = jax.jit(lambda data: jnp.all(jnp.isfinite(data)))


def _check_values(function: str, name: str, data: Any, visible: Visible) -> Array:
    data = as_array(data)
    check_batch(data)
    if isinstance(data, Tracer):
        return data
    with jax.ensure_compile_time_eval():  # data that a function under jit closes over is concrete
        seen = jax.device_get((_all_finite if visible == "gaussian" else _range)(data))
    if visible == "gaussian":
        if not seen:
            raise ValueError(f"{function}: expected finite {name}, got NaN or infinity")
        return data
    low, high = map(float, seen)
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{function}: expected {name} from 0 to 1 for Bernoulli visible units, got values from {low:.4g} to {high:.4g}; "
            f"scale it, or standardise it and use visible='gaussian'"
        )
    return data
