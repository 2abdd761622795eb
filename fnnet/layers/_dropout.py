"""Dropout, by explicit keys. Source: the notes, section 5.3; Srivastava et al. (2014) for the mask per example.

Dropping is linear in the activations, so one equation serves both directions: a = r ⊙ a_in and ∂C/∂a_in = r ⊙ δ with
r = keep · scale.
"""

from numbers import Real
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import at_least_float32
from ._cut import channelwise
from ._layer import Cache, Key, Layer, LayerError, Params, as_floats, batch_key, example_keys, layer

__all__ = ["Dropout"]


@jax.jit
def thin(values: Array, keep: Array | None, scale: float) -> Array:
    """r ⊙ values: values · scale where keep holds (everywhere if it is None), else 0. Any shape."""
    scaled = (at_least_float32(values) * scale).astype(values.dtype)
    return scaled if keep is None else jnp.where(keep, scaled, 0)


@layer
class Dropout(Layer):
    """Drops units with probability ``rate`` while training. No parameters; its error δ is ∂C/∂a_out.

    Args:
        rate: the probability of being dropped, 0 ≤ rate < 1.
        per: "example" draws a mask for each example and scales the kept units by 1/(1 − rate) while training; "batch" is
            the notes' form: one thinned network for the whole mini-batch, unscaled, and activations times 1 − rate at
            inference (the halved outgoing weights, for rate ½).

    Integers and bools become the default float dtype. Masks come from float32 uniforms, so they are the same with and
    without x64.

    Raises:
        LayerError: for a rate outside [0, 1), another ``per``, complex inputs, or training without a key.
    """

    rate: float
    per: Literal["example", "batch"] = "example"

    independent = True
    collectives = channelwise
    _example = "fn.Dropout(0.5)"

    def __post_init__(self) -> None:
        if not isinstance(self.rate, Real) or not 0 <= self.rate < 1:
            remedy = "rate is the probability of being dropped; 0.5 drops half of the units"
            raise LayerError(self, "a rate of at least 0 and below 1", repr(self.rate), remedy)
        object.__setattr__(self, "rate", float(self.rate))
        if self.per not in ("example", "batch"):
            raise LayerError(self, "per to be 'example' or 'batch'", repr(self.per), "choose one of the two")

    def forward(
        self, params: Params, a_in: Array, *, key: Key = None, train: bool = False, probe: Array | None = None
    ) -> tuple[Array, Cache]:
        a_in = as_floats(self, a_in, jnp.result_type(float))
        keep, scale = None, 1.0
        if not train:
            scale = 1 - self.rate if self.per == "batch" else 1.0
        elif key is None:
            raise LayerError(
                self, "a key while training", "key=None", "pass key=jax.random.key(seed), a new one each step"
            )
        elif self.per == "batch":
            keep = jax.random.uniform(batch_key(key), a_in.shape[1:], jnp.float32) >= self.rate
            keep = jnp.broadcast_to(keep, a_in.shape)
        else:
            draw = lambda k: jax.random.uniform(k, a_in.shape[1:], jnp.float32)  # noqa: E731
            keep = jax.vmap(draw)(example_keys(key, a_in.shape[0])) >= self.rate
            scale = 1 / (1 - self.rate)
        a = thin(a_in, keep, scale)
        return a if probe is None else a + probe, (keep, scale)

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        return thin(delta, *cache)
