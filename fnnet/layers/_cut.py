"""Parameters cut over a mesh: what the equations of products and of layers that act channel by channel send.

A product whose summed axis is cut leaves a partial sum on each device, which one all-reduce (``jax.lax.psum``) adds up. Of
z = a_in wᵀ, with w cut by n_in that is z; with w cut by n_out it is BP2's δ w. BP4's δᵀ a_in is summed over examples, and so
is cut as w is. Dense layers cut by n_out and by n_in in turn send nothing else.

Source: Shoeybi et al. (2019).
"""

from typing import Any

from ..activations import Activation, Elementwise
from ._layer import Layer, LayerError, Sends, Shard

__all__ = ["channelwise", "of_product"]


def of_product(
    layer: Layer, params: Any, a_in: Shard, a_out: Shard, n_out: int, n_in: int, activation: Activation
) -> Sends:
    """Of a = σ(z), z the product of a_in with w, plus b.

    Args:
        layer: for errors.
        params: {w, b} or {w}.
        a_in: (m, ..., n_in).
        a_out: (m, ..., n_out).
        n_out: the axis of w of the outputs, which b has as well.
        n_in: the axis of w of the inputs.
        activation: σ.

    Raises:
        LayerError: for w cut along other axes or along both, b cut in another way, and a σ that mixes units that are cut.
    """
    w = params["w"]
    by_out, by_in = w.cut[n_out], w.cut[n_in]
    if sum(axis is not None for axis in w.cut) > (by_out is not None or by_in is not None):
        remedy = "cut the outputs of one layer and the inputs of the next"
        raise LayerError(layer, "w cut by its outputs or by its inputs", f"P{w.cut}", remedy)
    if "b" in params and params["b"].cut != (by_out,):
        remedy = f"give b the spec P({by_out!r})" if by_out else "give b the spec P()"
        raise LayerError(layer, "b cut as the outputs of w", f"w by P{w.cut} and b by P{params['b'].cut}", remedy)
    if by_out and not isinstance(activation.pullback, Elementwise):
        remedy = "cut w by its inputs, or leave it whole"
        raise LayerError(layer, "units that act alone, to cut them", f"{activation.name}, which mixes them", remedy)
    if by_out:
        return Sends(None, by_out, propagate=(("BP2", by_out, a_in.shape, a_in.dtype),))
    if by_in:
        return Sends(by_in, None, forward=(("z", by_in, a_out.shape, a_out.dtype),))
    return Sends()


def channelwise(self: Layer, params: Any, a_in: Shard, a_out: Shard) -> Sends:
    """Of a layer that acts on each entry of the last axis alone: nothing, however it is cut."""
    over = a_in.cut[-1] if len(a_in.cut) > 1 else None
    return Sends(over, over)
