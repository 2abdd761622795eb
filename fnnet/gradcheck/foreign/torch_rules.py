"""The audit of hand-written gradients in PyTorch, which is imported by those who give them."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..report import Report, Row
from ..rows import reported
from .audited import audited
from .runner import Code, Runner, Way
from .trees import named, replaced

INVALID = re.compile(r"returned an invalid gradient at index (\d+) - got \[([\d, ]*)\]")
WAY = Way("torch.autograd.grad", lambda r: r, lambda r, args, g: (args, g))


def is_torch(f: Any, args: tuple[Any, ...] = ()) -> bool:
    """Whether f is a class of ``torch.autograd.Function``, or a function that is given tensors."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    is_function = isinstance(f, type) and issubclass(f, torch.autograd.Function)
    tensors = (isinstance(leaf, torch.Tensor) for i, a in enumerate(args) for _, leaf in named(a, f"args[{i}]"))
    return is_function or isinstance(f, torch.nn.Module) or any(tensors)


def audit_torch(
    f: Any,
    *args: Any,
    reference: Callable | None = None,
    intended: Callable | None = None,
    points: Sequence[tuple[Any, ...]] | None = None,
    static_argnums: int | Sequence[int] = (),
) -> Report:
    """Hold the backward pass of a ``torch.autograd.Function`` to central differences of its forward pass, both in float64.

    The gradients are those of ``torch.autograd.grad``, for all arguments together and for each alone, as
    ``ctx.needs_input_grad`` tells them. A function that takes float32 only is run in that.

    Args:
        f: a class of ``torch.autograd.Function``, or a function of tensors that calls one.
        args: where to audit it. Tensors of floats are differentiated; everything else is passed on.
        reference: (*args) -> out, a plain function of tensors, which is measured instead.
        intended: the same, of which the rule is meant to be the derivative.
        points: further arguments to audit it at, a tuple each. By default a point near by and one far away.
        static_argnums: places of tensors that are not differentiated.

    Raises:
        ValueError: for what cannot be audited, with what to write instead.
    """
    torch = sys.modules["torch"]
    if isinstance(f, torch.nn.Module):
        raise ValueError(
            f"audit: {type(f).__name__} is a module, whose gradients are autograd's; audit the torch.autograd.Function in "
            "it, or a function of tensors: audit(lambda x, w: ..., x, w)"
        )
    static = {i % len(args) for i in np.atleast_1d(np.asarray(static_argnums, int))} if args else set()
    tensors = _Tensors(torch, f, args, static)
    given = tensors.as_arrays(args)
    random, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of small runs: threads wait longer than they work
    try:
        tensors.settle(given)
        code = Code(tensors.name, tensors.forward, tensors.backward, lambda *_: iter([WAY]), tensors.claims)
        held_to, meant = (None if g is None else tensors.plain(g) for g in (reference, intended))
        elsewhere = None if points is None else [tensors.as_arrays(tuple(p)) for p in points]
        report = audited(Runner(code, given, static), held_to, meant, elsewhere)
    finally:
        torch.random.set_rng_state(random)
        torch.set_num_threads(threads)
    return reported([*report.rows, *tensors.alone()], report.dtype, report.judge)


class _Tensors:
    """A function of tensors as one of NumPy arrays."""

    def __init__(self, torch: Any, f: Any, args: tuple, static: set[int]) -> None:
        self.torch = torch
        self.is_function = isinstance(f, type) and issubclass(f, torch.autograd.Function)
        self.f = f.apply if self.is_function else f
        self.name = getattr(f, "__name__", type(f).__name__)
        self.kept = {name: a for i, b in enumerate(args) for name, a in named(b, f"args[{i}]") if _is_tensor(torch, a)}
        self.floats = {
            name: a.dtype
            for name, a in self.kept.items()
            if a.is_floating_point() and int(name[5:].partition("]")[0]) not in static
        }
        if any(a.is_complex() for a in self.kept.values()):
            raise ValueError(
                f"audit: expected real tensors for {self.name}, got complex ones; give real and imaginary parts"
            )
        if not self.floats:
            raise ValueError(f"audit: expected an argument of {self.name} with a tensor of floats, got none")
        self.dtypes = dict.fromkeys(self.floats, torch.float64)
        self.random, self.differentiable = torch.random.get_rng_state(), None
        self.wrong_alone: list[str] | None = None

    def as_arrays(self, args: tuple) -> tuple:
        """The arguments with tensors of floats as arrays of float64, other tensors held back."""

        def leaf(name: str, a: Any) -> Any:
            if not _is_tensor(self.torch, a):
                return a
            return a.detach().cpu().double().numpy().copy() if name in self.floats else _Held()

        pairs = {name: leaf(name, a) for i, b in enumerate(args) for name, a in named(b, f"args[{i}]")}
        return tuple(replaced(a, f"args[{i}]", pairs) for i, a in enumerate(args))

    def as_tensors(self, args: tuple, dtypes: dict[str, Any], needed: Any = ()) -> tuple[list[Any], dict[str, Any]]:
        """Arguments, and the leaves that need a gradient. What is given are copies, which may be written to."""
        leaves = {}
        new = {name: a.clone() for name, a in self.kept.items()}
        for name, a in (pair for i, b in enumerate(args) for pair in named(b, f"args[{i}]")):
            if name in self.floats:
                leaf = self.torch.tensor(np.asarray(a), dtype=dtypes[name], device=self.kept[name].device)
                leaves[name] = leaf.requires_grad_(name in needed)
                new[name] = leaf.clone()
        return [replaced(a, f"args[{i}]", new) for i, a in enumerate(args)], leaves

    def settle(self, given: tuple) -> None:
        """Which dtype it takes, and which outputs have a derivative."""
        try:
            out = self.called(given, self.floats)[0]
        except Exception:  # whatever a function raises that takes float32 only
            self.dtypes = self.floats
            out = self.called(given, self.floats)[0]
        self.differentiable = [i for i, o in enumerate(out) if o.requires_grad]
        if not self.differentiable:
            raise ValueError(
                f"audit: no output of {self.name} has a derivative: it detaches, or marks all as non-differentiable; "
                "give the torch.autograd.Function itself"
            )

    def called(self, args: tuple, needed: Any = ()) -> tuple[list[Any], dict[str, Any]]:
        """The outputs that are tensors of floats, and the leaves that need a gradient."""
        self.torch.random.set_rng_state(self.random)
        new, leaves = self.as_tensors(args, self.dtypes, needed)
        out = self.f(*new)
        return self.floats_in(out), leaves

    def floats_in(self, out: Any) -> list[Any]:
        return [o for _, o in named(out, "") if _is_tensor(self.torch, o) and o.is_floating_point()]

    def forward(self, *args: Any) -> tuple[np.ndarray, ...]:
        with self.torch.no_grad():
            out, _ = self.called(args)
        return tuple(_array(out[i]) for i in self.differentiable or ())

    def plain(self, f: Callable) -> Callable:
        """Another function of the same tensors, in float64."""

        def run(*args: Any) -> tuple[np.ndarray, ...]:
            self.torch.random.set_rng_state(self.random)
            with self.torch.no_grad():
                new, _ = self.as_tensors(args, dict.fromkeys(self.floats, self.torch.float64))
                return tuple(_array(o) for o in self.floats_in(f(*new)))

        return run

    def backward(self, args: tuple, u: tuple) -> dict[str, Any]:
        found = self.pulled(args, u, tuple(self.floats))
        if self.wrong_alone is None:
            self.wrong_alone = []
            for name, right in found.items() if len(found) > 1 else ():
                try:
                    alone = self.pulled(args, u, (name,))[name]
                except Exception:  # whatever a backward pass raises that does not ask what is needed
                    alone = None
                if not _agree(alone, right):
                    self.wrong_alone.append(name)
        return found

    def pulled(self, args: tuple, u: tuple, needed: tuple[str, ...]) -> dict[str, Any]:
        """{name: gradient} by autograd, None where there is none; of another shape where it is refused for its shape."""
        out, leaves = self.called(args, needed)
        pairs = [
            (out[i], self.torch.as_tensor(np.asarray(v), dtype=out[i].dtype, device=out[i].device))
            for i, v in zip(self.differentiable or (), u, strict=True)
            if out[i].requires_grad
        ]
        outs, us = (list(side) for side in zip(*pairs, strict=True)) if pairs else ([], [])
        try:
            found = self.torch.autograd.grad(outs, [leaves[name] for name in needed], us, allow_unused=True)
        except RuntimeError as error:
            refused = INVALID.search(str(error))
            name = f"args[{refused[1]}]" if refused else ""
            if refused is None or not self.is_function or name not in needed:
                raise
            shape = tuple(int(n) for n in refused[2].split(",") if n.strip())
            rest = tuple(other for other in needed if other != name)
            return {name: np.zeros(shape), **(self.pulled(args, u, rest) if rest else {})}
        return {name: None if g is None else _array(g, wide=False) for name, g in zip(needed, found, strict=True)}

    def claims(self, code: Code, args: tuple, static: set[int], result: Any, like_first: bool) -> dict[str, Any]:
        return result

    def alone(self) -> Iterator[Row]:
        """A row for each argument that gets another gradient when it is the only one that needs one."""
        hint = "another gradient, or an error, when it is the only argument that needs one: ctx.needs_input_grad"
        for name in self.wrong_alone or ():
            yield Row(self.name, "backward alone", name, "fail", float("inf"), hint=hint)


class _Held:
    """In the place of a tensor that is passed on as it is."""


def _is_tensor(torch: Any, a: Any) -> bool:
    return isinstance(a, torch.Tensor)


def _array(a: Any, wide: bool = True) -> np.ndarray:
    a = a.detach().cpu()
    return (a.double() if wide or str(a.dtype) == "torch.bfloat16" else a).numpy().copy()


def _agree(alone: Any, right: Any) -> bool:
    if alone is None or right is None:
        return alone is None and right is None
    return alone.shape == right.shape and np.allclose(
        alone, right, rtol=1e-5, atol=1e-6 * np.max(np.abs(right), initial=0)
    )
