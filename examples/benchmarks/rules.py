"""Twenty mistakes in hand-written rules of functions and twenty right rules, and what four tools say of them.

    pip install chex torch
    python examples/benchmarks/rules.py

The rules are those of ``tests/rules``, each a ``jax.custom_vjp`` function. ``jax.test_util.check_grads``,
``chex.assert_numerical_grads`` and the audit get it in float32 and in float64, ``torch.autograd.gradcheck``, where PyTorch
is installed, in float64, inside a ``torch.autograd.Function``; all with their default tolerances. Prints a table in
Markdown: who finds a mistake, what the audit says of it, and who finds fault with a right rule; numbers are those in float32
and in float64.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

import fnnet as fn

sys.path.append(str(Path(__file__).parents[2]))
from tests.rules import RULES, Rule

MISTAKES = [
    ("dense", "dw transposed"), ("solve", "solved by A, not Aᵀ"), ("log_determinant", "not transposed"),
    ("attention", "no sum"), ("attention", "dq and dk swapped"), ("softmax", "the diagonal"),
    ("softmax_cross_entropy", "not divided by m"), ("sigmoid", "derivative twice"), ("gelu", "no x φ"),
    ("swiglu", "sigmoid's part left out"), ("layer_norm", "no mean(u)"), ("layer_norm", "b not summed"),
    ("rms_norm", "no projection"), ("variance", "n − 1"), ("mean_pool", "the first of each window"),
    ("embedding", "set, not added"), ("convolve", "not flipped"), ("rnn", "no later steps"),
    ("lstm_step", "the cell's cotangent ignored"), ("sigmoid", "a factor near 1"),
]  # fmt: skip
RIGHT = (
    "dense", "solve", "log_determinant", "least_squares", "attention", "softmax", "softmax_cross_entropy", "gelu", "logit",
    "power", "safe_sqrt", "huber", "lgamma", "layer_norm", "cosine", "maximum", "sort", "max_pool", "embedding", "rnn",
)  # fmt: skip
DTYPES = ("float32", "float64")


def scalar(f: Callable, args: tuple) -> tuple[Callable, list]:
    """⟨u, f⟩ of the arrays of floats among the arguments, for random u."""
    leaves, treedef = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def of(*floats):
        new = dict(zip(places, floats, strict=True))
        out = jax.tree.leaves(f(*treedef.unflatten(new.get(i, leaf) for i, leaf in enumerate(leaves))))
        out = [o for o in out if jnp.issubdtype(o.dtype, jnp.floating)]
        draw = np.random.default_rng(0)
        return sum(jnp.sum(jnp.asarray(draw.standard_normal(o.shape), o.dtype) * o) for o in out)

    return of, [leaves[i] for i in places]


def by_jax(f, args):
    check_grads(*scalar(f, args), order=1, modes=["rev"])


def by_chex(f, args):
    chex.assert_numerical_grads(*scalar(f, args), order=1, modes=["rev"])


def by_torch(f, args):
    import torch

    value, floats = scalar(f, args)
    gradient = jax.jit(jax.grad(value, argnums=tuple(range(len(floats)))))

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.given = [jnp.asarray(t.detach().numpy()) for t in tensors]
            return torch.tensor(np.asarray(value(*ctx.given)))

        @staticmethod
        def backward(ctx, g):
            return tuple(g * torch.tensor(np.asarray(d)) for d in gradient(*ctx.given))

    given = [torch.tensor(np.asarray(a), requires_grad=True) for a in floats]
    assert torch.autograd.gradcheck(Function.apply, given, raise_exception=False)


def by_the_audit(f, args):
    report = fn.audit(f, *args)
    assert report.ok, report.rows[0]


def said(check: Callable, *of) -> tuple[bool, object, float]:
    """Whether a check passes, what it raises, and the seconds it took."""
    start = time.perf_counter()
    try:
        check(*of)
    except (AssertionError, ValueError) as error:  # JAX itself raises for another shape
        return False, error.args[0] if error.args else "", time.perf_counter() - start
    return True, "", time.perf_counter() - start


def asked(rule: Rule, backward: Callable | None, dtype: str, tools: dict[str, Callable]) -> dict[str, tuple]:
    with jax.enable_x64(dtype == "float64"):
        f, args = rule.decorated(backward), rule.point(dtype)
        return {
            name: said(check, f, args) for name, check in tools.items() if name != "gradcheck" or dtype == "float64"
        }


def verdict(passes: list[bool]) -> str:
    """Of a tool, in every dtype that it was asked in."""
    if len(set(passes)) == 1:
        return "passes" if passes[0] else "**fails**"
    return "fails in " + " and ".join(dtype for dtype, yes in zip(DTYPES, passes, strict=True) if not yes)


def both(numbers: dict, tool: str, form: str) -> str:
    """A tool's numbers in float32 and in float64."""
    dtypes = DTYPES if tool != "gradcheck" else DTYPES[1:]
    return " / ".join(form.format(numbers[tool, dtype]) for dtype in dtypes)


def main(count: int = len(MISTAKES), rules: int = len(RULES)) -> None:
    tools = {"check_grads": by_jax, "assert_numerical_grads": by_chex, "gradcheck": by_torch, "the audit": by_the_audit}
    try:
        import torch
    except ModuleNotFoundError:
        del tools["gradcheck"]
        torch = None
    known = {rule.name: rule for rule in RULES}
    found, wolves, seconds = ({(tool, dtype): 0.0 for tool in tools for dtype in DTYPES} for _ in range(3))
    print("| function: mistake | " + " | ".join(tools) + " | the audit says |")
    print("| --- " * (len(tools) + 2) + "|")
    for name, mistake in MISTAKES[:count]:
        (backward,) = (wrong.backward for wrong in known[name].mistakes if wrong.name == mistake)
        answers = {dtype: asked(known[name], backward, dtype, tools) for dtype in DTYPES}
        for dtype in DTYPES:
            for tool, (passes, _, took) in answers[dtype].items():
                found[tool, dtype] += not passes
                seconds[tool, dtype] += took
        cells = [verdict([answers[dtype][tool][0] for dtype in DTYPES if tool in answers[dtype]]) for tool in tools]
        row = answers["float64"]["the audit"][1]
        told = f"{getattr(row, 'leaf', '')}: {getattr(row, 'hint', '') or 'nothing usual'}"
        print(f"| {name}: {mistake} | {' | '.join(cells)} | {told} |", flush=True)
    for name in RIGHT[:count]:
        for dtype in DTYPES:
            for tool, (passes, _, took) in asked(known[name], None, dtype, tools).items():
                wolves[tool, dtype] += not passes
                seconds[tool, dtype] += took
                if not passes:
                    print(f"{tool} finds fault with the right {name} in {dtype}", file=sys.stderr)
    of = min(count, len(MISTAKES))
    for what, numbers in {"found": found, "right ones that fail": wolves}.items():
        print(f"| {what}, of {of} | {' | '.join(both(numbers, tool, '{:.0f}') for tool in tools)} | |")
    for key in seconds:
        seconds[key] /= 2 * of
    print(f"| seconds each | {' | '.join(both(seconds, tool, '{:.2f}') for tool in tools)} | |")
    took = [asked(rule, None, "float32", {"the audit": by_the_audit})["the audit"][2] for rule in RULES[:rules]]
    print(
        f"\nan audit of each of {len(took)} right rules in float32, compilation included: {np.median(took):.2f} s (median), "
        f"{max(took):.1f} s (largest)"
    )
    versions = f"JAX {jax.__version__}, chex {chex.__version__}" + (f", PyTorch {torch.__version__}" if torch else "")
    print(f"\n({versions})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=len(MISTAKES), help="mistakes and right rules in the table")
    parser.add_argument("--rules", type=int, default=len(RULES), help="right rules that are timed")
    main(**vars(parser.parse_args()))
