"""The mistakes of networks: of a layer's equations, of a cost's derivative and of a penalty's gradient.

Most are the right equation with something wrong put in (σ' left out, a rotated kernel, a shifted input), which autodiff
computes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from ..activations import Activation, linear
from ..costs import Cost
from ..layers._attention import Attention
from ..layers._layer import Layer, Params, run_forward
from ..layers._norm import Normalisation
from ..layers._pool import MaxPool, laid_out, lowest, pool_window
from ..layers._window import taps
from ..penalties import is_weight
from .formulas import attention_errors, gain_gradients, normalisation_errors
from .function_mistakes import Program, Search
from .mistakes import Failure, siblings
from .sides import Given, cost_derivative, is_float, leaf_at, pulled
from .verdicts import Subject, wide


def of_cost(net: Layer, cost: Cost, subject: Subject, failure: Failure, source: str, path: Any, case: int) -> Failure:
    """The mistakes of a cost's derivative."""

    def ideas() -> Iterator[tuple[str, Any]]:
        given: Given = jax.device_put(subject.args(case)[0])
        params, x, y, key, mask, weights = given
        a, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
        if np.any(cost.targets(a, y)):
            yield "the targets are left out", a
        yield "the outputs are left out", -cost.targets(a, y)
        if weights is not None:
            plain = cost_derivative(net, cost, given._replace(weights=None))
            yield "the weights of the examples are left out", plain[source].autodiff
        if (output := net.output(params, cache)) is not None:
            once_more = jax.vjp(*output)[1](jnp.asarray(failure.reference))[0]
            yield "σ' is applied here: it cancels in a matched pair, and BP1 applies it otherwise", once_more

    return dataclasses.replace(failure, m=len(failure.reference), per_example=True, ideas=ideas)


def of_penalty(
    penalty: Any, n_examples: Any, params: Params, failure: Failure, source: str, path: Any, case: int
) -> Failure:
    """The mistakes of a penalty's gradient."""
    n, lam = float(n_examples) or float("nan"), getattr(penalty, "lam", None)
    numbers = {"1/N": 1 / n} if lam is None else {"λ/N": float(lam) / n, "1/N": 1 / n, "λ": float(lam)}

    def ideas() -> Iterator[tuple[str, Any]]:
        p = wide(leaf_at(path, params))
        if not is_weight(path) and np.any(p):
            yield "a bias is penalised", np.sum(failure.manual * p) / np.sum(p * p) * p
            yield "a bias is penalised", np.max(np.abs(failure.manual)) * np.sign(p)

    return dataclasses.replace(failure, numbers=numbers, ideas=ideas)


def of_layer(layer: Layer, subject: Subject, failure: Failure, source: str, path: Any, case: int) -> Failure:
    """The mistakes of a layer's equation, each computed by autodiff in float64."""
    return _LayerMistakes(layer, subject, failure, source, path, case).failure()


class _LayerMistakes:
    """What a layer's equation would have given with something wrong put in."""

    def __init__(self, layer: Layer, subject: Subject, failure: Failure, source: str, path: Any, case: int) -> None:
        _, a_in, key, mask, da, _ = subject.cases[case]
        with jax.enable_x64(True):
            given = subject.args(case)
            self.params, self.a_in, self.da = (jax.device_put(given[i]) for i in (0, 1, 4))
        self.layer, self.key, self.mask, self.path, self.right = layer, key, mask, path, failure
        self.equation, self.sides = source.split()[0], subject.best(case)
        self.source, self.to_leaf, self.m = source, "gradients" in source, a_in.shape[0]
        delta = self.sides["error"].autodiff if "error" in self.sides else None
        self.delta: Any = delta if isinstance(delta, Array) and delta.shape == da.shape else None
        self.twin: Any = _without_activation(layer) if self.delta is not None else None
        self.composed = self.equation in ("backward", "output_backward") or self.twin is None

    def failure(self) -> Failure:
        is_error = self.equation in ("error", "output_error")
        numbers = {"T, the number of steps or places,": float(math.prod(self.da.shape[1:-1]))}
        if not jax.tree.leaves(self.params):
            numbers["∏k, the size of the window,"] = self.a_in.size / max(self.da.size, 1)
        incoming = self.da if is_error or self.composed else self.delta
        return dataclasses.replace(
            self.right,
            m=self.m,
            incoming=None if self.to_leaf or incoming is None else wide(incoming),
            per_example=not self.to_leaf,
            numbers=numbers,
            siblings=siblings(self.sides[self.source].autodiff, self.path) if self.to_leaf else {},
            each=self.each if self.to_leaf else lambda: None,
            ideas=self.ideas,
            last_ideas=self.planted,
        )

    def ideas(self) -> Iterator[tuple[str, Any]]:
        if self.equation in ("error", "output_error"):
            yield from self.errors()
        elif self.delta is not None:
            yield from self.with_another_delta()
            yield from self.gradients() if self.to_leaf else self.propagations()

    def planted(self) -> Iterator[tuple[str, Any]]:
        """One operation's derivative wrong: of the layer's own forward pass, whose ∂/∂z, ∂/∂a_in and ∂/∂params the three
        equations are."""
        given: dict[str, Any] = {keystr(path): leaf for path, leaf in tree_leaves_with_path(self.params)}
        n, treedef = len(given), jax.tree.structure(self.params)
        if is_float(self.a_in):
            given["a_in"] = self.a_in
        if self.delta is not None:
            given["z"] = jnp.zeros_like(self.delta)
        own = keystr(self.path) if self.to_leaf else "z" if self.equation in ("error", "output_error") else "a_in"
        names, scale = list(given), 1 / self.m if self.to_leaf else 1.0

        def f(leaves: list[Any]) -> list[Any]:
            rest = dict(zip(names[n:], leaves[n:], strict=True))
            about = {"key": self.key, "train": True, "mask": self.mask, "probe": rest.get("z")}
            return [run_forward(self.layer, treedef.unflatten(leaves[:n]), rest.get("a_in", self.a_in), **about)[0]]

        program = Program(f, list(given.values()), [self.da], names, ["a_out"])
        of_sum = dataclasses.replace(
            self.right, manual=self.right.manual / scale, reference=self.right.reference / scale
        )
        if self.right.manual.shape == self.right.reference.shape and own in given:
            for text, candidate in Search(program, names.index(own))(program, of_sum):
                yield text, scale * candidate

    def error(self, da: Any) -> Array:
        """BP1, by autodiff."""
        zeros = jnp.zeros_like(self.da)
        return pulled(self.layer, self.params, self.a_in, self.key, self.mask, da, zeros)[2]

    def fed(self, delta: Any, *, params: Any = None, a_in: Any = None) -> Any:
        """BP2's product, or BP3 and BP4's leaf, of this δ, by autodiff."""
        params = self.params if params is None else params
        a_in = self.a_in if a_in is None else a_in
        d_params, da_in, _ = pulled(self.twin, params, a_in, self.key, self.mask, delta)
        return leaf_at(self.path, d_params) / self.m if self.to_leaf else da_in

    def cache(self) -> Any:
        return run_forward(self.layer, self.params, self.a_in, key=self.key, train=True, mask=self.mask)[1]

    def errors(self) -> Iterator[tuple[str, Any]]:
        if self.delta is None:
            return
        if np.array_equal(self.right.reference, wide(self.da)):
            yield "autodiff's δ is ∂C/∂a itself: forward adds the probe to a, not to z", self.right.manual
        yield "σ' is missing: this is ∂C/∂a itself", self.da
        yield "σ' is applied twice", self.error(self.delta)
        if (output := self.layer.output(self.params, self.cache())) is not None:
            activation, z = output
            yield "σ' is taken at a, not at z", jax.vjp(activation, activation(z))[1](self.da)[0]
        for step in (1, -1):
            of_another = jnp.roll(self.error(jnp.roll(self.da, -step, axis=0)), step, axis=0)
            yield "σ' of another example: a stale or shifted cache", of_another
        n = self.da.shape[-1]
        if n <= 64:
            units = [self.error(jnp.zeros_like(self.da).at[..., j].set(1))[..., j] for j in range(n)]
            yield "only the diagonal of σ's Jacobian is used", jnp.stack(units, axis=-1) * self.da

    def with_another_delta(self) -> Iterator[tuple[str, Any]]:
        if self.twin is None:
            return
        twice = self.error(self.delta)
        if self.composed:
            yield "σ' is missing: this is fed with ∂C/∂a", self.fed(self.da)
            yield "σ' is applied twice", self.fed(twice)
        else:
            yield "σ' is applied once more: δ has it already", self.fed(twice)
        for step in (1, -1):
            yield "the errors of other examples: shifted by one", self.fed(jnp.roll(self.delta, step, axis=0))

    def propagations(self) -> Iterator[tuple[str, Any]]:
        if jax.tree.leaves(self.params):
            yield "the product is left out: this is δ itself", self.delta
            for text, change in PARAMETER_MISTAKES if self.twin is not None else ():
                yield text, self.fed(self.delta, params=jax.tree.map(change, self.params))
        if isinstance(self.layer, Normalisation):
            yield from normalisation_errors(self.layer, self.params, self.cache(), self.delta)
        elif isinstance(self.layer, Attention):
            yield from attention_errors(self.layer, self.a_in, self.mask, self.delta)
        elif isinstance(self.layer, MaxPool):
            win = pool_window("", self.a_in, self.layer.size, self.layer.stride, self.layer.padding)
            places = taps(self.a_in, win, lowest(self.a_in))
            largest = functools.reduce(jnp.maximum, places)
            ties = [jnp.where(tap == largest, self.delta, 0) for tap in places]
            yield "every entry that ties for the maximum gets the whole error", laid_out(ties, win)
            share = self.delta / len(places)
            yield "spread evenly over the window, as for a mean", laid_out([share] * len(places), win)
            first = [self.delta, *[jnp.zeros_like(self.delta)] * (len(places) - 1)]
            yield "put at the first place of the window, not at the maximum", laid_out(first, win)
        elif not jax.tree.leaves(self.params) and self.a_in.ndim > 2:
            own = wide(self.fed(self.delta))
            yield "only the first place of each window gets the error", np.where(_first_places(own), own, 0)

    def gradients(self) -> Iterator[tuple[str, Any]]:
        if isinstance(self.layer, Normalisation) and keystr(self.path) == "['g']":
            yield from gain_gradients(self.layer, self.cache(), self.delta)
        if self.twin is None:
            return
        if self.a_in.shape == self.da.shape:
            a_out, _ = run_forward(self.layer, self.params, self.a_in, key=self.key, train=True, mask=self.mask)
            yield "a_out stands where a_in belongs", self.fed(self.delta, a_in=a_out)
        for axis in range(1, self.a_in.ndim - 1):
            for step in (1, -1):
                off = self.fed(self.delta, a_in=_slid(self.a_in, axis, step))
                yield f"off by one: a_in is read one place or step away along axis {axis} (padding)", off
        spatial = tuple(range(1, self.a_in.ndim - 1))
        if spatial:
            yield (
                "a_in is rotated by 180° where it belongs as it is",
                self.fed(self.delta, a_in=jnp.flip(self.a_in, spatial)),
            )
            yield "δ is rotated by 180° where it belongs as it is", self.fed(jnp.flip(self.delta, spatial))
        mean_delta, mean_a = (jnp.mean(side, 0, keepdims=True) for side in (self.delta, self.a_in))
        of_means = self.m * self.fed(mean_delta, a_in=mean_a)
        yield "the mean error is fed to BP4: a mean of products is no product of means", of_means

    def each(self) -> np.ndarray | None:
        """The gradient of each example alone; None where they do not add up to the whole."""
        reference = self.right.reference
        if "key" in self.layer._keywords or self.m * reference.size > 2**26:
            return None
        owner, fed = (self.layer, self.da) if self.composed else (self.twin, self.delta)

        def one(a: Array, fed: Array, mask: Any) -> Any:
            mask = None if mask is None else mask[None]
            return leaf_at(self.path, pulled(owner, self.params, a[None], None, mask, fed[None])[0])

        found = wide(jax.vmap(one)(self.a_in, fed, self.mask))
        adds_up = np.abs(found.sum(0) / self.m - reference).max() <= self.right.tolerance * np.abs(reference).max()
        return found if adds_up else None


def _without_activation(layer: Layer) -> Layer | None:
    """A layer with the same z and σ(z) = z, whose autodiff takes a δ; None where there is none."""
    if isinstance(getattr(layer, "activation", None), Activation) and dataclasses.is_dataclass(layer):
        return dataclasses.replace(layer, activation=linear)
    return layer if type(layer).error is Layer.error else None


def _slid(a: Array, axis: int, step: int) -> Array:
    """Moved by one place along an axis, zeros coming in."""
    moved = jnp.roll(a, step, axis)
    return moved.at[(*(slice(None),) * axis, 0 if step > 0 else -1)].set(0)


def _first_places(a: np.ndarray) -> np.ndarray:
    """Where an entry differs from the one before it along each spatial axis."""
    first = np.ones(a.shape, bool)
    for axis in range(1, a.ndim - 1):
        before = np.roll(a, 1, axis)
        here = before != a
        here[(*(slice(None),) * axis, 0)] = True
        first &= here
    return first


def _square_transposed(w: Array) -> Array:
    return jnp.swapaxes(w, -1, -2) if w.ndim >= 2 and w.shape[-1] == w.shape[-2] else w


def _rotated(w: Array) -> Array:
    return jnp.flip(w, tuple(range(w.ndim - 2))) if w.ndim > 2 else w


PARAMETER_MISTAKES: tuple[tuple[str, Callable[[Array], Array]], ...] = (
    ("the weights are transposed once too often or too seldom", _square_transposed),
    ("the kernel is rotated by 180° once too often or too seldom", _rotated),
    ("the kernel is transposed and rotated wrongly", lambda w: _rotated(_square_transposed(w))),
)
