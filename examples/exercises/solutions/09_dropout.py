"""Exercise 9, section 5.3 of the notes: both forms of dropout.

`keep` is 1 for a unit that stays and 0 for one that is dropped, which happens with probability `rate`. In the notes' form
the units that stay are left as they are while training, and when the network is used every activation is multiplied by the
share that stayed (the notes halve the weights that lead out: the same). In today's form the units that stay are scaled up
while training, so that nothing has to be done later. Write both, and the way back of today's form: an error goes back
through the units that stayed, by the same factor.
"""


def train_as_in_the_notes(a, keep, rate):
    """A layer's activations while training. Shapes (m, n), (n,), () -> (m, n)."""
    return a * keep


def use_as_in_the_notes(a, rate):
    """A layer's activations when the network is used. Shapes (m, n), () -> (m, n)."""
    return a * (1 - rate)


def train(a, keep, rate):
    """Today's form, while training; when the network is used, a stays a. Shapes (m, n), (m, n), () -> (m, n)."""
    return a * keep / (1 - rate)


def pull_back(da, keep, rate):
    """The way back through `train`: ∂C/∂a below, from ∂C/∂a above. Shapes (m, n), (m, n), () -> (m, n)."""
    return da * keep / (1 - rate)
