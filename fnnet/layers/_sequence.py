"""What surrounds a recurrent layer: its last step, the sequence read both ways, and masks of sequences of different lengths.

Legend: m examples (axis 0), T time steps, n units, n_in inputs, g gates; h the states and outputs (m, T, n),
δ = ∂(Σ_x C_x)/∂z of the weighted inputs z (m, T, g·n).

Source: Schuster and Paliwal (1997).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ._layer import Layer, LayerError, drawing_key, layer
from ._recurrent import Recurrent

__all__ = ["Bidirectional", "LastStep", "length_mask"]


@layer
class LastStep(Layer):
    """The last step of each sequence: (m, T, n) to (m, n). No parameters; its error δ is ∂C/∂a_out. Masked steps hold the
    state, so it needs no mask.

    Raises:
        LayerError: for inputs that are no sequences of at least one step.
    """

    independent = True

    def forward(self, params, a_in, *, probe=None):
        if a_in.ndim < 3 or a_in.shape[1] == 0:
            remedy = "put it after a layer that gives every step, such as fn.LSTM(n)"
            raise LayerError(self, "sequences (m, T, n) of at least one step", str(a_in.shape), remedy)
        a = a_in[:, -1]
        return a if probe is None else a + probe, a_in

    def propagate(self, params, cache, delta):
        return _at_last_step(delta, cache.shape[1])


def _at_last_step(d: Array, steps: int) -> Array:
    """An error of the last step (m, ...) among zeros for the others (m, T, ...)."""
    return jnp.zeros((d.shape[0], steps, *d.shape[1:]), d.dtype).at[:, -1].set(d)


@layer
class Bidirectional(Layer):
    """A cell over the sequence and another of the same kind over the reversed sequence, their outputs side by side.

    Parameters {ahead, back}, each the cell's. Inputs (m, T, n_in), outputs (m, T, 2n): at step t the state after x_1 … x_t
    and the state after x_T … x_t. Its error is the pair of both cells' δ, each (m, T, g·n) in the order of the sequence.

    Args:
        cell: `RNN`, `LSTM` or `GRU`.
        last: give both final states (m, 2n) instead.

    Raises:
        LayerError: for another cell, for what the cell refuses, and where a state would be carried: the way back starts at
            the end.

    Source: Schuster and Paliwal (1997).
    """

    cell: Recurrent
    last: bool = False

    independent = True
    _example = "fn.Bidirectional(fn.LSTM(64))"

    def __post_init__(self) -> None:
        if not isinstance(self.cell, Recurrent):
            remedy = "give an fn.RNN, fn.LSTM or fn.GRU, as in fn.Bidirectional(fn.LSTM(64))"
            raise LayerError(self, "a recurrent cell", repr(self.cell), remedy)

    def init(self, key, input_shape):
        ahead, back = jax.random.split(drawing_key(self, key))
        return {"ahead": self.cell.init(ahead, input_shape), "back": self.cell.init(back, input_shape)}

    def forward(self, params, a_in, *, mask=None, probe=None):
        if not isinstance(params, dict) or params.keys() != {"ahead", "back"}:
            got = f"the keys {sorted(params)}" if isinstance(params, dict) else type(params).__name__
            remedy = "use the parameters that init of an equal layer returned"
            raise LayerError(self, "parameters with the keys ahead and back", got, remedy)
        probe_ahead, probe_back = (None, None) if probe is None else probe
        ahead, kept_ahead = self.cell.forward(params["ahead"], a_in, mask=mask, probe=probe_ahead)
        turned = {"mask": _reversed(mask), "probe": _reversed(probe_back)}
        back, kept_back = self.cell.forward(params["back"], _reversed(a_in), **turned)
        h = [ahead[:, -1], back[:, -1]] if self.last else [ahead, _reversed(back)]
        return jnp.concatenate(h, axis=-1), (kept_ahead, kept_back)

    def final_state(self, cache):
        remedy = "carry states through RNN, LSTM and GRU only: the way back starts at the end of the whole sequence"
        raise LayerError(self, "a layer whose state can be carried on", "one that runs both ways", remedy)

    def _da(self, cache: tuple, da_out: Array) -> tuple[Array, Array]:
        """∂C/∂h of both cells, each in the order of its run."""
        ahead, back = jnp.split(da_out, 2, axis=-1)
        if not self.last:
            return ahead, _reversed(back)
        steps = cache[0].x.shape[1]
        return _at_last_step(ahead, steps), _at_last_step(back, steps)

    def error(self, params, cache, da_out):
        ahead, back = self._da(cache, da_out)
        delta = self.cell.error(params["ahead"], cache[0], ahead)
        return delta, _reversed(self.cell.error(params["back"], cache[1], back))

    def propagate(self, params, cache, delta):
        ahead = self.cell.propagate(params["ahead"], cache[0], delta[0])
        return ahead + self.cell.propagate(params["back"], cache[1], delta[1])

    def gradients(self, params, cache, delta):
        return {
            "ahead": self.cell.gradients(params["ahead"], cache[0], delta[0]),
            "back": self.cell.gradients(params["back"], cache[1], _reversed(delta[1])),
        }

    def backward(self, params, cache, da_out):
        ahead, back = self._da(cache, da_out)
        d_ahead, grads_ahead = self.cell.backward(params["ahead"], cache[0], ahead)
        d_back, grads_back = self.cell.backward(params["back"], cache[1], back)
        return d_ahead + _reversed(d_back), {"ahead": grads_ahead, "back": grads_back}


def _reversed(a: Any) -> Any:
    return None if a is None else jnp.flip(a, axis=1)


def length_mask(lengths: Any, steps: int) -> Array:
    """The mask (m, T) of sequences of these lengths (m,), padded at the end to ``steps`` steps: True where t < length.

    Raises:
        ValueError: for lengths that are no vector of integers.
    """
    lengths = jnp.asarray(lengths)
    if lengths.ndim != 1 or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"length_mask: expected integer lengths of shape (m,), got {lengths.dtype} of shape {lengths.shape}"
        )
    return jnp.arange(steps)[None, :] < lengths.astype(jnp.result_type(int))[:, None]
