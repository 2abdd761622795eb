"""Exercise 10, section 6.1 of the notes: why the error vanishes (梯度消失), in a chain of single neurons.

Layer after layer one neuron: a_j = σ(w_j a_{j−1} + b_j). Write the gradients of all biases. The last is BP1. Each one
before it is the one after it, times the weight between them, times its own σ': so the first collects as many factors
wσ' as there are layers above it.
"""

import jax.numpy as jnp
from jax.nn import sigmoid


def activations(b, w, x):
    """[a_0, a_1, ..., a_L] with a_0 = x. Shapes (L,), (L,), () -> (L + 1,)."""
    a = [x]
    for w_j, b_j in zip(w, b, strict=True):
        a.append(sigmoid(w_j * a[-1] + b_j))
    return jnp.stack(a)


def cost(b, w, x, y):
    """½ (y − a_L)². Shapes (L,), (L,), (), () -> ()."""
    return (y - activations(b, w, x)[-1]) ** 2 / 2


def bias_gradients(b, w, x, y):
    """[∂C/∂b_1, ..., ∂C/∂b_L]. Shapes (L,), (L,), (), () -> (L,)."""
    raise NotImplementedError("bias_gradients")
