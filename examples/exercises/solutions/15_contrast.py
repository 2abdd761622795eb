"""Exercise 15, deep belief networks (深度置信网络): the gradient of contrastive divergence.

A Boltzmann machine's free energy is F(v) = −b·v − Σ_j ln(1 + e^z_j) with z = c + w v. Learning makes data cheap and what the
machine dreams dear: the cost is the mean of F over the data less the mean of F over the samples. First the derivative of the
mean of F over one set of rows: by w_ji it is minus the mean of p_j v_i, where p_j = σ(z_j) is the probability that hidden
unit j is on; by b and c it is the same without the other factor. Then the difference of both phases. Nothing is propagated.
"""

import jax.numpy as jnp


def free_energy(params, v):
    """The mean of F over the rows. Parameters {w (n_h, n_v), b (n_v,), c (n_h,)}, v (m, n_v) -> ()."""
    z = params["c"] + v @ params["w"].T
    return jnp.mean(-v @ params["b"] - jnp.sum(jnp.logaddexp(0, z), axis=-1))


def cost(params, data, samples):
    """Mean F of the data less mean F of the samples, whose gradient contrastive divergence follows."""
    return free_energy(params, data) - free_energy(params, samples)


def phase(params, v):
    """The gradient of `free_energy`: a dict like params."""
    p = 1 / (1 + jnp.exp(-params["c"] - v @ params["w"].T))
    return {"w": -p.T @ v / len(v), "b": -v.mean(axis=0), "c": -p.mean(axis=0)}


def gradient(params, data, samples):
    """The gradient of `cost`: a dict like params."""
    positive, negative = phase(params, data), phase(params, samples)
    return {name: positive[name] - negative[name] for name in params}
