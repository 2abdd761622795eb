"""``jax.grad`` in a Python loop, and scikit-learn."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..problems import GRADIENT, PLAIN, RATE, STEP, Problem
from .shared import is_network


def python_loop(problem: Problem) -> dict[str, Callable[..., Any]]:
    """Steps by ``jax.grad`` of the plain forward pass, each a call of a jitted function on a batch from host memory."""
    if not is_network(problem):
        raise NotImplementedError
    params, x, y, rows = problem.kinds[STEP][PLAIN].given
    gradient = problem.kinds[GRADIENT][PLAIN].run
    x, y, rows = (np.asarray(a) for a in (x, y, rows))

    @jax.jit
    def step(params, x, y):
        value, gradients = gradient(params, x, y)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradients), value

    def run():
        trained = params
        for of_step in rows:
            trained, _ = step(trained, x[of_step], y[of_step])
        return trained

    return {STEP: run}


def scikit_learn(problem: Problem) -> dict[str, Callable[..., Any]]:
    """A step of its Boltzmann machine, by persistent chains, which are as much work as new ones."""
    if len(problem.inputs) != 5:
        raise NotImplementedError
    from sklearn.neural_network import BernoulliRBM

    _, params, data, m, steps = problem.inputs
    batches = np.asarray(data).reshape(steps, m, -1)
    model = BernoulliRBM(len(params["c"]), learning_rate=RATE, batch_size=m, random_state=0)

    def step():
        for batch in batches:
            model.partial_fit(batch)
        return ()

    return {STEP: step}
