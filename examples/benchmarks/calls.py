"""A call from a Python loop beside the same function under ``jax.jit``, alternating in one run.

    python examples/benchmarks/calls.py [--rounds 31] [--depths 2,31]

What checking the arguments costs at each call: the median times and the median of the ratios round by round, for
784-100-10 and for a network of 31 layers of 10 neurons, m = 10. Labels are another array at each call, as in a training loop.
"""

# %%
import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn

CALLS = 50


def seconds(f, params, x, labels):
    start = time.perf_counter()
    for y in labels:
        result = f(params, x, y)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / len(labels)


def main(rounds: int = 31, depths: str = "2,31") -> dict[tuple[int, str], float]:
    cost, ratios = fn.log_likelihood, {}
    print(f"JAX {jax.__version__} on {jax.default_backend()}, {rounds} rounds")
    for depth in map(int, depths.split(",")):
        hidden = [fn.Dense(100, fn.sigmoid)] if depth == 2 else [fn.Dense(10, fn.tanh)] * (depth - 1)
        net = fn.Network(*hidden, fn.Dense(10, fn.softmax))
        params, x = net.init(jax.random.key(0), (784,)), jax.random.normal(jax.random.key(1), (10, 784))
        gradient, objective = fn.value_and_grad(net, cost), fn.objective(net, cost)
        contenders = {
            "value_and_grad, made once": gradient,
            "value_and_grad, made anew": lambda p, x, y, net=net: fn.value_and_grad(net, cost)(p, x, y),
            "backprop": lambda p, x, y, net=net: fn.backprop(net, cost, p, x, y),
            "objective": objective,
            "apply": lambda p, x, y, net=net: net.apply(p, x),
        }
        for name, f in contenders.items():
            jitted, times = jax.jit(f), []
            for _ in range(rounds + 1):
                labels = [jnp.asarray(np.roll(np.arange(10), i)) for i in range(CALLS)]
                times.append([seconds(g, params, x, labels) for g in (f, jitted)])
            plain, compiled = np.array(times)[1:].T
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
