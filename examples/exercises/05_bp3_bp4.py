"""Exercise 5, section 3 of the notes: BP3 and BP4, the gradients of a layer's biases and weights.

A whole layer this time, in the form that fnnet takes; all but its gradients is given. An example's share of a bias is its
error; of the weight w_jk it is the error of neuron j times the activation k below. Both gradients are means over the m
examples. The mean of products is one matrix product; it is not the product of two means.
"""

import jax
import jax.numpy as jnp

import fnnet as fn


@fn.layer
class Dense:
    """a = σ(a_in wᵀ + b). Parameters {w (n_out, n_in), b (n_out,)}."""

    n_out: int

    def init(self, key, input_shape):
        return {"w": jax.random.normal(key, (self.n_out, *input_shape)), "b": jnp.zeros(self.n_out)}

    def forward(self, params, a_in, *, probe=None):
        z = a_in @ params["w"].T + params["b"]
        a = fn.sigmoid(z if probe is None else z + probe)
        return a, (a_in, a)

    def error(self, params, cache, da_out):
        _, a = cache
        return da_out * a * (1 - a)

    def propagate(self, params, cache, delta):
        return delta @ params["w"]

    def gradients(self, params, cache, delta):
        """{"w": ∂C/∂w, "b": ∂C/∂b}, means over the batch; delta (m, n_out), a_in (m, n_in)."""
        raise NotImplementedError("gradients")
