"""The same networks, parameters and steps in other libraries: Flax and Equinox with optax, PyTorch, scikit-learn.

Each library's function takes a problem and gives, for a network that it is written for, its calls by kind. A library that is
not installed, a network that one has no layers for, and one that fails are left out.

No file here has the name of a library: a type checker takes it for one that is not installed.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

from ..problems import GRADIENT, STEP, Problem
from .equinox_optax import equinox
from .flax_optax import flax
from .others import python_loop, scikit_learn
from .pytorch import torch_compiled, torch_eager

LIBRARIES: list[tuple[str, tuple[str, ...], Callable[[Problem], dict[str, Callable[..., Any]]]]] = [
    ("jax.grad, Python loop", (), python_loop),
    ("Flax + optax", ("flax", "optax"), flax),
    ("Equinox + optax", ("equinox", "optax"), equinox),
    ("PyTorch", ("torch",), torch_eager),
    ("torch.compile", ("torch",), torch_compiled),
    ("scikit-learn", ("sklearn",), scikit_learn),
]


def peers(problem: Problem, say: Callable[[str], None] = print) -> dict[str, dict[str, Callable[..., Any]]]:
    """kind: name: the call, of each library that is installed and computes the same."""
    found: dict[str, dict[str, Callable[..., Any]]] = {GRADIENT: {}, STEP: {}}
    for name, needs, calls in LIBRARIES:
        if all(importlib.util.find_spec(module) for module in needs):
            try:
                for kind, call in calls(problem).items():
                    found[kind][name] = call
            except NotImplementedError:
                continue
            except Exception as error:
                say(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
    return found
