"""The pictures that scripts of examples/ draw: each computes its numbers and draws them as here."""

import os
import tempfile
from typing import Any

import numpy as np

import feedback_alignment
import fnnet as fn
import gpt as language_model
import private as private_training
import residual as residual_networks
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


# %% Normalisation: what batch normalisation and skips do for a deep network.
def residual() -> Numbers:
    """Costs and accuracies (seeds, epochs) by network."""
    with tempfile.TemporaryDirectory() as folder:
        found = residual_networks.main(output=folder)
    return {f"{of} {name}": runs for of, each in found.items() for name, runs in each.items()}


def draw_residual(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(*WIDE)
    found = {
        of: {name: np.array(numbers[f"{of} {name}"]) for name in residual_networks.NETWORKS}
        for of in ("cost", "accuracy")
    }
    residual_networks.draw(found, figure)


# %% Attention: a GPT's losses, and what its heads attend to.
def gpt() -> Numbers:
    """Losses (rounds, 3) of both ways, the maps (heads, T, T) and the characters they are of: nanoGPT's CPU setting, on the
    text that FNNET_TEXT names."""
    if "FNNET_TEXT" not in os.environ:
        raise FileNotFoundError("a text: FNNET_TEXT=input.txt")
    with tempfile.TemporaryDirectory() as folder:
        found = language_model.main(os.environ["FNNET_TEXT"], language_model.NANOGPT, autodiff=True, output=folder)
    losses = {f"losses {name}": values for name, values in found["losses"].items()}
    return {**losses, "maps": found["maps"], "text": [ord(letter) for letter in found["text"]]}


def draw_gpt(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(WIDE[0], 4.2)
    losses = {key.removeprefix("losses "): of for key, of in numbers.items() if key.startswith("losses ")}
    text = "".join(chr(int(number)) for number in numbers["text"])
    language_model.draw({"losses": losses, "maps": np.array(numbers["maps"]), "text": text}, figure)
