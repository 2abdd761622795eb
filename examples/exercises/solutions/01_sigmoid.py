"""Exercise 1, section 1 of the notes: the derivative of the sigmoid (S型函数).

The sigmoid is given. Write its derivative, first by the quotient rule, then in terms of the output itself: it is the output
times what the output lacks to 1. At z = 0 it is 1/4, and never more.
"""

import jax.numpy as jnp


def sigmoid(z):
    """1 / (1 + e^−z), entry by entry. Any shape -> the same shape."""
    return 1 / (1 + jnp.exp(-z))


def derivative(z):
    """σ'(z), entry by entry. Any shape -> the same shape."""
    a = sigmoid(z)
    return a * (1 - a)
