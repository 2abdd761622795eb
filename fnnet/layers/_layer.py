"""The layer contract: what a layer is, the methods it gets for nothing, and the errors it raises.

A layer is a frozen, hashable dataclass that holds no arrays. `layer` makes a plain class one.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar, dataclass_transform, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import activations
from ..activations import Activation, at_least_float32, unwrapped, wide_dtype
from ..forms import rowwise, varying_axes
from ..programs import placed, program

__all__ = ["ExampleKeys", "Layer", "LayerError", "Sends", "Shard", "example_keys", "layer"]

Params = Any
Cache = Any
Delta = Any
Shape = tuple[int, ...]
Arrays = tuple[Array, ...]
Products = dict[str, tuple[Array, Array | None]]
T = TypeVar("T")


class LayerError(ValueError):
    """Bad input to a layer: names the layer, what it expected, what came and what to do.

    ``where`` is the layer's place in the network, such as (1, 0) for the first layer of a network that is the second.
    """

    def __init__(self, layer: Any, expected: str, got: str, remedy: str, where: tuple[int, ...] = ()) -> None:
        self.layer = layer
        self.expected = expected
        self.got = got
        self.remedy = remedy
        self.where = where
        place = f"layer {'.'.join(map(str, where))} " if where else ""
        super().__init__(f"{place}{layer!r}: expected {expected}, got {got}; {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.layer, self.expected, self.got, self.remedy, self.where), vars(self)


@contextmanager
def located(index: int) -> Iterator[None]:
    """Put the layer's index in front of the errors raised inside."""
    try:
        yield
    except LayerError as error:
        where = (index, *error.where)
        raise LayerError(error.layer, error.expected, error.got, error.remedy, where) from None


@dataclass(frozen=True, eq=False)
class Shard:
    """What one device holds of an array.

    Attributes:
        shape: of its part.
        dtype: of its entries.
        cut: for each axis of the array the axis of the mesh over which it is cut, None where it is whole.
    """

    shape: Shape
    dtype: Any
    cut: tuple[str | None, ...]

    def __getitem__(self, i: int) -> "Shard":
        """One entry of the first axis, such as a repetition of `Repeat`."""
        return Shard(self.shape[1:], self.dtype, self.cut[1:])


Psum = tuple[str, str, Shape, Any]


class Sends(NamedTuple):
    """What a layer's equations send over the axes of a mesh, and how its input and output are cut along their last axis.

    Attributes:
        a_in: the axis of the mesh over which the last axis of a_in has to be cut, None where it has to be whole.
        a_out: the axis over which that of a_out is cut.
        forward: the all-reduces of the forward pass, each (name, axis, shape, dtype) of what is added up.
        propagate: those of BP2, which runs where there are parameters below the layer.
        fixed: names of leaves whose gradient is 0.
    """

    a_in: str | None = None
    a_out: str | None = None
    forward: tuple[Psum, ...] = ()
    propagate: tuple[Psum, ...] = ()
    fixed: tuple[str, ...] = ()


class Layer:
    """The contract of a layer, with the methods that most layers need not write.

    A layer writes ``forward`` and ``propagate``, ``error`` where it has an activation, ``init`` and ``gradients`` where
    it has parameters. Shapes: axis 0 of every activation and error is the example; ``input_shape`` is one example's. So is
    axis 0 of every array of a cache (numbers are the same for all examples): from that follow `example_gradients`,
    `square_norms` and `second_moment`. A layer whose caches differ (statistics of the batch, time first) writes the first.
    """

    def __init_subclass__(cls, **given: Any) -> None:
        """A class that writes BP3 and BP4 anew, or every example's, or has them of a mixin, gets what follows from them: not
        the faster forms that it would inherit, which are of other equations."""
        super().__init_subclass__(**given)
        order = [vars(base) for base in cls.__mro__]
        writer = next(i for i, own in enumerate(order) if {"products", *SHARES[:2]} & own.keys())
        if "products" in order[writer]:  # of `SumsOfProducts`, which the others follow
            return
        first = next(i for i, name in enumerate(SHARES[:2]) if name in order[writer])
        for name in SHARES[first + 1 :]:
            if not any(name in own for own in order[: writer + 1]):
                setattr(cls, name, getattr(Layer, name))

    def init(self, key: Array, input_shape: Shape) -> Params:
        """The parameters, a pytree of arrays in the default float dtype; {} for a layer without any."""
        return {}

    def output_shape(self, input_shape: Shape) -> Shape:
        """One example's output shape, derived from ``forward`` without computing anything."""
        params = jax.eval_shape(lambda: self.init(jax.random.key(0), input_shape))

        def shape_for(dtype: Any) -> Shape:
            a_in = jax.ShapeDtypeStruct((1, *input_shape), dtype)
            return jax.eval_shape(lambda p, a: run_forward(self, p, a)[0], params, a_in).shape[1:]

        try:
            return shape_for(jnp.result_type(float))
        except TypeError:
            return shape_for(jnp.int32)

    def forward(self, params: Params, a_in: Array, *args: Any, **kwargs: Any) -> tuple[Array, Cache]:
        """(a_out, cache). It declares those of the keywords key, train, mask, probe and state that it uses."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(params, a_in) -> (a_out, cache)")

    def apply(self, params: Params, x: Any, *, mask: Any = None) -> Array:
        """a_out in inference mode, compiled.

        Args:
            params: from `init`, or any pytree like it.
            x: inputs (m, ...).
            mask: (m, T), True for the valid steps of sequences; for layers that use one.
        """
        return program(_apply, self)(params, as_data("x", x), as_array(mask))

    def apply_from(self, params: Params, x: Any, state: Any = None, *, mask: Any = None) -> tuple[Array, Any]:
        """(a_out, state after the last step) in inference mode, compiled: a long sequence can be run in pieces.

        Args:
            params: from `init`, or any pytree like it.
            x: inputs (m, T, ...).
            state: what the piece before returned; None starts anew.
            mask: (m, T), True for the valid steps.
        """
        return program(_apply_from, self)(params, as_data("x", x), state, as_array(mask))

    def moving(self, params: Params, cache: Cache) -> Params:
        """The parameters with their moving statistics brought up to date with a batch, which no gradient does; the same
        parameters where there are none. `fit` applies it after each update."""
        return params

    def final_state(self, cache: Cache) -> Any:
        """The state after the last step, for ``forward(..., state=)`` of the steps that follow; None for a layer without."""
        return None

    def error(self, params: Params, cache: Cache, da_out: Any) -> Delta:
        """BP1 and BP2's factor: δ = ∂C/∂a_out ⊙ σ'(z); da_out itself where there is no activation."""
        return da_out

    def propagate(self, params: Params, cache: Cache, delta: Delta) -> Array | None:
        """BP2's product: ∂C/∂a_in from δ; None for integer inputs."""
        raise NotImplementedError(f"{type(self).__name__} defines no propagate(params, cache, delta) -> da_in")

    def gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        """BP3 and BP4: the mean over the batch of each example's gradient, a pytree like params."""
        if jax.tree.leaves(params):
            raise NotImplementedError(
                f"{type(self).__name__} has parameters but defines no gradients(params, cache, delta) -> grads"
            )
        return params

    def example_gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        """BP3 and BP4 of each example: g_x = ∂C_x/∂params, a pytree like params with a leading axis m; their mean over it is
        ``gradients``. By default that equation for one example after the other, under ``vmap``.

        Where a layer mixes examples (batch normalisation while training), g_x is the part of the batch's gradient that goes
        through δ^x, the statistics of the batch given; the mean of these is the gradient as well.

        Raises:
            LayerError: for a cache with an array that has not the examples on axis 0.
        """
        if not jax.tree.leaves(params):
            return params
        leaves, structure = jax.tree.flatten((cache, delta))
        m = n_examples(delta)
        for leaf in leaves:
            if jnp.ndim(leaf) and jnp.shape(leaf)[0] != m:
                remedy = "write example_gradients(params, cache, delta) for a layer that keeps other arrays"
                raise LayerError(self, f"a cache of arrays with {m} examples on axis 0", str(jnp.shape(leaf)), remedy)
        given = [leaf for leaf in leaves if jnp.ndim(leaf)]

        def of_one(given: list[Array]) -> Params:
            arrays = iter(given)
            cache, delta = structure.unflatten([next(arrays)[None] if jnp.ndim(leaf) else leaf for leaf in leaves])
            return self.gradients(params, cache, delta)

        return jax.vmap(of_one)(given)

    def square_norms(self, params: Params, cache: Cache, delta: Delta) -> Array:
        """‖g_x‖² of each example over all leaves, (m,), in at least float32."""
        return square_norms_of(self.example_gradients(params, cache, delta), delta)

    def second_moment(self, params: Params, cache: Cache, delta: Delta) -> Params:
        """(1/m) Σ_x g_x² for each entry, a pytree like params, in at least float32."""
        return second_moment_of(self.example_gradients(params, cache, delta))

    def factor_rows(self, params: Params, cache: Cache, delta: Delta) -> Any:
        """(a, δ) where each example's gradient is, or is taken to be, the outer product δ_x a_xᵀ: the inputs (m, k) by the
        leaf that they belong to, in a dict, 1 for a bias, and the errors (m, n_out). None (the default) for a layer without
        such a form; a composite's is the tuple of its parts'.

        Where places share the weights, a is their mean and δ their sum.
        """
        return None

    def _gram(self, params: Params, cache: Cache, delta: Delta) -> Array:
        """⟨g_x, g_x'⟩ of each two examples, (m, m), in at least float32."""
        return gram_of(self.example_gradients(params, cache, delta), delta)

    def output(self, params: Params, cache: Cache) -> tuple[Activation, Array] | None:
        """(activation, z) where the output is activation(z), which is where a matched cost enters; else None."""
        return None

    def output_error(self, params: Params, cache: Cache, delta: Delta) -> Delta:
        """``error`` given δ^L, the error at the z that `output` names."""
        return delta

    def backward(self, params: Params, cache: Cache, da_out: Any) -> tuple[Array | None, Params]:
        """(da_in, gradients): error, propagate and gradients composed; a layer may fuse or recompute here."""
        delta = self.error(params, cache, da_out)
        return self._propagated(params, cache, delta), self.gradients(params, cache, delta)

    def output_backward(self, params: Params, cache: Cache, delta: Delta) -> tuple[Array | None, Params]:
        """``backward`` given δ^L."""
        delta = self.output_error(params, cache, delta)
        return self._propagated(params, cache, delta), self.gradients(params, cache, delta)

    def _propagated(self, params: Params, cache: Cache, delta: Delta) -> Array | None:
        """``propagate``, or None where the layer defines none: a first layer needs none."""
        return None if type(self).propagate is Layer.propagate else self.propagate(params, cache, delta)

    def collectives(self, params: Params, a_in: Shard, a_out: Shard) -> Sends:
        """What the forward pass and BP2 send where arrays are cut over a mesh, for `fnnet.collectives`. (BP3 and BP4 are sums
        over the batch: over the axis that cuts it they are added up with the cost's, which is no matter of the layer.)

        Args:
            params: a `Shard` for each leaf.
            a_in: (m, ...) as it comes; ``a_in.cut[0]`` is the axis that cuts the batch.
            a_out: (m, ...), cut along the batch only.

        Raises:
            LayerError: for a cut under which the equations would have to move data; by default, for any of a parameter.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if any(leaf.cut):
                got = f"params{jax.tree_util.keystr(path)} cut by P{leaf.cut}"
                remedy = "give it P(); a layer of your own may write collectives(params, a_in, a_out) -> fn.Sends"
                raise LayerError(self, "parameters that each device holds whole", got, remedy)
        return Sends()

    def in_loop(self: T) -> T:
        """This layer with the equations that are fastest inside a compiled loop of updates, where a gradient is used at
        once and the compiler sees both; ``fit`` trains with ``net.in_loop()``. Same results up to rounding."""
        return self

    independent: ClassVar[bool] = False
    """Whether a batch may be run in chunks: no example's output or gradient depends on another example, and a key may come
    as `ExampleKeys`. A layer of your own says so by ``independent = True`` in its class."""

    kept: ClassVar[bool] = True
    """Whether the compiler keeps the output in memory. It may instead compute it again wherever it is used, where that
    looks cheap (a chain of comparisons does); above a layer that says False, `Network.in_loop` changes nothing, since a
    sum that is written out there would repeat it for every weight."""

    @property
    def _title(self) -> str:
        """The layer's kind, as tables of layers show it."""
        return type(self).__name__

    @property
    def _keywords(self) -> frozenset[str]:
        """Those of the keywords key, train, mask, probe and state that ``forward`` declares, and a composite's run."""
        return keywords(type(self))

    @property
    def _moves(self) -> bool:
        """Whether the layer has moving statistics: it writes `moving`."""
        return type(self).moving is not Layer.moving

    def __getstate__(self) -> dict[str, Any]:
        """Without the remembered hash: that of a string differs in another process, that of a changed copy with it."""
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    _example: ClassVar[str] = ""
    """How the layer is built, for errors, such as "fn.Dense(10, fn.softmax)"."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        remedy = "a layer holds no parameters: net.apply(params, x) with params = net.init(key, input_shape)"
        raise TypeError(f"{self!r}: expected apply(params, x), got a call; {remedy}")

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                shown.append(repr(value))
            elif value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


SHARES = ("gradients", "example_gradients", "square_norms", "second_moment", "_gram", "factor_rows")
"""The first two of these methods, of which the others follow."""


def n_examples(delta: Delta) -> int:
    """m."""
    return jax.tree.leaves(delta)[0].shape[0]


def square_norms_of(shares: Params, delta: Delta) -> Array:
    """‖g_x‖² (m,) from g_x, a pytree with a leading axis m."""
    squares = [jnp.square(at_least_float32(g)) for g in jax.tree.leaves(shares)]
    return added_up([jnp.sum(g, axis=tuple(range(1, g.ndim))) for g in squares], delta)


def second_moment_of(shares: Params) -> Params:
    """(1/m) Σ_x g_x² from g_x, a pytree with a leading axis m."""
    return jax.tree.map(lambda g: jnp.mean(jnp.square(at_least_float32(g)), axis=0), shares)


def gram_of(shares: Params, delta: Delta) -> Array:
    """⟨g_x, g_x'⟩ (m, m) from g_x, a pytree with a leading axis m."""
    rows = [at_least_float32(g).reshape(len(g), -1) for g in jax.tree.leaves(shares)]
    return added_up([rowwise(lambda g: g @ g.T)(g) for g in rows], delta, 2)


def added_up(parts: Sequence[Array], delta: Delta, rank: int = 1) -> Array:
    """The sum over leaves or layers, in the widest of their dtypes; 0 for each example, or each two, where there are none."""
    if not parts:
        first = jax.tree.leaves(delta)[0]
        return jnp.zeros((len(first),) * rank, wide_dtype(first.dtype))
    dtype = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    return functools.reduce(jnp.add, (part.astype(dtype) for part in parts))


def _apply(layer: Layer, params: Params, x: Array, mask: Array | None) -> Array:
    return run_forward(layer, params, x, mask=mask)[0]


def _apply_from(layer: Layer, params: Params, x: Array, state: Any, mask: Array | None) -> tuple[Array, Any]:
    a, cache = run_forward(layer, params, x, mask=mask, state=state)
    return a, layer.final_state(cache)


def _normalise(owner: Any, name: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(_normalise(owner, name, item) for item in value)
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{type(owner).__name__}.{name}: expected a hashable value (numbers, strings, tuples, layers, functions), "
            f"got {type(value).__name__}; a layer holds no arrays, so return them from init(key, input_shape) instead"
        ) from None
    return value


@dataclass_transform(frozen_default=True)
def layer(cls: type[T]) -> type[T]:
    """Make a class a layer: a frozen dataclass, hashable and equal by value, static under ``jax.jit``, and with the
    default methods of `Layer`. Lists in its fields become tuples. A class that was given before gives the same layer class.

    Raises:
        TypeError: for something that is no class, or a dataclass already; and when a layer is built with an array, a dict or
            anything else unhashable in a field.
    """
    if not isinstance(cls, type):
        raise TypeError(f"layer: expected a class, got {cls!r}; write @fn.layer above a class")
    if "_layer_class" in cls.__dict__:
        return cls.__dict__["_layer_class"]
    for base in cls.__mro__:
        made = base.__dict__.get("__dataclass_params__")
        if made is not None and (base is cls or not made.frozen):
            remedy = "leave @dataclass out, since @fn.layer makes a frozen one"
            raise TypeError(
                f"layer: expected a plain class, got {cls.__name__}, where {base.__name__} is a dataclass; {remedy}"
            )
    given, written_init = cls, "__init__" in cls.__dict__ or getattr(cls, "_written_init", False)
    for name in inspect.get_annotations(cls):
        if isinstance(cls.__dict__.get(name), list):
            setattr(cls, name, _normalise(cls, name, cls.__dict__[name]))
    if not issubclass(cls, Layer):
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        plain = dataclass(frozen=True, init=not written_init, repr=False)(cls)
        cls = type(cls.__name__, (plain, Layer), names)  # pyright: ignore
    written = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _normalise(self, field.name, getattr(self, field.name)))
        if written is not None:
            written(self)

    cls.__post_init__, cls._written_init = __post_init__, written_init  # pyright: ignore[reportAttributeAccessIssue]
    cls = dataclass(frozen=True, init=not written_init, repr=False)(cls)
    by_fields = cls.__hash__

    def __hash__(self: Any) -> int:
        if "_hash" not in self.__dict__:
            object.__setattr__(self, "_hash", by_fields(self))
        return self.__dict__["_hash"]

    cls.__hash__ = __hash__  # pyright: ignore[reportAttributeAccessIssue]
    if not written_init:
        cls.__init__ = _helpful(cls, cls.__init__)
    made = jax.tree_util.register_static(cls)
    given._layer_class = made._layer_class = made  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _helpful(cls: type, init: Callable[..., None]) -> Callable[..., None]:
    """The generated ``__init__``, with an error that tells what the layer takes."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except TypeError:
            try:
                inspect.signature(init).bind(self, *args, **kwargs)
            except TypeError as error:
                reason = error
            else:
                raise
            fields = [
                f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}"
                for f in dataclasses.fields(cls)
                if f.init
            ]
            example = f", as in {cls._example}" if cls._example else ""  # pyright: ignore[reportAttributeAccessIssue]
            raise TypeError(f"{cls.__name__}: {reason}; it takes ({', '.join(fields)}){example}") from None

    return __init__


KEYWORDS = {"key": None, "train": False, "mask": None, "probe": None, "state": None, "run": None}


@functools.lru_cache(maxsize=256)
def keywords(cls: type) -> frozenset[str]:
    """Those of the keywords key, train, mask, probe and state that ``cls.forward`` declares, and a composite's run."""
    declared = inspect.signature(cls.forward).parameters.values()  # pyright: ignore[reportAttributeAccessIssue]
    named = frozenset(KEYWORDS) & {p.name for p in declared}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in declared):
        return named | (frozenset(KEYWORDS) - {"run"})
    return named


def run_forward(layer: Layer, params: Params, a_in: Array, **given: Any) -> tuple[Array, Cache]:
    """``layer.forward`` with those of the given keywords that it declares.

    Raises:
        LayerError: for a forward that returns no pair, or a state for a layer that carries none.
    """
    declared = layer._keywords
    given = {**KEYWORDS, **given}
    if "state" not in declared and jax.tree.leaves(given["state"]):
        remedy = "give None for a layer without a state, as final_state and apply_from return it"
        raise LayerError(layer, "no state, since it carries none", "one", remedy)
    both = layer.forward(params, a_in, **{name: value for name, value in given.items() if name in declared})
    if not isinstance(both, tuple | list) or len(both) != 2:
        got = f"{len(both)} values" if isinstance(both, tuple | list) else "one value"
        raise LayerError(layer, "a pair (a_out, cache) from forward", got, "return a_out, cache")
    a_out, cache = both
    return a_out, cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExampleKeys:
    """A key for the examples ``index`` of a batch: what a layer receives for ``key`` when a batch is run in chunks."""

    key: Array
    index: Array


Key = Array | ExampleKeys | None

MAKE_A_KEY = "make one with jax.random.key(seed)"


@functools.cache
def _raw_shape(impl: str) -> Shape:
    """The shape of the keys that ``jax.random.PRNGKey`` makes where ``impl`` is the default."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl))).shape


def is_key(key: Any) -> bool:
    """Whether it is one PRNG key, of ``jax.random.key`` or ``jax.random.PRNGKey``."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return shape == ()
    return dtype == jnp.uint32 and shape == _raw_shape(jax.config.jax_default_prng_impl)  # pyright: ignore


def check_key(key: Any) -> Any:
    """The key, or a ValueError where it is no PRNG key."""
    if key is None or isinstance(key, ExampleKeys) or is_key(key):
        return key
    raise ValueError(f"key: expected one PRNG key, got {_about(key)}; {MAKE_A_KEY}")


def drawing_key(layer: Layer, key: Any) -> Array:
    """The key, or a LayerError unless it is one PRNG key."""
    if not is_key(key):
        raise LayerError(layer, "one PRNG key to draw parameters with", _about(key), MAKE_A_KEY)
    return key


def _about(key: Any) -> str:
    dtype = getattr(key, "dtype", None)
    return f"{type(key).__name__} {key!r}" if dtype is None else f"an array of {dtype} and shape {jnp.shape(key)}"


def threefry(key: Array) -> Array:
    """The key itself, or a threefry key made from the words of a key of another kind.

    Under ``vmap`` only threefry draws what it draws alone; "rbg" draws for all keys from the first.
    """
    if jax.random.key_impl(key) == "threefry2x32":
        return key
    words = jax.random.key_data(key).ravel()
    return functools.reduce(jax.random.fold_in, words, jax.random.key(0, impl="threefry2x32"))


def split_key(key: Any, n: int) -> list[Any]:
    """n keys, one for each layer, from a key, from `ExampleKeys` or from None."""
    if key is None:
        return [None] * n
    if isinstance(key, ExampleKeys):
        return [ExampleKeys(k, key.index) for k in jax.random.split(key.key, n)]
    return list(jax.random.split(key, n))


def example_index(key: Any, m: int) -> Array:
    """The m examples' numbers in the whole batch, of which `ExampleKeys` may be a part."""
    return key.index if isinstance(key, ExampleKeys) else jnp.arange(m)


def example_keys(key: Array | ExampleKeys, m: int) -> Array:
    """m keys, one for each example: fold_in(key, i) for example i of the whole batch.

    They are threefry keys whatever the key is, since draws of other kinds differ under ``vmap``.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(threefry(batch_key(key)), example_index(key, m))


def keys_of(key: Any, index: Array) -> ExampleKeys | None:
    """The key for the examples with these numbers in the whole batch; None without one."""
    return None if key is None else ExampleKeys(batch_key(key), index)


def n_parts(key: Array | ExampleKeys) -> int:
    """Among how many devices the batch is divided: those whose `ExampleKeys` differ inside of ``jax.shard_map``."""
    return math.prod(map(jax.lax.axis_size, varying_axes(key.index))) if isinstance(key, ExampleKeys) else 1


def batch_key(key: Array | ExampleKeys) -> Array:
    """The one key of the whole batch."""
    check_key(key)
    return key.key if isinstance(key, ExampleKeys) else key


@overload
def as_array(a: None) -> None: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def as_array(a: Any) -> Array: ...
def as_array(a: Any) -> Array | None:
    """The argument as an array; None stays None."""
    return a if a is None or isinstance(a, Array) else jnp.asarray(placed(a))


def as_data(name: str, value: Any) -> Array:
    """The argument as an array of numbers, or a ValueError that names it."""
    if not isinstance(value, Array):
        try:
            if isinstance(value, np.ndarray) and not value.dtype.isnative:
                value = value.astype(value.dtype.newbyteorder("="))
            value = unwrapped(value)
        except (TypeError, ValueError, OverflowError):
            got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            remedy = f"give rows of one length, as in np.asarray({name}, float)"
            if isinstance(value, tuple) and value and isinstance(value[0], dict):
                got, remedy = "a network's parameters", "params come before x, as in net.apply(params, x)"
            raise ValueError(f"{name}: expected an array of numbers (m, ...), got {got}; {remedy}") from None
    return value


def whole_number(layer: Layer, name: str, expected: str) -> None:
    """Make a layer's field an int, or raise a LayerError unless it is a positive integer."""
    value = getattr(layer, name)
    if not isinstance(value, Integral) or int(value) < 1:
        raise LayerError(layer, expected, repr(value), f"give {name} as an integer")
    object.__setattr__(layer, name, int(value))


def real_number(layer: Layer, name: str, fits: Callable[[float], bool], expected: str, remedy: str) -> None:
    """Raise a LayerError unless a layer's field is a number that fits."""
    value = getattr(layer, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise LayerError(layer, expected, repr(value), remedy)


def check_mask(layer: Layer, mask: Any, shape: Shape) -> None:
    """Raise a LayerError unless it is None or a mask of sequences (m, T) of real numbers or bools."""
    if mask is None:
        return
    if jnp.shape(mask) != shape:
        remedy = "it says which steps of which sequence are valid; fn.length_mask(lengths, T) makes one"
        raise LayerError(layer, f"a mask of shape {shape}", str(jnp.shape(mask)), remedy)
    check_real(layer, "masks", jnp.asarray(mask))


def at_valid_steps(x: Array, mask: Array | None) -> Array:
    """x (m, T, ...), 0 at the steps where the mask (m, T) is False."""
    return x if mask is None else jnp.where(jnp.expand_dims(mask, tuple(range(2, x.ndim))), x, 0)


def check_activation(layer: Layer, activation: Any) -> None:
    """Raise a LayerError unless it is an Activation."""
    if not isinstance(activation, Activation):
        name = activation if isinstance(activation, str) else getattr(activation, "__name__", "")
        ours = name if name in activations.__all__ else "sigmoid or fn.linear"
        remedy = f"give one of fnnet's activations, such as fn.{ours}, or an fn.Activation of your own"
        raise LayerError(layer, "an fn.Activation", repr(activation), remedy)


def check_input(layer: Layer, a_in: Array, n_in: int) -> None:
    """Raise a LayerError unless a_in is (m, ..., n_in)."""
    if a_in.ndim < 2 or a_in.shape[-1] != n_in:
        remedy = "initialise with the shape of one example, net.init(key, input_shape), and give inputs of that shape"
        if a_in.shape == (n_in,):
            remedy = "give a batch: x[None] for a single example"
        raise LayerError(layer, f"inputs of shape (m, {n_in})", str(a_in.shape), remedy)


def check_leaf(layer: Layer, params: Params, name: str, shape: tuple[int | None, ...]) -> Array:
    """params[name], or a LayerError unless it is there with this shape (None: any size)."""
    wanted = f"parameters with a leaf {name!r} of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
    remedy = "use the parameters that init of an equal layer returned"
    if not isinstance(params, dict) or name not in params:
        got = f"the keys {sorted(params)}" if isinstance(params, dict) else type(params).__name__
        raise LayerError(layer, wanted, got, remedy)
    leaf = params[name]
    if len(jnp.shape(leaf)) != len(shape) or any(
        n not in (None, k) for n, k in zip(shape, jnp.shape(leaf), strict=True)
    ):
        raise LayerError(layer, wanted, str(jnp.shape(leaf)), remedy)
    if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating):
        remedy = "integers cannot be trained: convert them with jnp.asarray(leaf, float)"
        if jnp.issubdtype(dtype, jnp.complexfloating):
            remedy = "this layer computes with real numbers; give real and imaginary parts as units of their own"
        raise LayerError(layer, f"a leaf {name!r} of a float dtype", str(dtype), remedy)
    return leaf


def check_real(layer: Any, name: str, a: Array) -> Array:
    """The argument, or a LayerError where it is complex: it would lose its imaginary part."""
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        remedy = "give real and imaginary parts as features of their own, or their absolute value"
        raise LayerError(layer, f"real {name}", str(a.dtype), remedy)
    return a


def as_floats(layer: Any, a_in: Array, dtype: Any) -> Array:
    """Inputs as floats: integers and bools, whose arithmetic wraps and rounds, in ``dtype``; complex ones are refused."""
    check_real(layer, "inputs", a_in)
    return a_in if jnp.issubdtype(a_in.dtype, jnp.floating) else a_in.astype(dtype)
