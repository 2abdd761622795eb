"""Central differences in float64: a third opinion, beside the hand-written equations and autodiff."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..layers._layer import Layer, run_forward
from .verdicts import NAN, Subject, in_float64, wide


def central_difference(layer: Layer, subject: Subject, source: str, path: Any, case: int) -> float:
    """The manual derivative of ⟨da_out, a_out⟩ along a random direction against (f(h) − f(−h)) / 2h, in float64."""
    one = subject.compared(source, path)[case]
    manual, reference = one[:2] if one.autodiff64 is None else one[2:]
    if subject.best(case) is not subject.exact[case] and subject.dtype != "float64":
        return NAN
    if manual is None or jnp.shape(manual) != jnp.shape(reference) or not jnp.size(reference):
        return NAN
    params, a_in, key, mask, da, probe = in_float64(subject.cases[case])
    manual, reference = wide(manual), wide(reference)
    noise = np.random.default_rng(0).standard_normal(reference.shape)
    v = noise / np.linalg.norm(noise) + reference / (np.linalg.norm(reference) or 1)
    moves = {"error": probe, "output_error": probe}.get(source, a_in if path is None else params)
    step = jax.tree_util.tree_map_with_path(lambda p, leaf: v if p == (path or ()) else np.zeros_like(leaf), moves)
    size = max(1.0, *(float(np.max(np.abs(leaf), initial=0)) for leaf in jax.tree.leaves(moves)))
    h = 1e-5 * size / np.max(np.abs(v))

    def f(h: float) -> float:
        moved = jax.tree.map(lambda leaf, s: jnp.asarray(leaf + h * s), moves, step)
        p, a, q = (moved if given is moves else given for given in (params, a_in, probe))
        given = {"key": key, "train": True, "mask": mask, "probe": q}
        return float(np.sum(wide(run_forward(layer, *jax.tree.map(jnp.asarray, (p, a)), **given)[0]) * da))

    with jax.enable_x64(True):
        measured = (f(h) - f(-h)) / (2 * h)
    ours = float(np.sum(manual * v)) * (a_in.shape[0] if "gradients" in source else 1)
    return abs(ours - measured) / max(abs(measured), np.finfo(float).tiny)
