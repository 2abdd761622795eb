"""What stands in for BP2: the published rules of credit assignment, for ``fn.Swapped(net, rule)``.

Legend: m examples (axis 0), δ the error of a layer, w its weights, B what BP2 multiplies with in their place, δ^L the error
of the output; a_in a layer's input, z its weighted input. BP1, BP3 and BP4 are those of the network under every rule.

A weight is a leaf whose last key is ``w`` or starts with ``w_``. Arrays that a rule never changes have other names ("B_w"),
so that neither L2 nor the weight decay of ``adamw`` acts on them, and their gradient is 0.

Source: named at each rule.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from .activations import Activation, at_least_float32, linear, wide_dtype
from .initializers import Initializer, glorot_uniform, scaled_normal
from .layers._attention import Position
from .layers._conv import Convolution
from .layers._dense import Dense, bias_gradient, biased
from .layers._embedding import Embedding
from .layers._layer import Cache, Delta, Layer, LayerError, Params, Shape, batch_key, check_activation, example_keys
from .layers._swapped import Rule
from .penalties import is_weight

__all__ = [
    "Clip",
    "DirectFeedback",
    "EProp",
    "FeedbackAlignment",
    "KolenPollack",
    "Noise",
    "SignSymmetry",
    "TargetPropagation",
]

NORMAL, GLOROT = scaled_normal(), glorot_uniform()
WITHOUT_PRODUCT = (Embedding, Position)
"""Layers with weights that BP2 does not multiply with."""


def _name(path: tuple[Any, ...]) -> str:
    """The last key of a path first, since it says what is a weight: "w", "w_x", "w_cell"."""
    keys = [keystr((key,), simple=True) for key in path]
    return "_".join([keys[-1], *keys[:-1]])


def _weights(layer: Layer, params: Params) -> dict[str, Array]:
    """The weights that BP2 multiplies with, by name."""
    if isinstance(layer, WITHOUT_PRODUCT):
        return {}
    return {_name(path): leaf for path, leaf in tree_leaves_with_path(params) if is_weight(path)}


def _replaced(params: Params, weights: dict[str, Array]) -> Params:
    """The parameters with other weights; the same object where there are none."""
    if not weights:
        return params
    return tree_map_with_path(lambda path, leaf: weights.get(_name(path), leaf), params)


def _axes(shape: Shape) -> tuple[int, int]:
    """The axes of a weight's inputs and outputs: (n_out, n_in) of a matrix, (..., c_in, c_out) of kernels."""
    return (-1, 0) if len(shape) == 2 else (-2, -1)


def _drawn(key: Array, weight_init: Initializer, weights: dict[str, Array]) -> dict[str, Array]:
    """An array like each of the weights, drawn as a layer draws its own."""

    def draw(k: Array, w: Array) -> Array:
        shape = (1,) * (2 - jnp.ndim(w)) + jnp.shape(w)
        return weight_init(k, shape, jnp.result_type(w), *_axes(shape)).reshape(jnp.shape(w))

    keys = jax.random.split(key, max(1, len(weights)))
    return {name: draw(k, w) for k, (name, w) in zip(keys, weights.items(), strict=False)}


def _has_error(delta: Any) -> Array:
    """Which examples have an error other than 0, (m, 1, ...): not those of weight 0."""
    return jnp.any(delta != 0, axis=tuple(range(1, jnp.ndim(delta))), keepdims=True)


def _check_initializer(rule: Rule, weight_init: Any) -> None:
    if not isinstance(weight_init, Initializer):
        remedy = "give one of fn.initializers, such as fn.initializers.scaled_uniform()"
        raise LayerError(rule, "an initialiser", repr(weight_init), remedy)


def _check_number(rule: Rule, name: str, value: Any, *, above_zero: bool) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not (value > 0 if above_zero else 0 <= value < math.inf):
        wanted = f"a positive {name}" if above_zero else f"a {name} of 0 or more"
        raise LayerError(rule, wanted, repr(value), f"give {name} as a number")


@dataclass(frozen=True, repr=False)
class FeedbackAlignment(Rule):
    """BP2 with fixed random weights: ∂C/∂a_in = δ B, in a recurrent layer also from step to step, B shaped like w.

    Arrays {"B_w"}, or {"B_w_x", "B_w_h"}: one for each weight that BP2 multiplies with. They never change. What is no weight
    (the gain of a norm) stays as it is.

    Args:
        weight_init: initialiser of B, whose n_in is the layer's. Nøkland (2016) draws it uniformly on ±1/√n_in,
            ``fn.initializers.scaled_uniform()``; his fan_out is that of B, which leads from n_out to n_in.

    Source: Lillicrap et al. (2016).
    """

    weight_init: Initializer = NORMAL

    def __post_init__(self) -> None:
        _check_initializer(self, self.weight_init)

    def init(self, key: Array, layer: Layer, params: Params, input_shape: Shape, n_top: int) -> dict[str, Array]:
        drawn = _drawn(key, self.weight_init, _weights(layer, params))
        return {f"B_{name}": b for name, b in drawn.items()}

    def weights(self, layer: Layer, params: Params, back: Params) -> Params:
        return _replaced(params, {name.removeprefix("B_"): b for name, b in back.items()})

    def _neutral(self, layer: Layer, params: Params, back: Params) -> Any:
        return {f"B_{name}": w for name, w in _weights(layer, params).items()}


@dataclass(frozen=True, repr=False)
class SignSymmetry(Rule):
    """BP2 with the signs of the weights and other magnitudes: ∂C/∂a_in = δ (M ⊙ sign(w)), M ≥ 0.

    - "uSF", uniform: M = √(2 / (n_in + n_out)), the standard deviation of Glorot's initialiser. No arrays.
    - "brSF", random in each batch: M = |a draw of ``weight_init``|, drawn anew in each call, which needs a key. No arrays.
    - "frSF", random and fixed: M is drawn once. Arrays {"M_w"} and so on, which never change.

    Args:
        kind: one of these.
        weight_init: of M, before its absolute value.

    Source: Liao, Leibo and Poggio (2016); the scale of "uSF" is that of Moskovitz et al. (2018) and of Sanfiz and Akrout's
    BioTorch (2021), as are absolute values of M.
    """

    kind: Literal["uSF", "brSF", "frSF"] = "uSF"
    weight_init: Initializer = GLOROT

    def __post_init__(self) -> None:
        _check_initializer(self, self.weight_init)
        if self.kind not in ("uSF", "brSF", "frSF"):
            raise LayerError(self, 'a kind "uSF", "brSF" or "frSF"', repr(self.kind), 'as in fn.SignSymmetry("frSF")')

    @property
    def draws(self) -> bool:
        return self.kind == "brSF"

    def init(self, key: Array, layer: Layer, params: Params, input_shape: Shape, n_top: int) -> dict[str, Array]:
        if self.kind != "frSF":
            return {}
        drawn = _drawn(key, self.weight_init, _weights(layer, params))
        return {f"M_{name}": jnp.abs(m) for name, m in drawn.items()}

    def weights(self, layer: Layer, params: Params, back: Params, *, key: Any = None) -> Params:
        weights = _weights(layer, params)
        if self.kind == "uSF":
            size = {name: _glorot_deviation(jnp.shape(w)) for name, w in weights.items()}
        elif self.kind == "brSF":
            size = jax.tree.map(jnp.abs, _drawn(batch_key(key), self.weight_init, weights))
        else:
            size = {name.removeprefix("M_"): m for name, m in back.items()}
        return _replaced(params, {name: size[name] * jnp.sign(w) for name, w in weights.items()})

    def _neutral(self, layer: Layer, params: Params, back: Params) -> Any:
        magnitudes = {f"M_{name}": jnp.abs(w) for name, w in _weights(layer, params).items()}
        return magnitudes if self.kind == "frSF" else None


def _glorot_deviation(shape: Shape) -> float:
    shape = (1,) * (2 - len(shape)) + shape
    into, out_of = _axes(shape)
    return math.sqrt(2 / (math.prod(shape) / shape[into] + math.prod(shape) / shape[out_of]))


@dataclass(frozen=True, repr=False)
class KolenPollack(Rule):
    """BP2 with weights B that learn by the gradient of w: ∂C/∂a_in = δ B, ∂C/∂B := ∂C/∂w.

    Both take the same steps, and L2 makes both forget where they started: under ``sgd`` with ``fn.L2(λ)`` the gap w − B
    shrinks by the factor 1 − ηλ/N with each step. Without a penalty it stays as it is. Arrays {"w"}, or {"w_x", "w_h"}: named
    as weights, so that L2 takes them for such. Tied places have a B each, which learns by its own place's gradient while w
    learns by the sum over them: they do not come together.

    Args:
        weight_init: initialiser of B.

    Source: Kolen and Pollack (1994); Akrout et al. (2019).
    """

    weight_init: Initializer = NORMAL

    def __post_init__(self) -> None:
        _check_initializer(self, self.weight_init)

    def init(self, key: Array, layer: Layer, params: Params, input_shape: Shape, n_top: int) -> dict[str, Array]:
        return _drawn(key, self.weight_init, _weights(layer, params))

    def weights(self, layer: Layer, params: Params, back: Params) -> Params:
        return _replaced(params, back)

    def learn(self, layer: Layer, params: Params, back: Params, cache: Cache, delta: Delta) -> dict[str, Array]:
        gradients = _weights(layer, layer.gradients(params, cache, delta))
        return {name: gradients[name] for name in back}

    def _neutral(self, layer: Layer, params: Params, back: Params) -> Any:
        return _weights(layer, params)


@dataclass(frozen=True, repr=False)
class DirectFeedback(Rule):
    """Direct feedback alignment: below each layer with parameters ∂C/∂a_in = δ^L B, whatever δ the layer has.

    Arrays {"B" (n_top, *input_shape)}, fixed, n_top the units of δ^L. Layers without parameters pass on what they get, as
    ever. Where δ^L and a_in are sequences of the same T steps, the error of each step goes to that step, δ^L_t B_t.

    Args:
        weight_init: initialiser of B, whose n_in is the number of entries of a_in. Nøkland draws B uniformly on ±1/√n_in,
            ``fn.initializers.scaled_uniform()``.

    Raises:
        LayerError: where no single layer gives the output of the `Swapped` network, or its δ is of another shape.

    Source: Nøkland (2016).
    """

    weight_init: Initializer = NORMAL

    def __post_init__(self) -> None:
        _check_initializer(self, self.weight_init)

    def init(self, key: Array, layer: Layer, params: Params, input_shape: Shape, n_top: int) -> dict[str, Array]:
        leaves = jax.tree.leaves(params)
        if not leaves or isinstance(layer, Embedding):
            return {}
        shape = (n_top, *input_shape)
        return {"B": self.weight_init(key, shape if len(shape) > 1 else (n_top, 1), leaves[0].dtype).reshape(shape)}

    def propagate(
        self, layer: Layer, params: Params, back: Params, cache: Cache, delta: Delta, top: Delta
    ) -> Array | None:
        if not back:
            return layer.propagate(params, cache, delta)
        b = back["B"]
        if top is None:
            remedy = "end the network inside fn.Swapped with a layer whose output is the network's, such as fn.Dense"
            raise LayerError(
                layer, "the error of one last layer, for DirectFeedback", "an output made of several", remedy
            )
        if jnp.ndim(top) == 2 and top.shape[1] == b.shape[0]:
            return jnp.einsum("mj,j...->m...", top, b)
        if jnp.ndim(top) == 3 and jnp.ndim(b) == 3 and top.shape[1:] == (b.shape[1], b.shape[0]):
            return jnp.einsum("mtj,jtk->mtk", top, b)
        wanted = f"δ^L of shape (m, {b.shape[0]})" + f" or (m, {b.shape[1]}, {b.shape[0]})" * (jnp.ndim(b) == 3)
        remedy = "DirectFeedback takes one error for each example, or for each step of sequences as long as at init"
        raise LayerError(layer, wanted, str([leaf.shape for leaf in jax.tree.leaves(top)])[1:-1], remedy)


@dataclass(frozen=True, repr=False)
class TargetPropagation(Rule):
    """Difference target propagation: the error is what a learnt inverse makes of it.

    Each dense or convolutional layer has an inverse g(z) = τ(P_V z + c), where P_V is its own BP2 product with weights V of
    the rule. The target of z is z − β δ, and the layer below gets

        ∂C/∂a_in := (g(z) − g(z − β δ)) / β ,

    which is P_V δ itself where τ is linear. The inverse learns to reconstruct a_in from z. With u = P_V z + c and
    e = (τ(u) − a_in) ⊙ τ'(u), the gradient of ½‖τ(u) − a_in‖² is Σ e for c, and for V the layer's BP4 with z in place of δ
    and e in place of a_in, since ⟨e, P_V z⟩ = ⟨z, P_Vᵀ e⟩. Means over the batch: an example without an error (of weight 0)
    adds nothing, the others count alike, whatever their weights. Arrays {"V", "c"}.

    Args:
        activation: τ, one whose values can be those of a_in: ``fn.tanh`` above a layer of tanh. Linear by default.
        beta: β, how far the target is from z.
        weight_init: initialiser of V.

    Raises:
        LayerError: for other layers with weights that BP2 multiplies with.

    Source: Lee et al. (2015), without their noise, each layer's target taken from its error.
    """

    activation: Activation = linear
    beta: float = 0.1
    weight_init: Initializer = NORMAL

    def __post_init__(self) -> None:
        check_activation(self, self.activation)  # pyright: ignore[reportArgumentType]
        _check_initializer(self, self.weight_init)
        _check_number(self, "beta", self.beta, above_zero=True)

    def init(self, key: Array, layer: Layer, params: Params, input_shape: Shape, n_top: int) -> dict[str, Array]:
        if not jax.tree.leaves(params) or isinstance(layer, WITHOUT_PRODUCT):
            return {}
        if not isinstance(layer, Dense | Convolution):
            remedy = "give the rule to a part of the network that has no others: fn.Network(a, fn.Swapped(b, rule), c)"
            raise LayerError(layer, "dense and convolutional layers, for TargetPropagation", layer._title, remedy)
        w = params["w"]
        return {"V": _drawn(key, self.weight_init, {"w": w})["w"], "c": jnp.zeros(input_shape[-1:], w.dtype)}

    def propagate(
        self, layer: Layer, params: Params, back: Params, cache: Cache, delta: Delta, top: Delta
    ) -> Array | None:
        if not back:
            return layer.propagate(params, cache, delta)
        product = self._product(layer, params, back, cache)
        if self.activation == linear:
            return product(delta)
        _, z, _ = cache
        here, there = (self.activation(biased(product(z), back["c"])) for z in (z, z - self.beta * delta))
        return (here - there) / self.beta

    def learn(self, layer: Layer, params: Params, back: Params, cache: Cache, delta: Delta) -> dict[str, Array]:
        a_in, z, _ = cache
        u = biased(self._product(layer, params, back, cache)(z), back["c"])
        a = self.activation(u)
        e = self.activation.error_in_layer(jnp.where(_has_error(delta), a - a_in, 0), u, a)
        like_w = layer.gradients(_replaced(params, {"w": back["V"]}), (e, *cache[1:]), z)["w"]
        return {"V": like_w, "c": bias_gradient(e).astype(back["c"].dtype)}

    def _neutral(self, layer: Layer, params: Params, back: Params) -> Any:
        if not back:
            return back
        return {**back, "V": params["w"]} if self.activation == linear else None

    def _product(self, layer: Layer, params: Params, back: Params, cache: Cache) -> Any:
        """P_V."""
        params = _replaced(params, {"w": back["V"]})
        return lambda z: layer.propagate(params, cache, z)


@dataclass(frozen=True, repr=False)
class EProp(Rule):
    """BPTT without the weights between the steps, w_h := 0 in BP2: e-prop with symmetric feedback.

    What a cell hands on by itself stays: c of an `LSTM`, u ⊙ h of a `GRU`. The gradients are those that eligibility traces
    compute forwards in time. Other layers are as ever.

    Source: Bellec et al. (2020).
    """

    def weights(self, layer: Layer, params: Params, back: Params) -> Params:
        return _replaced(params, {n: jnp.zeros_like(w) for n, w in _weights(layer, params).items() if n == "w_h"})


@dataclass(frozen=True, repr=False)
class Noise(Rule):
    """Normal noise on the error that each layer sends down: ∂C/∂a_in + s ε, ε ~ N(0, 1), drawn for each example by itself.

    It needs a key. Errors are not divided by m. An example without an error (of weight 0) gets no noise.

    Args:
        scale: s.
    """

    scale: float

    def __post_init__(self) -> None:
        _check_number(self, "scale", self.scale, above_zero=False)

    def propagate(
        self, layer: Layer, params: Params, back: Params, cache: Cache, delta: Delta, top: Delta, *, key: Any = None
    ) -> Array | None:
        da: Any = layer.propagate(params, cache, delta)
        draw = jax.vmap(lambda k: jax.random.normal(k, da.shape[1:], wide_dtype(da.dtype)))
        noise = (self.scale * draw(example_keys(key, da.shape[0]))).astype(da.dtype)
        return da + jnp.where(_has_error(da), noise, 0)


@dataclass(frozen=True, repr=False)
class Clip(Rule):
    """The error that each layer sends down, clipped for each example: ∂C/∂a_in · min(1, c / ‖∂C/∂a_in‖).

    Args:
        bound: c.
    """

    bound: float

    def __post_init__(self) -> None:
        _check_number(self, "bound", self.bound, above_zero=True)

    def propagate(
        self, layer: Layer, params: Params, back: Params, cache: Cache, delta: Delta, top: Delta
    ) -> Array | None:
        da: Any = layer.propagate(params, cache, delta)
        wide = at_least_float32(da)
        square = jnp.sum(wide * wide, axis=tuple(range(1, da.ndim)), keepdims=True)
        factor = jnp.where(square > self.bound**2, self.bound * jax.lax.rsqrt(square), 1)
        return (wide * factor).astype(da.dtype)
