"""The pictures that scripts of examples/ draw: each computes its numbers and draws them as here."""

import tempfile
from typing import Any

import numpy as np

import feedback_alignment
import fnnet as fn
import private as private_training
import spectrum as spectra

from .learn import Numbers

WIDE = 8.0, 3.4


# %% Equations replaced: the rule's gradient turns towards the true one.
def alignment() -> Numbers:
    """Angles (epochs, 2 layers) and accuracies by rule."""
    with tempfile.TemporaryDirectory() as folder:
        result = feedback_alignment.main(output=folder)
    return {f"{of} {name}": values for of, each in result.items() for name, values in each.items()}


def draw_alignment(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(*WIDE)
    result = {
        of: {name: np.array(numbers[f"{of} {name}"]) for name in feedback_alignment.RULES}
        for of in ("angles", "accuracy")
    }
    feedback_alignment.draw(result, figure)


# %% Every example's share: private training.
def private() -> Numbers:
    """Accuracies by epoch and 100 quantiles of the norms, by the way of training."""
    with tempfile.TemporaryDirectory() as folder:
        result = private_training.main(output=folder)
    norms = {f"norms {name}": np.quantile(of, np.linspace(0, 1, 100)) for name, of in result["norms"].items()}
    return {**{f"accuracy {name}": of for name, of in result["accuracy"].items()}, **norms, "bound": [result["bound"]]}


def draw_private(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(*WIDE)
    result: dict[str, Any] = {
        of: {key.removeprefix(f"{of} "): np.array(values) for key, values in numbers.items() if key.startswith(of)}
        for of in ("accuracy", "norms")
    }
    private_training.draw({**result, "bound": numbers["bound"][0]}, figure)


# %% Curvature: the spectrum before and after training.
def spectrum() -> Numbers:
    """Ritz values and their weights of both matrices at both points."""
    with tempfile.TemporaryDirectory() as folder:
        found = spectra.main(output=folder)
    return {name: [seen.values, seen.weights] for name, seen in found.items()}


def draw_spectrum(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(*WIDE)
    seen = {name: map(np.array, both) for name, both in numbers.items()}
    spectra.draw({name: fn.Spectrum(v[0], v[-1], v, weights) for name, (v, weights) in seen.items()}, figure)
