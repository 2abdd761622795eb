"""Exercise 2, section 2 of the notes: the weighted inputs (加权输入) of a fully connected layer, for a batch.

The notes write one example as a column: the weighted input is w times the activations below, plus b. Here each row is an
example, and w keeps the notes' shape: row j holds the weights that lead to neuron j. So w has to be transposed.
"""

from jax.nn import sigmoid


def weighted_inputs(w, b, a_in):
    """z. Shapes (n_out, n_in), (n_out,), (m, n_in) -> (m, n_out)."""
    return a_in @ w.T + b


def activations(w, b, a_in):
    """The layer's output, shaped like z."""
    return sigmoid(weighted_inputs(w, b, a_in))
