"""What surrounds a recurrent layer: its last step, the sequence read both ways, and masks of sequences of different lengths.

Legend: m examples (axis 0), T time steps, n units, n_in inputs, g gates; h the states and outputs (m, T, n),
δ = ∂(Σ_x C_x)/∂z of the weighted inputs z (m, T, g·n).

Source: Schuster and Paliwal (1997).
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from ._composite import Back, Composite, RunPart, Visit
from ._cut import channelwise
from ._layer import Cache, Delta, Layer, LayerError, Params, Shape, drawing_key, layer
from ._recurrent import Recurrent
from ._shared import Fixed

__all__ = ["Bidirectional", "LastStep", "length_mask"]


@layer
class LastStep(Layer):
    """The last step of each sequence: (m, T, n) to (m, n). No parameters; its error δ is ∂C/∂a_out. Masked steps hold the
    state, so it needs no mask.

    Raises:
        LayerError: for inputs that are no sequences of at least one step.
    """

    independent = True
    collectives = channelwise

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        if a_in.ndim < 3 or a_in.shape[1] == 0:
            remedy = "put it after a layer that gives every step, such as fn.LSTM(n)"
            raise LayerError(self, "sequences (m, T, n) of at least one step", str(a_in.shape), remedy)
        a = a_in[:, -1]
        return a if probe is None else a + probe, a_in

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        return _at_step(-1, delta, cache.shape[1])


def _at_step(t: int, d: Array, steps: int) -> Array:
    """An error of step t (m, ...) among zeros for the others (m, T, ...)."""
    before = t % steps
    return jnp.pad(d[:, None], ((0, 0), (before, steps - 1 - before), *((0, 0),) * (d.ndim - 1)))


@layer
class Reversed(Layer):
    """A cell over the reversed sequence. All that goes in and comes out is in the order of the sequence, its error too."""

    cell: Recurrent

    independent = True

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        return self.cell.init(key, input_shape)

    def forward(
        self, params: Params, a_in: Array, *, mask: Array | None = None, probe: Array | None = None
    ) -> tuple[Array, Cache]:
        h, cache = self.cell.forward(params, _reversed(a_in), mask=_reversed(mask), probe=_reversed(probe))
        return _reversed(h), cache

    def error(self, params: Params, cache: Cache, da_out: Array) -> Array:
        return _reversed(self.cell.error(params, cache, _reversed(da_out)))

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        return self.cell.propagate(params, cache, delta)  # each step by itself

    def gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        return self.cell.gradients(params, cache, _reversed(delta))

    def example_gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        return self.cell.example_gradients(params, cache, _reversed(delta))

    def square_norms(self, params: Params, cache: Cache, delta: Array) -> Array:
        return self.cell.square_norms(params, cache, _reversed(delta))

    def second_moment(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        return self.cell.second_moment(params, cache, _reversed(delta))

    def factor_rows(self, params: Params, cache: Cache, delta: Array) -> tuple[dict[str, Array], Array] | None:
        return self.cell.factor_rows(params, cache, _reversed(delta))

    def _gram(self, params: Params, cache: Cache, delta: Array) -> Array:
        return self.cell._gram(params, cache, _reversed(delta))

    def backward(self, params: Params, cache: Cache, da_out: Array) -> tuple[Array, dict[str, Array]]:
        da_in, gradients = self.cell.backward(params, cache, _reversed(da_out))
        return _reversed(da_in), gradients


def _reversed(a: Any) -> Any:
    return None if a is None else jnp.flip(a, axis=1)


@layer
class Bidirectional(Composite):
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
    last: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]

    output_part: ClassVar[None] = None  # pyright: ignore
    _example = "fn.Bidirectional(fn.LSTM(64))"

    def __post_init__(self) -> None:
        if not isinstance(self.cell, Recurrent):
            remedy = "give an fn.RNN, fn.LSTM or fn.GRU, as in fn.Bidirectional(fn.LSTM(64))"
            raise LayerError(self, "a recurrent cell", repr(self.cell), remedy)

    @property
    def layers(self) -> tuple[Layer, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.cell, Reversed(self.cell)

    def init(self, key: Array, input_shape: Shape) -> Params:
        return super().init(drawing_key(self, key), input_shape)

    def parts(self, params: Params) -> tuple[tuple[Layer, Params], ...]:
        if not isinstance(params, dict) or params.keys() != {"ahead", "back"}:
            got = f"the keys {sorted(params)}" if isinstance(params, dict) else type(params).__name__
            remedy = "use the parameters that init of an equal layer returned"
            raise LayerError(self, "parameters with the keys ahead and back", got, remedy)
        return tuple(zip(self.layers, (params["ahead"], params["back"]), strict=True))

    def joined(self, of_parts: tuple[Params, ...]) -> Params:
        return dict(zip(("ahead", "back"), of_parts, strict=True))

    _apart = True  # pyright: ignore

    def wire(self, run: RunPart, a_in: Array) -> tuple[Array, Any]:
        ahead, back = run(0, a_in), run(1, a_in)
        h = [ahead[:, -1], back[:, 0]] if self.last else [ahead, back]
        return jnp.concatenate(h, axis=-1), Fixed(a_in.shape[1])

    def unwire(self, back: Back, da_out: Any, extra: Any) -> Any:
        if da_out is None:
            return back(0, None) + back(1, None)
        ahead, behind = jnp.split(da_out, 2, axis=-1)
        if self.last:
            ahead, behind = _at_step(-1, ahead, extra.value), _at_step(0, behind, extra.value)
        return back(0, ahead) + back(1, behind)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: Params, a_in: Array, *, mask: Array | None = None, probe: Delta = None, run: Visit | None = None
    ) -> tuple[Array, Cache]:
        """As a composite's, but it takes no state."""
        return super().forward(params, a_in, mask=mask, probe=probe, run=run)

    def final_state(self, cache: Cache) -> Any:
        remedy = "carry states through RNN, LSTM and GRU only: the way back starts at the end of the whole sequence"
        raise LayerError(self, "a layer whose state can be carried on", "one that runs both ways", remedy)


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
