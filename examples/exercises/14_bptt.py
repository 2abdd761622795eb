"""Exercise 14, recurrent networks (循环神经网络): backpropagation through time.

The state at step t comes from the input and from the state before: h_t = tanh(x_t w_xᵀ + h_{t−1} w_hᵀ + b). So the error
of step t has two sources: the cost's own derivative by h_t, and what step t + 1 sends back through w_h. Then comes tanh',
which is 1 − h_t². Go through the steps from the last to the first.
"""

import jax
import jax.numpy as jnp

import fnnet as fn


@fn.layer
class RNN:
    """(m, T, n_in) -> (m, T, n). Parameters {w_x (n, n_in), w_h (n, n), b (n,)}."""

    n: int

    def init(self, key, input_shape):
        w_x = jax.random.normal(key, (self.n, input_shape[-1]))
        return {"w_x": w_x, "w_h": jax.random.normal(key, (self.n, self.n)), "b": jnp.zeros(self.n)}

    def forward(self, params, a_in, *, probe=None):
        h, states = jnp.zeros((len(a_in), self.n), a_in.dtype), []
        for t in range(a_in.shape[1]):
            z = a_in[:, t] @ params["w_x"].T + h @ params["w_h"].T + params["b"]
            h = jnp.tanh(z if probe is None else z + probe[:, t])
            states.append(h)
        states = jnp.stack(states, axis=1)
        return states, (a_in, states)

    def error(self, params, cache, da_out):
        """δ_t of every step: (m, T, n) from da_out = ∂C/∂h_t (m, T, n), as the cost alone sees it."""
        raise NotImplementedError("error")

    def propagate(self, params, cache, delta):
        return delta @ params["w_x"]

    def gradients(self, params, cache, delta):
        """Means over the examples of sums over the steps; h_{t−1} is 0 at the first step."""
        raise NotImplementedError("gradients")
