"""Exercise 4, section 3 of the notes: BP2, the error of a hidden layer from the error of the layer above.

A neuron j of the hidden layer feeds every neuron k of the layer above, by the weight w_kj. So its error collects the errors
above over the same weights, and then passes through its own σ'. The forward pass goes through w transposed; the way back
goes through w itself.
"""

from jax.nn import sigmoid


def forward(z, w):
    """The weighted inputs of the layer above, without its biases. Shapes (m, n), (n_above, n) -> (m, n_above)."""
    return sigmoid(z) @ w.T


def hidden_error(z, w, delta_above):
    """δ of the hidden layer. Shapes (m, n), (n_above, n), (m, n_above) -> (m, n)."""
    raise NotImplementedError("hidden_error")
