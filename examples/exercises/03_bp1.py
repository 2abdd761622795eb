"""Exercise 3, section 3 of the notes: BP1, the error (误差) of the last layer under the quadratic cost.

An example costs half the square of the distance between its target and its output, and the output is the sigmoid of z. The
chain rule has two factors: how the cost changes with the output, and how the output changes with z. One error for each
example, not divided by m.
"""

import jax.numpy as jnp
from jax.nn import sigmoid


def cost(z, y):
    """C_x = ½‖y − a‖² of each example. Shapes (m, n), (m, n) -> (m,)."""
    return jnp.sum((y - sigmoid(z)) ** 2, axis=-1) / 2


def output_error(z, y):
    """δ^L = ∂(Σ_x C_x)/∂z. Shapes (m, n), (m, n) -> (m, n)."""
    raise NotImplementedError("output_error")
