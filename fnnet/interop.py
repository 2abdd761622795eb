"""To and from other libraries: a network as an ordinary JAX function whose ``jax.vjp`` runs the hand-written equations, and
the weights of PyTorch's layers and networks.

PyTorch itself is not needed: a state dict is a mapping from names to arrays.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .activations import integers_as_floats
from .layers._attention import Position
from .layers._cells import GRU
from .layers._composite import is_walked
from .layers._conv import Conv
from .layers._dense import Dense
from .layers._embedding import Embedding
from .layers._layer import Cache, Layer, LayerError, Params, as_array, check_key, check_leaf, located, run_forward
from .layers._norm import BatchNorm, GroupNorm, LayerNorm, Normalisation, RMSNorm
from .layers._recurrent import Recurrent

__all__ = ["as_function", "from_torch", "manual_vjp", "nanogpt_names", "to_torch"]

State = Mapping[str, Any]
Names = str | Sequence[str] | None


def as_function(net: Layer, *, train: bool = False) -> Callable[..., Array]:
    """The function (params, x, *, key=None, mask=None) -> a_out with the hand-written backward pass as its derivative.

    It composes with ``jit``, ``vmap``, ``scan``, ``remat`` and any ``jax.grad``, so a layer can be used inside a model of
    another library. The cotangent of a_out is ∂C/∂a_out as it comes, 1/m and all, and the equations are linear in it: the
    gradients of `Layer.backward`, which are means over the batch, are multiplied by m.

    Lost is forward mode of the function itself (``jax.jvp``, ``jax.jacfwd``): for it, use ``net.forward(params, x)[0]``,
    which autodiff differentiates both ways. Forward mode of its *gradient* works, as the equations are ordinary JAX:
    ``jax.hessian``, and ``jax.jvp`` of ``jax.grad``.

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


CELL = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def from_torch(
    layer: Layer, state: Any, w_hh: Any = None, b_ih: Any = None, b_hh: Any = None, *, names: Names = None
) -> Params:
    """The parameters of a layer or a network from a state dict of PyTorch's.

    | layer | PyTorch's |
    |---|---|
    | `Dense`, `Conv` | Linear, Conv1d to Conv3d |
    | `Embedding`, `Position` | Embedding; of the steps' numbers |
    | `LayerNorm`, `RMSNorm`, `GroupNorm` | the same; without a bias b is 0 |
    | `BatchNorm` | BatchNorm1d to BatchNorm3d |
    | `RNN`, `LSTM`, `GRU` | the same, of one layer that reads forwards |
    | `Dense` (3n), `Attention`, `Dense` (n) | MultiheadAttention, by ``names=("in_proj_", "out_proj.")`` |

    Kernels (c_out, c_in, *k) become (*k, c_in, c_out), and everything else keeps its layout. A `Dense` behind a `Flatten` of
    images reads their places in another order than PyTorch's, whose channels come first. The gates of a cell are in the same
    order; its two biases are added, b = b_ih + b_hh, and only the n part of a GRU's b_hh stays apart, as b_h. What is no
    weight (ε, strides, heads) is the layer's own: an RMSNorm of PyTorch's has another ε by default.

    Args:
        layer: the layer or the network.
        state: names to tensors or arrays; of a cell also w_ih alone, with the next three.
        w_hh: of a cell; a bias may be None, for 0.
        b_ih: see w_hh.
        b_hh: see w_hh.
        names: what stands in front of "weight", its dot included, for each layer with parameters in order. By default those
            of nested ``nn.Sequential``: "" of a layer, "0.", "1.0." by its place in a network.

    Raises:
        LayerError: for a name that is missing, arrays of other shapes, a tensor under the layer's name that it has no room
            for, tied places that differ, and layers that PyTorch has no counterpart of.
        ValueError: for more or fewer names than layers with parameters.
    """
    if not isinstance(state, Mapping):
        arrays = dict(zip(CELL, (state, w_hh, b_ih, b_hh), strict=True))
        state = {name: a for name, a in arrays.items() if a is not None}
    return _read(layer, state, iter(_prefixes(layer, names)))


def to_torch(layer: Layer, params: Params, *, names: Names = None) -> dict[str, np.ndarray]:
    """The state dict of PyTorch's layer or network: the way back of `from_torch`. Of a cell, b is in b_ih.

    Gradients have the structure of parameters and take the same way; they are means over the batch, and tied places get the
    sum. Of a module without a bias drop that of a `LayerNorm`, if it is 0.

    Args:
        layer: the layer or the network.
        params: its parameters.
        names: as of `from_torch`.

    Returns:
        Names to arrays of one's own; ``module.load_state_dict({name: torch.from_numpy(a) for name, a in ...})`` takes them.
    """
    return dict(_written(layer, params, iter(_prefixes(layer, names))))


def nanogpt_names(layers: int) -> tuple[str, ...]:
    """The names in nanoGPT's state dict of a `Tied` network of Embedding, Position, ``layers`` blocks of LayerNorm, Dense,
    Attention, Dense and LayerNorm, Dense, Dense, then LayerNorm and Dense, as ``gpt`` in examples/gpt.py.

    Source: Karpathy's nanoGPT, model.py.
    """
    of_block = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    blocks = (f"transformer.h.{i}.{name}." for i in range(layers) for name in of_block)
    return "transformer.wte.", "transformer.wpe.", *blocks, "transformer.ln_f.", "lm_head."


def _arrays(layer: Layer, rank: int = 2) -> dict[str, tuple[int | str, ...]]:
    """PyTorch's names and shapes; a letter is a size that the first array with it decides. ``rank`` is the weight's, which of
    a convolution only the state dict knows."""
    match layer:
        case Dense() | Conv():
            n_out, size = (layer.n_out, ()) if isinstance(layer, Dense) else (layer.features, layer.size)
            size = (size,) * max(rank - 2, 1) if isinstance(size, int) else size
            return {"weight": (n_out, "c", *size), **({"bias": (n_out,)} if layer.bias else {})}
        case Embedding():
            return {"weight": (layer.tokens, layer.n)}
        case Position():
            return {"weight": ("T", "n")}
        case RMSNorm():
            return {"weight": ("c",)}
        case BatchNorm():
            return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("c",))
        case LayerNorm() | GroupNorm():
            return {"weight": ("c",), "bias": ("c",)}
        case Recurrent():
            rows, n = layer.n_gates * layer.n, layer.n
            return dict(zip(CELL, ((rows, "c"), (rows, n), (rows,), (rows,)), strict=True))
    if type(layer).gradients is Layer.gradients:
        return {}
    remedy = "copy its arrays by hand, or give a network without it"
    raise LayerError(layer, "a layer that PyTorch has a counterpart of", type(layer).__name__, remedy)


def _may_be_missing(layer: Layer, name: str) -> bool:
    return isinstance(layer, Recurrent | LayerNorm | GroupNorm) and name.startswith("bias")


def _prefixes(net: Layer, names: Names) -> list[str]:
    """One for each layer with parameters, in order."""
    places = dict(_places(net))
    if names is None:
        return ["".join(f"{i}." for i in place) for place in places]
    names = [names] if isinstance(names, str) else list(names)
    if len(names) != len(places):
        layers = ", ".join(type(part).__name__ for part in places.values())
        raise ValueError(
            f"names: expected {len(places)}, one for each layer with parameters ({layers}), got {len(names)}; "
            "what stands in front of each one's 'weight' in the state dict"
        )
    return names


def _places(net: Layer, place: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Layer]]:
    """The layers with parameters and where they are."""
    if is_walked(net):
        for i, part in enumerate(net.layers):  # pyright: ignore[reportAttributeAccessIssue]
            with located(i):
                yield from _places(part, (*place, i))
    elif _arrays(net):
        yield place, net


def _read(layer: Layer, state: State, prefixes: Iterator[str]) -> Params:
    if not is_walked(layer):
        return _params(layer, _checked(layer, state, next(prefixes))) if _arrays(layer) else {}
    parts = []
    for i, part in enumerate(layer.layers):  # pyright: ignore[reportAttributeAccessIssue]
        with located(i):
            parts.append(_read(part, state, prefixes))
    # What gradients are summed over, the places of a tied array, parameters are averaged over.
    sums, places = (layer.joined(tuple(tree)) for tree in (parts, jax.tree.map(jnp.ones_like, parts)))  # pyright: ignore
    params = jax.tree.map(jnp.divide, sums, places)
    for own, (part, joined) in zip(parts, layer.parts(params), strict=True):  # pyright: ignore
        if not all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), own, joined))):
            remedy = "leave the tie out: a network with the layers of the tied one"
            raise LayerError(layer, "equal arrays in tied places", f"others for {part!r}", remedy)
    return params


def _checked(layer: Layer, state: State, prefix: str) -> dict[str, Array]:
    """The arrays of a layer by their names without the prefix."""
    arrays = {key.removeprefix(prefix): _array(layer, key, state[key]) for key in state if key.startswith(prefix)}
    arrays.pop("num_batches_tracked", None)
    wanted = _arrays(layer, arrays["weight"].ndim if "weight" in arrays else 2)
    sizes: dict[int | str, int] = {}
    for name, shape in wanted.items():
        found = arrays.get(name)
        if found is None and _may_be_missing(layer, name):
            continue
        expected = f"an array {prefix + name!r} of shape ({', '.join(str(sizes.get(n, n)) for n in shape)})"
        if found is None:
            got = f"the names {_some([prefix + n for n in arrays] or list(state))}"
            remedy = "names= says what stands in front of each layer's names in the state dict, its dot included"
            raise LayerError(layer, expected, got, remedy)
        if found.ndim == len(shape):
            of_letters = {n: size for n, size in zip(shape, found.shape, strict=True) if isinstance(n, str)}
            sizes = {**of_letters, **sizes}
        if found.shape != tuple(sizes.get(n, n) for n in shape):
            raise LayerError(layer, expected, str(found.shape), "give the state dict of a module of this layer's sizes")
    if unread := [prefix + name for name in arrays if name not in wanted]:
        remedy = "choose the layer that has them (bias=True, say), or leave them out of the state dict"
        raise LayerError(layer, f"only {', '.join(wanted)} after {prefix!r}", _some(unread), remedy)
    return arrays


def _array(layer: Layer, key: str, tensor: Any) -> Array:
    """A tensor or whatever NumPy reads as an array of floats."""
    try:
        return integers_as_floats(np.asarray(tensor.detach().cpu()) if hasattr(tensor, "detach") else tensor)
    except (TypeError, ValueError) as error:
        remedy = "convert it first, a tensor of half precision with .float()"
        raise LayerError(layer, f"an array {key!r} of numbers", f"{type(tensor).__name__} ({error})", remedy) from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) + ", …" * (len(names) > 6) if names else "none"


LEAVES = {"weight": "w", "bias": "b", "running_mean": "mean", "running_var": "var"}


def _leaf(layer: Layer, name: str) -> str:
    """The parameter that PyTorch's array is."""
    return "g" if isinstance(layer, Normalisation) and name == "weight" else LEAVES[name]


def _params(layer: Layer, arrays: dict[str, Array]) -> Params:
    """The parameters of a layer from PyTorch's arrays, all in the dtype of the weights."""
    dtype = arrays["weight_hh_l0" if isinstance(layer, Recurrent) else "weight"].dtype
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}
    if isinstance(layer, Recurrent):
        return _cell_params(layer, *(arrays.get(name) for name in CELL))
    if isinstance(layer, Conv):
        arrays["weight"] = jnp.moveaxis(arrays["weight"], (1, 0), (-2, -1))
    if _may_be_missing(layer, "bias"):
        arrays.setdefault("bias", jnp.zeros_like(arrays["weight"]))
    return {_leaf(layer, name): a for name, a in arrays.items()}


def _cell_params(cell: Recurrent, w_x: Any, w_h: Any, b_x: Any, b_h: Any) -> Params:
    b_x, b_h = (jnp.zeros_like(w_x[:, 0]) if b is None else b for b in (b_x, b_h))
    params, n = {"w_x": w_x, "w_h": w_h}, cell.n
    if not isinstance(cell, GRU):
        return {**params, "b": b_x + b_h}
    return {**params, "b": b_x.at[: 2 * n].add(b_h[: 2 * n]), "b_h": b_h[2 * n :]}


def _written(layer: Layer, params: Params, prefixes: Iterator[str]) -> Iterator[tuple[str, np.ndarray]]:
    if is_walked(layer):
        for i, (part, p) in enumerate(layer.parts(params)):  # pyright: ignore[reportAttributeAccessIssue]
            with located(i):
                yield from _written(part, p, prefixes)
    elif _arrays(layer):
        prefix = next(prefixes)
        yield from ((f"{prefix}{name}", np.array(a)) for name, a in _state(layer, params).items())


def _state(layer: Layer, params: Params) -> dict[str, Array]:
    """PyTorch's arrays of a layer from its parameters."""
    if isinstance(layer, Recurrent):
        layer.check_params(params)
        b_h = jnp.zeros_like(params["b"])
        b_h = b_h.at[2 * layer.n :].set(params["b_h"]) if isinstance(layer, GRU) else b_h
        return dict(zip(CELL, (params["w_x"], params["w_h"], params["b"], b_h), strict=True))
    arrays = {}
    for name, shape in _arrays(layer, np.ndim(params.get("w", 0)) if isinstance(params, dict) else 2).items():
        sizes = tuple(None if isinstance(n, str) else n for n in shape)
        kernels = isinstance(layer, Conv) and name == "weight"
        leaf = check_leaf(layer, params, _leaf(layer, name), (*sizes[2:], sizes[1], sizes[0]) if kernels else sizes)
        arrays[name] = jnp.moveaxis(leaf, (-2, -1), (1, 0)) if kernels else leaf
    return arrays
