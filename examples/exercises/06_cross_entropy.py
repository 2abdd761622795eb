"""Exercise 6, section 4.1 of the notes: the error of the last layer under the cross-entropy (交叉熵).

The cost is given. Derive ∂C/∂a, multiply by σ'(z) and see what cancels. What is left has no σ' in it, and this is the whole
point: a neuron that is very wrong learns fast, however saturated it is.
"""

import jax.numpy as jnp
from jax.nn import sigmoid


def cost(z, y):
    """C_x = −Σ_j [y ln a + (1 − y) ln (1 − a)] of each example. Shapes (m, n), (m, n) -> (m,)."""
    a = sigmoid(z)
    return -jnp.sum(y * jnp.log(a) + (1 - y) * jnp.log(1 - a), axis=-1)


def output_error(z, y):
    """δ^L = ∂(Σ_x C_x)/∂z. Shapes (m, n), (m, n) -> (m, n)."""
    raise NotImplementedError("output_error")
