"""The pictures that scripts of examples/ draw: each computes its numbers and draws them as here."""

import os
import tempfile
from collections.abc import Callable
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


def found(main: Callable, *given: Any, **settings: Any) -> Any:
    """What a script's main returns; its own picture is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        return main(*given, **settings, output=folder)


def flat(result: dict[str, dict[str, Any]]) -> Numbers:
    """{"of name": values}."""
    return {f"{of} {name}": values for of, each in result.items() for name, values in each.items()}


def nested(numbers: Numbers, *kinds: str) -> dict[str, dict[str, np.ndarray]]:
    """{of: {name: values}}: `flat` undone, of the kinds."""
    return {
        of: {key.removeprefix(f"{of} "): np.array(a) for key, a in numbers.items() if key.startswith(f"{of} ")}
        for of in kinds
    }


# %% Equations replaced: the rule's gradient turns towards the true one.
def alignment() -> Numbers:
    """Angles (epochs, 2 layers) and accuracies by rule."""
    return flat(found(feedback_alignment.main))


def draw_alignment(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(*WIDE)
    feedback_alignment.draw(nested(numbers, "angles", "accuracy"), figure)


# %% Every example's share: private training.
def private() -> Numbers:
    """Accuracies by epoch and 100 quantiles of the norms, by the way of training."""
    result = found(private_training.main)
    quantiles = {name: np.quantile(norms, np.linspace(0, 1, 100)) for name, norms in result["norms"].items()}
    return {**flat({"accuracy": result["accuracy"], "norms": quantiles}), "bound": [result["bound"]]}


def draw_private(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(*WIDE)
    private_training.draw({**nested(numbers, "accuracy", "norms"), "bound": numbers["bound"][0]}, figure)


# %% Curvature: the spectrum before and after training.
def spectrum() -> Numbers:
    """Ritz values and their weights of both matrices at both points."""
    return {name: [seen.values, seen.weights] for name, seen in found(spectra.main).items()}


def draw_spectrum(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(*WIDE)
    seen = {name: map(np.array, both) for name, both in numbers.items()}
    spectra.draw({name: fn.Spectrum(v[0], v[-1], v, weights) for name, (v, weights) in seen.items()}, figure)


# %% Normalisation: what batch normalisation and skips do for a deep network.
def residual() -> Numbers:
    """Costs and accuracies (seeds, epochs) by network."""
    return flat(found(residual_networks.main))


def draw_residual(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(*WIDE)
    residual_networks.draw(nested(numbers, "cost", "accuracy"), figure)


# %% Attention: a GPT's losses, and what its heads attend to.
def gpt() -> Numbers:
    """Losses (rounds, 3) of both ways, the maps (heads, T, T) and the characters they are of: nanoGPT's CPU setting, on the
    text that FNNET_TEXT names."""
    if "FNNET_TEXT" not in os.environ:
        raise FileNotFoundError("a text: FNNET_TEXT=input.txt")
    result = found(language_model.main, os.environ["FNNET_TEXT"], language_model.NANOGPT, autodiff=True)
    characters = [ord(letter) for letter in result["text"]]
    return {**flat({"losses": result["losses"]}), "maps": result["maps"], "text": characters}


def draw_gpt(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(WIDE[0], 4.2)
    text = "".join(chr(int(number)) for number in numbers["text"])
    language_model.draw({**nested(numbers, "losses"), "maps": np.array(numbers["maps"]), "text": text}, figure)
