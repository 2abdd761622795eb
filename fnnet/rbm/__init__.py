"""Restricted Boltzmann machines: energies, conditionals, Gibbs sampling by explicit keys, contrastive divergence by hand, and
the likelihood, exact or by annealed importance sampling.

Legend: m examples (axis 0), n_v visible and n_h hidden units; v visible (m, n_v), h hidden (m, n_h); s the logistic function.
Parameters are {w (n_h, n_v), b (n_v) of the visible, c (n_h) of the hidden units}. Hidden units are 0 or 1. Visible units are
0 or 1, and a probability in between where data is grey (``visible="bernoulli"``), or real with unit variance
(``visible="gaussian"``: standardise the data first).

E(v, h) = −b·v − c·h − h w vᵀ, with ½‖v − b‖² in place of −b·v for Gaussian visible units; p(v, h) = e^{−E(v, h)} / Z.

Sources: the notes' title "deep belief networks"; Smolensky (1986); Hinton (2002), contrastive divergence; Tieleman (2008),
persistent chains; Salakhutdinov and Murray (2008), annealed importance sampling; Hinton (2010), a practical guide.
"""

from .contrast import Contrast, Sparsity, contrastive_divergence, phase
from .likelihood import (
    Estimate,
    annealed_importance_sampling,
    likelihood_gradient,
    log_partition,
    log_probability,
    pseudo_likelihood,
)
from .machine import (
    Params,
    Visible,
    data_biases,
    draw,
    energy,
    free_energy,
    gibbs,
    hidden_inputs,
    hidden_probabilities,
    init,
    reconstruct,
    reconstruction_error,
    sample_hidden,
    sample_visible,
    visible_inputs,
    visible_means,
)
from .training import History, State, fit

__all__ = [
    "Contrast",
    "Estimate",
    "History",
    "Params",
    "Sparsity",
    "State",
    "Visible",
    "annealed_importance_sampling",
    "contrastive_divergence",
    "data_biases",
    "draw",
    "energy",
    "fit",
    "free_energy",
    "gibbs",
    "hidden_inputs",
    "hidden_probabilities",
    "init",
    "likelihood_gradient",
    "log_partition",
    "log_probability",
    "phase",
    "pseudo_likelihood",
    "reconstruct",
    "reconstruction_error",
    "sample_hidden",
    "sample_visible",
    "visible_inputs",
    "visible_means",
]
