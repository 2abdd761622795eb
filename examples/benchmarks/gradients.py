"""The gradient of 784-100-10 by hand beside ``jax.grad``, alternating in one run.

    python examples/benchmarks/gradients.py [--rounds 31] [--sizes 10,128,1024]

For each mini-batch size m: the median times, the median of the ratios manual / autodiff round by round, and the compiled
FLOPs and temporaries, which do not vary from run to run. Cross-entropy on sigmoid outputs, float32. ``jax.grad`` has two
forward passes to differentiate: fnnet's own (``fn.objective``) and one written with ``jax.nn`` as one would without fnnet.
"""

# %%
import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn


def seconds(f, args, calls):
    start = time.perf_counter()
    for _ in range(calls):
        result = f(*args)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def plain_objective(params, x, y):
    a = jax.nn.sigmoid(x @ params[0]["w"].T + params[0]["b"][None])
    z = a @ params[1]["w"].T + params[1]["b"][None]
    return jnp.mean(jnp.sum(jax.nn.softplus(z) - y * z, axis=1))


def main(rounds: int = 31, sizes: str = "10,128,1024") -> dict[tuple[int, str], float]:
    net = fn.Network(fn.Dense(100, fn.sigmoid), fn.Dense(10, fn.sigmoid))
    params = net.init(jax.random.key(0), (784,))
    ratios = {}
    print(f"JAX {jax.__version__} on {jax.default_backend()}, {rounds} rounds")
    for m in map(int, sizes.split(",")):
        x = jax.random.uniform(jax.random.key(1), (m, 784))
        y = jax.nn.one_hot(jnp.arange(m) % 10, 10)
        args = params, x, y
        contenders = {
            "manual": fn.value_and_grad(net, fn.cross_entropy),
            "jax.grad of fn.objective": jax.value_and_grad(fn.objective(net, fn.cross_entropy)),
            "jax.grad of jax.nn": jax.value_and_grad(plain_objective),
        }
        programs = {name: jax.jit(f).lower(*args).compile() for name, f in contenders.items()}
        calls = max(20, 4096 // m)
        times = np.array([[seconds(f, args, calls) for f in programs.values()] for _ in range(rounds + 1)])[1:]
        for i, (name, program) in enumerate(programs.items()):
            ratio = float(np.median(times[:, 0] / times[:, i]))
            ratios[m, name] = ratio
            flops, temporaries = program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes
            print(
                f"m = {m:5d}  {name:25s} {1e6 * np.median(times[:, i]):8.1f} µs  manual / this {ratio:.3f}  "
                f"{flops:.4g} FLOPs  temporaries {temporaries} bytes"
            )
    return ratios


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--sizes", default="10,128,1024")
    main(**vars(parser.parse_args()))
