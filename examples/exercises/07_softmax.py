"""Exercise 7, section 4.3 of the notes: softmax (softmax输出层) and the log-likelihood (对数似然).

Softmax does not act on each entry alone: every output depends on every z of its example. So its way back needs the whole
Jacobian: ∂a_j/∂z_i is a_j (1 − a_j) where i = j, and −a_j a_i elsewhere. Multiply by ∂C/∂a_j and sum over j; you need no
n × n matrix. Then the error under the log-likelihood, for targets whose rows add up to 1: what is left is very short.
"""

import jax.numpy as jnp


def softmax(z):
    """a_j = e^z_j / Σ_k e^z_k. Shape (m, n) -> (m, n)."""
    e = jnp.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cost(z, y):
    """C_x = −Σ_j y_j ln a_j of each example; rows of y add up to 1. Shapes (m, n), (m, n) -> (m,)."""
    return -jnp.sum(y * jnp.log(softmax(z)), axis=-1)


def pull_back(a, da):
    """∂C/∂z from a = softmax(z) and ∂C/∂a, for any cost. Shapes (m, n), (m, n) -> (m, n)."""
    raise NotImplementedError("pull_back")


def output_error(z, y):
    """δ^L = ∂(Σ_x C_x)/∂z of the log-likelihood. Shapes (m, n), (m, n) -> (m, n)."""
    raise NotImplementedError("output_error")
