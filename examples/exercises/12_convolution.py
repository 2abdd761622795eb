"""Exercise 12, sections 7.2.3 and 7.2.4 of the notes: the way back through a convolution (卷积).

One image, one kernel. `cross_correlate(a, w)` slides w over a and is given; so are `pad(delta, n)`, a frame of n zeros, and
`rot180`. The error below: the padded error, correlated with the kernel turned by 180 degrees. The gradient of the kernel:
the image correlated with the error, and nothing is turned, because forward is a correlation and not a true convolution
(the notes' rot180 belongs to the latter). The bias takes part at every place, so its gradient is a sum.
"""

import jax.numpy as jnp


def cross_correlate(a, w):
    """z[j, k] = Σ_lm w[l, m] a[j + l, k + m]. Shapes (H, W), (h, w) -> (H − h + 1, W − w + 1)."""
    rows, columns = a.shape[0] - w.shape[0] + 1, a.shape[1] - w.shape[1] + 1
    shifts = [(l, m) for l in range(w.shape[0]) for m in range(w.shape[1])]
    return jnp.sum(jnp.stack([w[l, m] * a[l : l + rows, m : m + columns] for l, m in shifts]), axis=0)


def rot180(w):
    """Upside down, and left to right."""
    return w[::-1, ::-1]


def pad(delta, n):
    """A frame of n zeros. Shape (H, W) -> (H + 2n, W + 2n)."""
    return jnp.pad(delta, n)


def forward(a, w, b):
    """z = a ⋆ w + b. Shapes (H, W), (f, f), () -> (H − f + 1, W − f + 1)."""
    return cross_correlate(a, w) + b


def input_error(delta, w):
    """∂C/∂a. Shapes (H − f + 1, W − f + 1), (f, f) -> (H, W)."""
    raise NotImplementedError("input_error")


def kernel_gradient(delta, a):
    """∂C/∂w. Shapes (H − f + 1, W − f + 1), (H, W) -> (f, f)."""
    raise NotImplementedError("kernel_gradient")


def bias_gradient(delta):
    """∂C/∂b. Shape (H − f + 1, W − f + 1) -> ()."""
    raise NotImplementedError("bias_gradient")
