"""Exercise 8, section 5.2 of the notes: what L2 regularisation (正则化, weight decay) adds to the gradients.

The cost grows by λ/(2N) times the sum of all squared weights. N is the size of the training set, not of the batch. Biases
are not punished. Add the derivative of the new term to the gradients of the old cost.
"""


def penalty(params, lam, n_examples):
    """λ/(2N) Σ w². Parameters {w, b} -> ()."""
    return lam / (2 * n_examples) * (params["w"] ** 2).sum()


def add_penalty(params, gradients, lam, n_examples):
    """The gradients of the cost with its penalty, from those without: {w, b}, {w, b} -> {w, b}."""
    raise NotImplementedError("add_penalty")
