"""A call from a Python loop beside the same function under ``jax.jit``, alternating in one run.

    python examples/benchmarks/calls.py [--rounds 31] [--depths 2,31]

What checking the arguments costs at each call: the median times and the median of the ratios round by round, for
784-100-10 and for a network of 31 layers of 10 neurons, m = 10. Labels are another array at each call, as in a training loop.
"""

# %%
import argparse

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet.bench.measure import alternating

CALLS = 50


def on_fresh_labels(f, params, x, rounds):
    """Each call with labels that it has not seen."""
    labels = iter([jnp.asarray(np.roll(np.arange(10), i)) for i in range(2 * CALLS * (rounds + 1))])
    return lambda: f(params, x, next(labels))


def main(rounds: int = 31, depths: str = "2,31") -> dict[tuple[int, str], float]:
    cost, ratios = fn.log_likelihood, {}
    print(f"JAX {jax.__version__} on {jax.default_backend()}, {rounds} rounds")
    for depth in map(int, depths.split(",")):
        hidden = [fn.Dense(100, fn.sigmoid)] if depth == 2 else [fn.Dense(10, fn.tanh)] * (depth - 1)
        net = fn.Network(*hidden, fn.Dense(10, fn.softmax))
        params, x = net.init(jax.random.key(0), (784,)), jax.random.normal(jax.random.key(1), (10, 784))
        contenders = {
            "value_and_grad, made once": fn.value_and_grad(net, cost),
            "value_and_grad, made anew": lambda p, x, y, net=net: fn.value_and_grad(net, cost)(p, x, y),
            "backprop": lambda p, x, y, net=net: fn.backprop(net, cost, p, x, y),
            "objective": fn.objective(net, cost),
            "apply": lambda p, x, y, net=net: net.apply(p, x),
        }
        for name, f in contenders.items():
            turns = {
                "plain": on_fresh_labels(f, params, x, rounds),
                "jitted": on_fresh_labels(jax.jit(f), params, x, rounds),
            }
            plain, compiled = alternating(turns, rounds, CALLS).T
            ratios[depth, name] = float(np.median(plain / compiled))
            print(
                f"{depth:2d} layers  {name:26s} {1e3 * np.median(plain):7.3f} ms  jitted {1e3 * np.median(compiled):7.3f} ms"
                f"  ratio {ratios[depth, name]:.2f}"
            )
    return ratios


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--depths", default="2,31")
    main(**vars(parser.parse_args()))
