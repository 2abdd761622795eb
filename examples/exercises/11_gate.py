"""Exercise 11, after section 6 of the notes: a layer that lets the error pass (a highway layer).

One remedy for vanishing errors is a way around. Here a gate g mixes what is new with what came in: a = g h + (1 − g) a_in,
with h = tanh(z_h) and g = σ(z_g). The cache holds a_in, h and g. The error of the layer has two parts, side by side:
δ of z_h and δ of z_g. Then a_in is reached in three ways: past the gate, through w_h and through w_g. Add them up. The first
has no σ' in it.
"""

import jax
import jax.numpy as jnp

import fnnet as fn


@fn.layer
class Highway:
    """a = g h + (1 − g) a_in, h = tanh(a_in w_hᵀ), g = σ(a_in w_gᵀ). Parameters {w_h (n, n), w_g (n, n)}."""

    def init(self, key, input_shape):
        w_h, w_g = jax.random.normal(key, (2, *input_shape, *input_shape))
        return {"w_h": w_h, "w_g": w_g}

    def forward(self, params, a_in, *, probe=None):
        added = probe or {"a": 0, "h": 0, "g": 0}
        h = jnp.tanh(a_in @ params["w_h"].T + added["h"])
        g = fn.sigmoid(a_in @ params["w_g"].T + added["g"])
        return g * h + (1 - g) * a_in + added["a"], (a_in, h, g)

    def error(self, params, cache, da_out):
        """{"a": ∂C/∂a_out, "h": δ of z_h, "g": δ of z_g}, each (m, n)."""
        raise NotImplementedError("error")

    def propagate(self, params, cache, delta):
        """∂C/∂a_in (m, n), by three ways."""
        raise NotImplementedError("propagate")

    def gradients(self, params, cache, delta):
        a_in, _, _ = cache
        return {"w_h": delta["h"].T @ a_in / len(a_in), "w_g": delta["g"].T @ a_in / len(a_in)}
