"""A network one of whose equations is replaced: BP2 by a rule of one's own, in every layer, the other equations as they are.

The forward pass is the network's. In the backward pass each layer asks the rule what BP2 multiplies with and what it sends
to the layer below; BP1, BP3 and BP4 stay. What the rule itself needs or learns are parameters, beside those of the network.

Source: the notes, section 3; Lillicrap et al. (2016).
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import Activation
from ._composite import Back, Composite, RunPart, is_walked
from ._layer import (
    Cache,
    Delta,
    ExampleKeys,
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    drawing_key,
    layer,
    located,
    n_examples,
    run_forward,
    split_key,
)
from ._shared import Around

__all__ = ["Rule", "Swapped", "unswapped"]


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class Rule:
    """What stands in for BP2 in the layers of a `Swapped` network. This one changes nothing: it is backpropagation.

    A rule of your own is a subclass that writes those of the four methods that it needs; with numbers of its own, a frozen
    dataclass. It holds no arrays, so that equal rules compile once. ``layer`` is one of the layers at the bottom of the
    network, ``params`` its parameters, ``cache`` what its forward pass kept, ``back`` the rule's arrays for this layer, δ its
    error. `weights`, `propagate` and `learn` may also declare ``key``: a PRNG key for this layer and this call.
    """

    def init(self, key: Array, layer: Layer, params: Params, input_shape: Shape, n_top: int) -> Params:
        """The rule's own arrays for a layer, a pytree; {} for none.

        They are trained as `learn` says, and a penalty takes those for weights whose last key is ``w`` or starts with ``w_``.

        Args:
            key: a PRNG key.
            layer: the layer.
            params: its parameters.
            input_shape: of one example that comes into it.
            n_top: units of the network's output, the last axis of δ^L.
        """
        return {}

    def weights(self, layer: Layer, params: Params, back: Params) -> Params:
        """The parameters that BP2 multiplies with, a pytree like ``params``; in a recurrent layer BPTT's w_h among them."""
        return params

    def propagate(
        self, layer: Layer, params: Params, back: Params, cache: Cache, delta: Delta, top: Delta
    ) -> Array | None:
        """What the layer sends to the one below in place of ∂C/∂a_in, shaped like a_in.

        Args:
            layer: and ``params``, ``back``, ``cache``: as above.
            delta: δ of the layer.
            top: δ^L, the error of the layer whose output is the `Swapped` network's; None where there is no such layer.
        """
        return layer.propagate(self.weights(layer, params, back), cache, delta)

    def learn(self, layer: Layer, params: Params, back: Params, cache: Cache, delta: Delta) -> Params:
        """The gradient of ``back``, a pytree like it: a mean over the batch, as BP3 and BP4 are."""
        return jax.tree.map(jnp.zeros_like, back)

    __repr__: ClassVar[Callable[[Any], str]] = Layer.__repr__

    def _neutral(self, layer: Layer, params: Params, back: Params) -> Any:
        """Arrays with which the rule is backpropagation, as B := w; None where it has none, or none are known."""
        return back if type(self) is Rule else None

    @property
    def draws(self) -> bool:
        """Whether it needs a key, which a forward pass in training mode then asks for: some method declares one."""
        return any(_declares_key(type(self), method) for method in METHODS)


@functools.lru_cache(maxsize=256)
def _written(rule: type, method: str) -> bool:
    return getattr(rule, method) is not getattr(Rule, method)


@functools.lru_cache(maxsize=256)
def _declares_key(rule: type, method: str) -> bool:
    return "key" in inspect.signature(getattr(rule, method)).parameters


METHODS = ("weights", "propagate", "learn")

APART = 2**31
"""Numbers from here on are folded into a key for the rule's own draws: smaller ones give the keys of layers and examples."""

_folded = jax.jit(jax.random.fold_in, static_argnums=1)


@layer
class Ruled(Layer):
    """A layer at the bottom of a `Swapped` network. Parameters {net, back}, and ``top``, δ^L, where one is known."""

    layer: Layer
    rule: Rule

    @property
    def _title(self) -> str:
        return self.layer._title

    @property
    def _keywords(self) -> frozenset[str]:
        return self.layer._keywords | ({"key", "train"} if self.rule.draws else frozenset())

    @property
    def _moves(self) -> bool:
        return self.layer._moves

    @property
    def independent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.layer.independent

    @property
    def kept(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.layer.kept

    @property
    def has_arrays(self) -> bool:
        """Whether the rule may have arrays of its own."""
        return _written(type(self.rule), "init")

    def in_loop(self) -> "Ruled":
        return Ruled(self.layer.in_loop(), self.rule)

    def forward(
        self, params: Params, a_in: Array, *, key: Key = None, train: bool = False, **given: Any
    ) -> tuple[Array, Cache]:
        a, cache = run_forward(self.layer, params["net"], a_in, key=key, train=train, **given)
        if not self.rule.draws:
            return a, (cache, None)
        if train and key is None:
            remedy = "give one: key=jax.random.key(seed)"
            raise LayerError(self.layer, f"a key, since {self.rule!r} draws random numbers", "None", remedy)
        return a, (cache, key)

    def moving(self, params: Params, cache: Cache) -> Params:
        return {**params, "net": self.layer.moving(params["net"], cache[0])}

    def final_state(self, cache: Cache) -> Any:
        return self.layer.final_state(cache[0])

    def output(self, params: Params, cache: Cache) -> tuple[Activation, Array] | None:
        return self.layer.output(params["net"], cache[0])

    def error(self, params: Params, cache: Cache, da_out: Any) -> Delta:
        return self.layer.error(self._weights(params, cache), cache[0], da_out)

    def output_error(self, params: Params, cache: Cache, delta: Delta) -> Delta:
        return self.layer.output_error(self._weights(params, cache), cache[0], delta)

    def propagate(self, params: Params, cache: Cache, delta: Delta) -> Array | None:
        own = self.layer._propagated(self._weights(params, cache), cache[0], delta)
        if own is None or not _written(type(self.rule), "propagate"):
            return own
        da = self._by_rule("propagate", params, cache, cache[0], delta, params.get("top"))
        if jnp.shape(da) != own.shape:
            remedy = f"mend propagate of {self.rule!r}"
            raise LayerError(
                self.layer, f"an error of shape {own.shape} for the layer below", f"{jnp.shape(da)}", remedy
            )
        return da.astype(own.dtype)

    def _propagated(self, params: Params, cache: Cache, delta: Delta) -> Array | None:
        return self.propagate(params, cache, delta)

    def gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        net = self.layer.gradients(params["net"], cache[0], delta)
        return self._beside(net, params, cache, delta)

    def example_gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        net = self._of_examples("example_gradients", params, cache, delta)
        m = n_examples(delta)
        return {"net": net, "back": jax.tree.map(lambda b: jnp.zeros((m, *jnp.shape(b)), b.dtype), params["back"])}

    def square_norms(self, params: Params, cache: Cache, delta: Delta) -> Array:
        return self._of_examples("square_norms", params, cache, delta)

    def second_moment(self, params: Params, cache: Cache, delta: Delta) -> Params:
        net = self._of_examples("second_moment", params, cache, delta)
        return {"net": net, "back": jax.tree.map(jnp.zeros_like, params["back"])}

    def factor_rows(self, params: Params, cache: Cache, delta: Delta) -> Any:
        return self._of_examples("factor_rows", params, cache, delta)

    def _gram(self, params: Params, cache: Cache, delta: Delta) -> Array:
        return self._of_examples("_gram", params, cache, delta)

    def _of_examples(self, method: str, params: Params, cache: Any, delta: Any) -> Any:
        """The layer's own. What a rule learns is a mean over the batch, of which no example has a share."""
        if jax.tree.leaves(params["back"]) and _written(type(self.rule), "learn"):
            remedy = "take fn.FeedbackAlignment or another rule that learns nothing"
            raise LayerError(self.layer, "a rule with fixed arrays, for the examples' shares", f"{self.rule!r}", remedy)
        return getattr(self.layer, method)(params["net"], cache[0], delta)

    def backward(self, params: Params, cache: Cache, da_out: Any) -> tuple[Array | None, Params]:
        if self.is_plain(params, cache):
            return self._composed(self.layer.backward, self.layer.error, params, cache, da_out)
        return super().backward(params, cache, da_out)

    def output_backward(self, params: Params, cache: Cache, delta: Delta) -> tuple[Array | None, Params]:
        if self.is_plain(params, cache):
            return self._composed(self.layer.output_backward, self.layer.output_error, params, cache, delta)
        return super().output_backward(params, cache, delta)

    def is_plain(self, params: Params, cache: Any) -> bool:
        """Whether the rule leaves this layer's backward pass as it is."""
        return not _written(type(self.rule), "propagate") and self._weights(params, cache) is params["net"]

    def _composed(self, composed: Any, error: Any, params: Params, cache: Any, da: Any) -> tuple[Any, Params]:
        da_in, net = composed(params["net"], cache[0], da)
        delta = error(params["net"], cache[0], da) if jax.tree.leaves(params["back"]) else None
        return da_in, self._beside(net, params, cache, delta)

    def _beside(self, net: Params, params: Params, cache: Any, delta: Any) -> Params:
        back = params["back"]
        if jax.tree.leaves(back):
            learnt = self._by_rule("learn", params, cache, cache[0], delta)
            back = self._like("learn", learnt, back)
        return {"net": net, "back": back}

    def _weights(self, params: Params, cache: Any) -> Params:
        return self._like("weights", self._by_rule("weights", params, cache), params["net"])

    def _like(self, method: str, tree: Any, like: Any) -> Any:
        """The tree, or a LayerError unless it has the structure and the shapes of another."""
        if tree is like:
            return tree
        shapes, wanted = (jax.tree.map(jnp.shape, t) for t in (tree, like))
        if shapes != wanted:
            remedy = f"mend {method} of {self.rule!r}"
            raise LayerError(self.layer, f"a pytree of shapes {wanted} from {method}", f"{shapes}", remedy)
        return tree

    def _by_rule(self, method: str, params: Params, cache: Any, *given: Any) -> Any:
        drawn = {"key": self._key(method, cache[1])} if _declares_key(type(self.rule), method) else {}
        return getattr(self.rule, method)(self.layer, params["net"], params["back"], *given, **drawn)

    def _key(self, method: str, key: Any) -> Any:
        number = APART + METHODS.index(method)
        if isinstance(key, ExampleKeys):
            return ExampleKeys(_folded(key.key, number), key.index)
        return None if key is None else _folded(key, number)


@layer
class Swapped(Around):
    """A network with BP2 replaced by a rule in each of its layers; the forward pass and BP1, BP3 and BP4 are the network's.

    Parameters {"net": the network's, "back": the rule's own arrays, an entry for each part}. They are parameters like any
    others: ``sweep`` draws them for each seed, ``save`` keeps them, and the optimiser moves those for which the rule gives a
    gradient. ``init`` draws those of the network as the network itself does with that key. A rule may be given to a part of
    a network only: ``Network(a, Swapped(b, rule), c)``; a part that is swapped already keeps its own rule. Inside, layers
    that `Repeat` and `Recompute` run in a loop or twice are run one by one, once.

    Errors are those of the network (a tuple of one for a single layer). They are what the rule makes of them, and so the
    gradients are not those of the cost, unless the rule is ``fn.Rule()``.

    Attributes:
        net: a network, or a single layer.
        rule: a `Rule`, such as ``fn.FeedbackAlignment()``.

    Raises:
        LayerError: for something that is no layer or no rule, and for what the rule refuses.
    """

    net: Layer  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    rule: Rule

    _example = "fn.Swapped(fn.Network(...), fn.FeedbackAlignment())"

    def __post_init__(self) -> None:
        if not isinstance(self.net, Layer):
            got, remedy = type(self.net).__name__, f"give a network, as in {self._example}"
            raise LayerError(self, "a layer whose equation is replaced", got, remedy)
        if not isinstance(self.rule, Rule):
            remedy = "make one, such as fn.FeedbackAlignment(); a rule of your own is a subclass of fn.Rule"
            raise LayerError(self, "an fn.Rule", repr(self.rule), remedy)

    @property
    def is_single(self) -> bool:
        """Whether the net is one part: a layer, or a network that is swapped already."""
        return not is_walked(self.net) or isinstance(self.net, Swapped)

    @property
    def inner(self) -> tuple[Layer, ...]:
        """The parts of the net."""
        return (self.net,) if self.is_single else self.net.layers  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def layers(self) -> tuple[Layer, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(self._of_part(part) for part in self.inner)

    def _of_part(self, part: Layer) -> Layer:
        if isinstance(part, Swapped):
            return part
        return Swapped(part, self.rule) if is_walked(part) else Ruled(part, self.rule)

    @property
    def last(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return -1 if self.is_single else super().last

    @property
    def output_part(self) -> int | None:
        return 0 if self.is_single else super().output_part

    def parts(self, params: Params) -> tuple[tuple[Layer, Params], ...]:
        if not isinstance(params, dict) or not {"net", "back"} <= params.keys():
            got = f"the keys {sorted(params)}" if isinstance(params, dict) else type(params).__name__
            raise LayerError(self, "parameters with the keys net and back", got, "use what its init returned")
        net, back = params["net"], params["back"]
        nets = (net,) if self.is_single else tuple(p for _, p in super().parts(net))
        backs = (back,) if self.is_single else self._entries("parameters of the rule", back, "init")
        top = {"top": params["top"]} if "top" in params else {}
        return tuple(
            (part, p if isinstance(own, Swapped) else {"net": p, "back": b, **top})
            for part, own, p, b in zip(self.layers, self.inner, nets, backs, strict=True)
        )

    def joined(self, of_parts: tuple[Params, ...]) -> Params:
        return self._put_together(super().joined, of_parts)

    def gathered(self, of_parts: tuple[Params, ...]) -> Params:
        return self._put_together(super().gathered, of_parts)

    def _put_together(self, by_net: Any, of_parts: tuple[Params, ...]) -> Params:
        both = [
            (p, {}) if isinstance(own, Swapped) else (p["net"], p["back"])
            for p, own in zip(of_parts, self.inner, strict=True)
        ]
        nets, backs = zip(*both, strict=True)
        return {"net": nets[0], "back": backs[0]} if self.is_single else {"net": by_net(nets), "back": backs}

    @property
    def _apart(self) -> bool:
        return self.is_single or self.net._apart  # pyright: ignore[reportAttributeAccessIssue]

    def _keys(self, key: Key) -> list[Any]:
        return [key] if self.is_single else super()._keys(key)

    def wire(self, run: RunPart, a_in: Array) -> tuple[Array, Any]:
        return (run(0, a_in), None) if self.is_single else super().wire(run, a_in)

    def unwire(self, back: Back, da_out: Any, extra: Any) -> Any:
        return back(0, da_out) if self.is_single else super().unwire(back, da_out, extra)

    def _shapes(self, input_shape: Shape) -> tuple[list[Shape], Shape]:
        if self.is_single:
            return [input_shape], self.net.output_shape(input_shape)
        return super()._shapes(input_shape)

    def init(self, key: Array, input_shape: Shape) -> Params:
        params = self.net.init(key, input_shape)
        n_top = self.output_shape(input_shape)[-1:]
        drawing = _folded(drawing_key(self, key), APART)
        return {"net": params, "back": self._backs(drawing, params, input_shape, n_top[0] if n_top else 1)}

    def _backs(self, key: Array, params: Params, input_shape: Shape, n_top: int) -> Any:
        """The rule's arrays for each part."""
        shapes, _ = self._shapes(input_shape)
        nets = self.parts({"net": params, "back": ({},) * len(shapes)})
        found = []
        for i, ((part, p), own, k) in enumerate(zip(nets, self.inner, split_key(key, len(shapes)), strict=True)):
            with located(i):
                if isinstance(own, Swapped):
                    found.append({})
                elif isinstance(part, Swapped):
                    found.append(part._backs(k, p["net"], shapes[i], n_top))
                else:
                    found.append(self.rule.init(k, own, p["net"], shapes[i], n_top))
        return found[0] if self.is_single else tuple(found)

    def propagate(self, params: Params, cache: Cache, delta: Delta) -> Array | None:
        return super().propagate(self._below(params, self._top_of(delta)), cache, delta)

    def _errors(self, params: Params, cache: Cache, da: Any, *, at_output: bool) -> tuple[Delta, ...]:
        return super()._errors(
            self._below(params, self._top(params, cache, da, at_output)), cache, da, at_output=at_output
        )

    def _backward(self, params: Params, cache: Cache, da: Any, *, at_output: bool) -> tuple[Any, Params]:
        top = self._top(params, cache, da, at_output)
        return super()._backward(self._below(params, top), cache, da, at_output=at_output)

    def _below(self, params: Params, top: Any) -> Params:
        """The parameters with δ^L, unless a swapped network around this one has said what it is."""
        return params if "top" in params else {**params, "top": top}

    def _top(self, params: Params, cache: Any, da: Any, at_output: bool) -> Any:
        """δ^L: what is given, through the σ' of the layer whose output is the network's; None where there is no such layer,
        or no use for it."""
        part: Any = self
        p, c = params, cache
        if "top" in params or not _written(type(self.rule), "propagate"):
            return None
        while is_walked(part):
            if (i := part.output_part) is None:
                return None
            (part, p), c = part.parts(p)[i], c[i]
        return part.output_error(p, c, da) if at_output else part.error(p, c, da)

    def _top_of(self, delta: Any) -> Any:
        """δ^L among the errors of all layers, None where no layer's output is the network's."""
        part: Any = self
        while is_walked(part):
            if (i := part.output_part) is None:
                return None
            part, delta = part.layers[i], delta[i]
        return delta


def unswapped(net: Layer) -> Layer:
    """The network with true backpropagation in its `Swapped` parts, on the same parameters."""
    if isinstance(net, Swapped):
        return Swapped(unswapped(net.net), Rule())
    return net.mapped(unswapped) if isinstance(net, Composite) else net
