"""Ten planted mistakes, and what three tools say: ``jax.test_util.check_grads``, ``chex.assert_numerical_grads``, the audit.

    pip install chex
    python examples/benchmarks/audits.py

Each mistake is planted in the middle layer of a small network in float32. The first two tools get the network as an ordinary
function whose derivative is the hand-written one (``fn.as_function``), with their default tolerances; the audit gets the
network. Prints a table in Markdown, with the time each took, compilation included.
"""

import argparse
import re
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

import fnnet as fn

M = 32
DENSE, CONV = fn.Dense(6, fn.tanh), fn.Conv(2, 3, fn.tanh, padding="same")


def planted(layer, equation, change):
    """The layer with ``change(layer, right, params, cache, fed)`` in place of what the equation returns."""

    def wrong(self, params, cache, fed):
        return change(self, getattr(super(cls, self), equation)(params, cache, fed), params, cache, fed)

    cls = fn.layer(type("Wrong" + type(layer).__name__, (type(layer),), {equation: wrong}))
    return cls(**{name: getattr(layer, name) for name in layer.__dataclass_fields__})


def sigma_once_more(layer, right, params, cache, delta):
    return layer.activation.error(delta, cache[1], cache[2]) @ params["w"]


def one_example_left_out(layer, right, params, cache, delta):
    return {**right, "w": delta[1:].T @ cache[0][1:] / M}


def padding_off_by_one(layer, right, params, cache, delta):
    moved = jnp.pad(cache[0], ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    return {**right, "w": fn.Conv.gradients(layer, params, (moved, *cache[1:]), delta)["w"]}


def not_rotated(layer, right, params, cache, delta):
    return fn.Conv.propagate(layer, {**params, "w": jnp.flip(params["w"], (0, 1))}, cache, delta)


def stale_mask(layer, right, params, cache, delta):
    return jnp.where(jnp.roll(cache[0], 1, 0), 2 * delta, 0)


MISTAKES = [
    ("σ' left out", DENSE, "error", lambda layer, right, params, cache, da: da),
    ("σ' once more in BP2", DENSE, "propagate", sigma_once_more),
    ("w transposed in BP2", DENSE, "propagate", lambda layer, right, params, cache, delta: delta @ params["w"].T),
    ("sum instead of mean", DENSE, "gradients", lambda layer, right, *rest: {**right, "w": M * right["w"]}),
    ("one example of 32 left out", DENSE, "gradients", one_example_left_out),
    ("2 % too large", DENSE, "propagate", lambda layer, right, *rest: 1.02 * right),
    ("kernel not rotated", CONV, "propagate", not_rotated),
    ("padding off by one", CONV, "gradients", padding_off_by_one),
    ("1/k left out", fn.MeanPool(2), "propagate", lambda layer, right, *rest: 4 * right),
    ("stale dropout mask", fn.Dropout(0.5), "propagate", stale_mask),
]


def network(layer, equation, change):
    wrong = planted(layer, equation, change)
    if isinstance(layer, fn.Conv | fn.MeanPool):
        return fn.Network(CONV, wrong, fn.Flatten(), fn.Dense(3, fn.sigmoid)), (6, 6, 2)
    return fn.Network(DENSE, wrong, fn.Dense(3, fn.sigmoid)), (6,)


def said(check) -> tuple[str, float]:
    """What a check says, and the seconds it took."""
    start = time.perf_counter()
    try:
        answer = check() or "passes"
    except AssertionError as error:
        worst = re.search(r"Max absolute difference[^:]*: (\S+)", str(error))
        answer = f"fails, off by {float(worst[1]):.2g}" if worst else "fails"
    return answer, time.perf_counter() - start


def main(mistakes: int = len(MISTAKES)) -> list[tuple[str, ...]]:
    draw = np.random.default_rng(0)
    heads = ("mistake", "planted in", "check_grads", "assert_numerical_grads", "the audit")
    lines, seconds = [heads, ("---",) * 5], np.zeros(3)
    for name, layer, equation, change in MISTAKES[:mistakes]:
        net, shape = network(layer, equation, change)
        params, key = net.init(jax.random.key(0), shape), jax.random.key(1)
        x, y = (
            jnp.asarray(draw.standard_normal((M, *shape)), jnp.float32),
            jnp.asarray(draw.random((M, 3)), jnp.float32),
        )
        by_hand = fn.as_function(net, train=True)

        flat, rebuild = ravel_pytree(params)

        @jax.jit
        def cost(flat, x, by_hand=by_hand, rebuild=rebuild, y=y, key=key):
            return fn.quadratic(by_hand(rebuild(flat), x, key=key), y)

        def audit(net=net, params=params, x=x, y=y, key=key):
            row = fn.compare_gradients(net, fn.quadratic, params, x, y, key=key).rows[0]
            where = f"{row.layer}, {row.equation} {row.leaf}".strip()
            return f"**{where}**: {row.hint or 'no usual mistake'}" if row.verdict == "fail" else "passes"

        def jax_says(cost=cost, args=(flat, x)):
            check_grads(cost, args, order=1, modes=["rev"])

        def chex_says(cost=cost, args=(flat, x)):
            chex.assert_numerical_grads(cost, args, order=1, modes=["rev"])

        answers, took = zip(*map(said, (jax_says, chex_says, audit)), strict=True)
        seconds += took
        lines.append((name, f"1 {type(net[1]).__name__}, {equation}", *answers))
        print("| " + " | ".join(lines[-1]) + " |", flush=True)
    print("\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    print(
        f"\nseconds in all: {', '.join(f'{s:.1f}' for s in seconds)} (JAX {jax.__version__}, chex {chex.__version__})"
    )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mistakes", type=int, default=len(MISTAKES))
    main(**vars(parser.parse_args()))
