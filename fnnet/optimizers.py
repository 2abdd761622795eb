"""Optimisers as pure functions, and learning-rate schedules.

The protocol is optax's: ``init(params) -> state`` and ``update(grads, state, params) -> (updates, state)``; the updates
are added to the parameters by `apply_updates`. An ``update`` may declare more keywords (optax's extra arguments), see
`updated`. An optimiser is a pytree whose numbers are leaves, so η can be
traced and vmapped over: two values, one compilation. A schedule is any function of the step (0, 1, 2, ...); those here
are pytrees too.

Source: the notes, section 3 (gradient descent); Sutskever et al. (2013) for momentum; Kingma and Ba (2015) for Adam.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .activations import at_least_float32
from .forms import varying
from .given import check_number, whole
from .penalties import is_weight

__all__ = [
    "Adam",
    "AdamW",
    "Chain",
    "ClipByGlobalNorm",
    "ClipByValue",
    "CosineDecay",
    "ExponentialDecay",
    "NaturalGradient",
    "Optimizer",
    "Sgd",
    "StepDecay",
    "adam",
    "adamw",
    "apply_updates",
    "chain",
    "clip",
    "clip_by_global_norm",
    "natural_gradient",
    "sgd",
]


class Optimizer(Protocol):
    """What ``optimizer=`` takes; every optax transformation is one."""

    @property
    def init(self) -> Any:
        """params -> state."""
        ...

    @property
    def update(self) -> Any:
        """(grads, state, params) -> (updates, state)."""
        ...


def is_transformation(value: Any) -> bool:
    """Whether it has the two functions of `Optimizer`."""
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


@jax.jit
def apply_updates(params: Any, updates: Any) -> Any:
    """params + updates, leaf by leaf, in the parameters' dtypes."""
    return jax.tree.map(lambda p, u: p + jnp.asarray(u, jnp.result_type(p)), params, updates)


class _Functions(NamedTuple):
    """The two functions of an optimiser that JAX does not know as a pytree."""

    init: Any
    update: Any


def traceable(value: Any) -> Any:
    """The value as a pytree in which numbers are leaves and plain functions are static."""
    if jax.tree_util.all_leaves([value]) and hasattr(value, "init") and hasattr(value, "update"):
        value = _Functions(value.init, value.update)
    return jax.tree.map(lambda leaf: jax.tree_util.Partial(leaf) if callable(leaf) else leaf, value)


EXTRA = "value", "grad", "value_fn"


def updated(function: str, optimizer: Any, grads: Any, state: Any, params: Any, **given: Any) -> tuple[Any, Any]:
    """(updates, state) of ``optimizer.update(grads, state, params)``, the state in the dtypes that it had.

    An update that declares more keywords gets those that are given; one that takes any gets optax's three, `EXTRA`, and
    a `chain` all of them, for its parts.

    Raises:
        ValueError: where it needs one that is not given.
    """
    declared = list(inspect.signature(optimizer.update).parameters.values())[3:]
    any_more = (
        given if isinstance(optimizer, Chain) else EXTRA if any(p.kind is p.VAR_KEYWORD for p in declared) else ()
    )
    wanted = {p.name for p in declared}.union(any_more)
    given = {name: value for name, value in given.items() if name in wanted}
    try:
        updates, new = optimizer.update(grads, state, params, **given)
    except TypeError as error:
        if "required keyword-only argument" not in str(error):
            raise
        known = ", ".join(["grads", "state", "params", *given])
        raise ValueError(
            f"{function}: expected an optimizer whose update needs no more than {known}, got {error}; use another optimizer, "
            f"or wrap it in an update that supplies the rest"
        ) from error
    return updates, jax.tree.map(_in_dtype_of, state, new)


def extra_arguments(value: Array, grads: Any, run: Callable[[Any], tuple[Array, Any]]) -> dict[str, Any]:
    """What optax's protocol may ask for beside gradients: the objective, its gradient, and both as functions of the
    parameters on the same mini-batch, where run(params) -> (objective, gradient). Differentiating the objective gives run's
    gradient, not autodiff's."""

    @jax.custom_vjp
    def objective(params: Any) -> Array:
        return run(params)[0]

    def pull_back(gradient: Any, cotangent: Array) -> tuple[Any]:
        return (jax.tree.map(lambda g: cotangent.astype(g.dtype) * g, gradient),)

    objective.defvjp(run, pull_back)
    return {
        "value": value,
        "grad": grads,
        "value_fn": lambda params: objective(params),
        "grad_fn": lambda params, step: run(params)[1],
    }


def _in_dtype_of(old: Any, new: Any) -> Any:
    dtype = jnp.result_type(old)
    return new if jnp.result_type(new) == dtype else jnp.asarray(new).astype(dtype)


def _at(rate: Any, step: Array) -> Any:
    return rate(step) if callable(rate) else rate


def _times(number: Any, leaf: Array) -> Array:
    return jnp.asarray(number).astype(leaf.dtype) * leaf


def _alike(a: Array, b: Array) -> tuple[Array, Array]:
    """Both in one dtype: theirs, or the wider of the two at least float32 ones."""
    if a.dtype == b.dtype:
        return a, b
    wide = jnp.float64 if jnp.float64 in (a.dtype, b.dtype) else jnp.float32
    return a.astype(wide), b.astype(wide)


def _check(owner: str, learning_rate: Any = 0, **numbers: Any) -> None:
    """Raise a ValueError unless all are numbers ≥ 0; the learning rate may be a schedule, whose numbers are looked at too."""
    for name, value in numbers.items():
        check_number(owner, name, value, "give a number such as 0.9")
    if isinstance(learning_rate, StepDecay | ExponentialDecay | CosineDecay):
        for name, value in vars(learning_rate).items():
            check_number(type(learning_rate).__name__, name, value, "a schedule's numbers are not negative")
    elif not callable(learning_rate):
        remedy = "gradient descent goes downhill by a number such as 0.1, or a schedule, a function of the step"
        check_number(owner, "learning_rate", learning_rate, remedy)


def _check_limit(owner: str, limit: Any) -> None:
    check_number(owner, "limit", limit, "give the largest size that stays as it is, such as 1.0")


class SgdState(NamedTuple):
    """The step number and, with momentum, the velocity v (a pytree like the parameters)."""

    step: Array
    velocity: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sgd:
    """See `sgd`."""

    learning_rate: Any
    momentum: Any
    nesterov: bool = field(metadata={"static": True})

    def init(self, params: Any) -> SgdState:
        """Step 0 and, with momentum, v = 0."""
        velocity = None if self.momentum is None else jax.tree.map(jnp.zeros_like, params)
        return SgdState(jnp.zeros((), jnp.int32), velocity)

    def update(self, grads: Any, state: SgdState, params: Any = None) -> tuple[Any, SgdState]:
        """−η g; with momentum v ← μ v + g and −η v, or −η (g + μ v) with Nesterov's look-ahead."""
        eta, velocity = _at(self.learning_rate, state.step), None
        direction = grads
        if self.momentum is not None:

            def ahead(v: Array, g: Array) -> Array:
                v, g = _alike(v, jnp.asarray(g))
                return _times(self.momentum, v) + g

            velocity = jax.tree.map(lambda v, g: ahead(v, g).astype(v.dtype), state.velocity, grads)
            direction = jax.tree.map(ahead, velocity, grads) if self.nesterov else velocity
        return jax.tree.map(lambda d: -_times(eta, d), direction), SgdState(state.step + 1, velocity)


def sgd(learning_rate: Any, momentum: Any = 0, nesterov: bool = False) -> Sgd:
    """Stochastic gradient descent: w ← w − η ∂C/∂w.

    Args:
        learning_rate: η, a number or a function of the step.
        momentum: μ; with it v ← μ v + g and w ← w − η v. The number 0 keeps no velocity at all.
        nesterov: step along g + μ v instead of v.

    Raises:
        ValueError: for a negative number, or Nesterov without momentum.
    """
    _check("sgd", learning_rate=learning_rate, momentum=momentum)
    plain = isinstance(momentum, int | float | np.number) and momentum == 0
    if nesterov and plain:
        raise ValueError("sgd: expected a momentum with nesterov=True, got 0; give momentum=0.9, say")
    return Sgd(traceable(learning_rate), None if plain else momentum, bool(nesterov))


class AdamState(NamedTuple):
    """The step number and the running means of g and g², in at least float32."""

    step: Array
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adam:
    """See `adam`."""

    learning_rate: Any
    b1: Any
    b2: Any
    eps: Any

    def init(self, params: Any) -> AdamState:
        """Step 0 and both means 0."""
        zeros = jax.tree.map(lambda p: jnp.zeros_like(at_least_float32(p)), params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(self, grads: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        """−η m̂ / (√v̂ + ε) with m̂ and v̂ the means of g and g², corrected for their start at 0."""
        step = state.step + 1

        def mean(decay: Any) -> Any:
            def of(old: Array, new: Array) -> Array:
                wide_old, wide_new = _alike(old, new)
                return (_times(decay, wide_old) + _times(1 - decay, wide_new)).astype(old.dtype)

            return of

        def corrected(decay: Any, leaf: Array) -> Array:
            return leaf / (1 - jnp.asarray(decay).astype(leaf.dtype) ** step.astype(leaf.dtype))

        def direction(m: Array, v: Array, g: Array) -> Array:
            eta, eps = _at(self.learning_rate, state.step), jnp.asarray(self.eps).astype(v.dtype)
            return -_times(eta, corrected(self.b1, m) / (jnp.sqrt(corrected(self.b2, v)) + eps)).astype(g.dtype)

        wide = jax.tree.map(at_least_float32, grads)
        first = jax.tree.map(mean(self.b1), state.first, wide)
        second = jax.tree.map(mean(self.b2), state.second, jax.tree.map(jnp.square, wide))
        return jax.tree.map(direction, first, second, grads), AdamState(step, first, second)


def adam(learning_rate: Any = 1e-3, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> Adam:
    """Adam: steps of about η along each parameter, whatever the gradient's scale.

    Args:
        learning_rate: η, a number or a function of the step.
        b1: decay of the running mean of g.
        b2: decay of the running mean of g².
        eps: added to the root of the second mean.

    Raises:
        ValueError: for a negative number.
    """
    _check("adam", learning_rate=learning_rate, b1=b1, b2=b2, eps=eps)
    return Adam(traceable(learning_rate), b1, b2, eps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdamW:
    """See `adamw`."""

    adam: Adam
    weight_decay: Any

    def init(self, params: Any) -> AdamState:
        """As `Adam`'s."""
        return self.adam.init(params)

    def update(self, grads: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        """Adam's update less η λ w for the weights."""
        if params is None:
            raise ValueError(
                "adamw: expected the parameters, which it decays, got None; give update(grads, state, params)"
            )
        eta = _at(self.adam.learning_rate, state.step)
        updates, state = self.adam.update(grads, state, params)

        def decayed(path: tuple[Any, ...], update: Array, w: Array) -> Array:
            if not is_weight(path):
                return update
            shrunk = _times(eta, _times(self.weight_decay, at_least_float32(w)))
            return (at_least_float32(update) - shrunk.astype(at_least_float32(update).dtype)).astype(update.dtype)

        return jax.tree_util.tree_map_with_path(decayed, updates, params), state


def adamw(
    learning_rate: Any = 1e-3, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 0.01
) -> AdamW:
    """Adam with decoupled weight decay: each weight also shrinks by η λ w, outside of the running means.

    Only weights shrink, as under `L2`: leaves named ``w`` or ``w_…``; biases, gains and moving statistics do not.

    Args:
        learning_rate: η, a number or a function of the step.
        b1: decay of the running mean of g.
        b2: decay of the running mean of g².
        eps: added to the root of the second mean.
        weight_decay: λ.

    Raises:
        ValueError: for a negative number; by ``update`` without parameters.

    Source: Loshchilov and Hutter (2019).
    """
    _check("adamw", weight_decay=weight_decay)
    return AdamW(adam(learning_rate, b1, b2, eps), weight_decay)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NaturalGradient:
    """See `natural_gradient`."""

    learning_rate: Any
    damping: Any
    iterations: Any

    def init(self, params: Any) -> Array:
        """The step number 0."""
        return jnp.zeros((), jnp.int32)

    def update(self, grads: Any, state: Array, params: Any, *, ggnvp: Callable[[Any], Any]) -> tuple[Any, Array]:
        """−η d, with d from conjugate gradients on (G + λ) d = g."""

        def damped(d: Any) -> Any:
            v = jax.tree.map(lambda d, p: d.astype(jnp.result_type(p)), d, params)
            return jax.tree.map(lambda gd, d: gd.astype(d.dtype) + _times(self.damping, d), ggnvp(v), d)

        d = _conjugate_gradients(damped, jax.tree.map(at_least_float32, grads), self.iterations)
        eta = _at(self.learning_rate, state)
        return jax.tree.map(lambda d, g: -_times(eta, d).astype(g.dtype), d, grads), state + 1


def _conjugate_gradients(product: Callable[[Any], Any], b: Any, iterations: Any) -> Any:
    """x of A x = b for a positive definite A, by ``product(v)`` = A v, from 0 until ‖b − A x‖ ≤ 1e-5 ‖b‖, at most so many
    iterations. (As ``jax.scipy.sparse.linalg.cg``, whose result ``jax.shard_map`` takes for one that differs by device.)

    Source: Hestenes and Stiefel (1952).
    """

    wide = max(
        (leaf.dtype for leaf in jax.tree.leaves(b)), key=lambda dtype: dtype.itemsize, default=jnp.dtype("float32")
    )
    zero = varying(jnp.zeros((), wide), b)

    def dot(u: Any, v: Any) -> Array:
        return functools.reduce(
            jnp.add,
            (jnp.vdot(a, c).astype(wide) for a, c in zip(jax.tree.leaves(u), jax.tree.leaves(v), strict=True)),
            zero,
        )

    def along(x: Any, alpha: Array, p: Any) -> Any:
        return jax.tree.map(lambda x, p: x + alpha.astype(p.dtype) * p, x, p)

    def goes_on(carry: tuple) -> Array:
        _, _, _, gamma, k = carry
        return (gamma > bound) & (k < iterations)

    def iterate(carry: tuple) -> tuple:
        x, r, p, gamma, k = carry
        q = product(p)
        alpha = gamma / dot(p, q)
        r = along(r, -alpha, q)
        new = dot(r, r)
        return along(x, alpha, p), r, along(r, new / gamma, p), new, k + 1

    squared = dot(b, b)
    bound = 1e-10 * squared
    start = jax.tree.map(jnp.zeros_like, b), b, b, squared, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(goes_on, iterate, varying(start, b))[0]


def natural_gradient(learning_rate: Any = 1.0, damping: Any = 1e-2, iterations: Any = 20) -> NaturalGradient:
    """The natural gradient: steps along (G + λ)⁻¹ g, with G the Gauss-Newton matrix of the mini-batch, which for a matched
    cost is the Fisher information of the model.

    Solved by conjugate gradients on products G v, `ggnvp`, which every layer and composition has; G is never there. The
    damping λ bounds the step where G is flat: for large λ it is gradient descent with η/λ.

    `fit` hands ``ggnvp`` to it, v -> G v on the mini-batch, the penalty's Hessian added. In a loop of one's own:
    ``update(grads, state, params, ggnvp=lambda v: fn.ggnvp(net, cost, params, x, y, v))``.

    Args:
        learning_rate: η, a number or a function of the step.
        damping: λ.
        iterations: of conjugate gradients at most; fewer where the residual is below 1e-5 of g.

    Raises:
        ValueError: for a negative number, or iterations below 1; by `fit`, for a cost that is not matched to the last layer.

    Source: Amari (1998); Martens (2010, 2014).
    """
    _check("natural_gradient", learning_rate=learning_rate, damping=damping)
    if not isinstance(iterations, Array):
        whole("natural_gradient", "iterations", iterations)
    return NaturalGradient(traceable(learning_rate), damping, iterations)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClipByValue:
    """See `clip`."""

    limit: Any

    def init(self, params: Any) -> tuple[()]:
        """No state."""
        return ()

    def update(self, grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        """Every entry moved into [−limit, limit]."""

        def clipped(g: Array) -> Array:
            limit = jnp.asarray(self.limit).astype(g.dtype)
            return jnp.clip(g, -limit, limit)

        return jax.tree.map(clipped, jax.tree.map(jnp.asarray, grads)), state


def clip(limit: Any) -> ClipByValue:
    """Gradient clipping by value: g ← min(max(g, −limit), limit), entry by entry. It changes the gradient's direction.

    Args:
        limit: the largest entry that stays as it is.

    Raises:
        ValueError: for a limit that is negative or no number.
    """
    _check_limit("clip", limit)
    return ClipByValue(limit)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClipByGlobalNorm:
    """See `clip_by_global_norm`."""

    limit: Any

    def init(self, params: Any) -> tuple[()]:
        """No state."""
        return ()

    def update(self, grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        """All gradients, scaled down together where their norm is above the limit."""
        grads = jax.tree.map(jnp.asarray, grads)
        leaves = [at_least_float32(g) for g in jax.tree.leaves(grads) if g.size]
        if not leaves:
            return grads, state
        wide = jnp.result_type(*(leaf.dtype for leaf in leaves))
        top = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(leaf)).astype(wide) for leaf in leaves])
        unit = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
        squares = [jnp.sum(jnp.square(leaf / unit.astype(leaf.dtype))).astype(wide) for leaf in leaves]
        total = functools.reduce(jnp.add, squares)
        norm = jnp.where(top > 0, unit * jnp.sqrt(jnp.where(top > 0, total, 1)), top)
        limit = jnp.asarray(self.limit).astype(wide)
        scale = jnp.where(norm > limit, limit / jnp.where(norm > limit, norm, 1), 1)

        return jax.tree.map(lambda g: _times(scale, at_least_float32(g)).astype(g.dtype), grads), state


def clip_by_global_norm(limit: Any) -> ClipByGlobalNorm:
    """Gradient clipping by the global norm: g ← g · min(1, limit / ‖g‖), with ‖g‖² the sum over every entry of every leaf.

    It keeps the gradient's direction. The norm is computed from g / max |g|, so that it does not overflow where g does not.

    Args:
        limit: the largest norm that stays as it is.

    Raises:
        ValueError: for a limit that is negative or no number.

    Source: Pascanu, Mikolov and Bengio (2013).
    """
    _check_limit("clip_by_global_norm", limit)
    return ClipByGlobalNorm(limit)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chain:
    """See `chain`."""

    parts: tuple[Any, ...]

    def init(self, params: Any) -> tuple[Any, ...]:
        """The state of each part."""
        return tuple(part.init(params) for part in self.parts)

    def update(
        self, grads: Any, state: tuple[Any, ...], params: Any = None, **extra: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """Each part's update of what the part before it gave; the keywords go to those parts that declare them."""
        states = []
        for part, own in zip(self.parts, state, strict=True):
            grads, own = updated("chain", part, grads, own, params, **extra)
            states.append(own)
        return grads, tuple(states)


def chain(*parts: Optimizer) -> Chain:
    """Transformations one after another, as in ``chain(clip_by_global_norm(1.0), adam(1e-3))``; itself a transformation.

    Args:
        parts: fnnet's or optax's, the first one gets the gradients.

    Raises:
        ValueError: for something without init and update.
    """
    for part in parts:
        if not is_transformation(part):
            raise ValueError(f"chain: expected transformations with init and update, got {type(part).__name__}")
    return Chain(tuple(traceable(part) for part in parts))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepDecay:
    """η(step) = initial · factor^⌊step / every⌋.

    Raises:
        ValueError: for an ``every`` that is not positive.
    """

    initial: Any
    factor: Any
    every: Any

    def __post_init__(self) -> None:
        _check_steps("StepDecay", every=self.every)

    def __call__(self, step: Any) -> Any:
        # Not the floor of a quotient: XLA multiplies by 1/every instead, and 41 · (1/41) is below 1.
        whole = all(jnp.issubdtype(jnp.result_type(n), jnp.integer) for n in (step, self.every))
        step, every = (jnp.asarray(n).astype(jnp.result_type(int if whole else float)) for n in (step, self.every))
        return self.initial * self.factor ** _real(step // every)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExponentialDecay:
    """η(step) = initial · factor^(step / every).

    Raises:
        ValueError: for an ``every`` that is not positive.
    """

    initial: Any
    factor: Any
    every: Any

    def __post_init__(self) -> None:
        _check_steps("ExponentialDecay", every=self.every)

    def __call__(self, step: Any) -> Any:
        return self.initial * self.factor ** (_real(step) / self.every)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CosineDecay:
    """η(step) = final + ½ (initial − final) (1 + cos(π step / steps)), and final from ``steps`` on; before that a linear
    rise from 0 over the first ``warmup`` steps.

    Raises:
        ValueError: for ``steps`` that are not positive.

    Source: Loshchilov and Hutter (2017).
    """

    initial: Any
    steps: Any
    final: Any = 0.0
    warmup: Any = 0

    def __post_init__(self) -> None:
        _check_steps("CosineDecay", steps=self.steps)

    def __call__(self, step: Any) -> Any:
        step = _real(step)
        done = jnp.clip(step / self.steps, 0, 1)
        rate = self.final + 0.5 * (self.initial - self.final) * (1 + jnp.cos(jnp.pi * done))
        return rate * jnp.clip((step + 1) / (self.warmup + 1), 0, 1)


def _real(step: Any) -> Array:
    return jnp.asarray(step).astype(jnp.result_type(float))


def _check_steps(owner: str, **numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{owner}: expected {name} > 0, got {value}; it is a number of steps")
