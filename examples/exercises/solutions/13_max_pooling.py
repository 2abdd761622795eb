"""Exercise 13, section 7.2.2 of the notes: the way back through pooling (池化), which the notes call unsample.

Windows of 2 × 2 that do not overlap. The maximum's error goes back to the place that the maximum came from, whole, and every
other place gets 0. The mean's error is shared by the four places. `spread` repeats each entry in its window and is given: it
does half of the work.
"""

import jax.numpy as jnp


def windows(a):
    """Shape (H, W) -> (H/2, 2, W/2, 2)."""
    return a.reshape(a.shape[0] // 2, 2, a.shape[1] // 2, 2)


def spread(small):
    """Each entry four times, in its window. Shape (H/2, W/2) -> (H, W)."""
    return jnp.repeat(jnp.repeat(small, 2, axis=0), 2, axis=1)


def max_pool(a):
    """The largest entry of each window. Shape (H, W) -> (H/2, W/2)."""
    return windows(a).max(axis=(1, 3))


def mean_pool(a):
    """The mean of each window. Shape (H, W) -> (H/2, W/2)."""
    return windows(a).mean(axis=(1, 3))


def unsample_max(delta, a):
    """∂C/∂a of `max_pool`, where no window has a tie. Shapes (H/2, W/2), (H, W) -> (H, W)."""
    return spread(delta) * (a == spread(max_pool(a)))


def unsample_mean(delta):
    """∂C/∂a of `mean_pool`. Shape (H/2, W/2) -> (H, W)."""
    return spread(delta) / 4
