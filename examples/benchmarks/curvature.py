"""Second derivatives from the hand-written backward pass beside the usual JAX forms, alternating in one run.

    python examples/benchmarks/curvature.py [--rounds 9] [--only dense LSTM] [--small]

The diagonal of the Gauss-Newton matrix: by the columns of a root of the output's Hessian, one backward pass each (fnnet), and
as one writes it with autodiff: each example's Jacobian of the outputs by ``vmap`` of ``jax.jacrev``, then J ⊙ H J summed over
the outputs; that for one example after the other, which saves memory; or columns as fnnet's, each example's ``jax.vjp`` of
them squared. Products with the Hessian: `fn.hvp`, ``jax.jvp`` of ``jax.grad``, and ``jax.grad`` of gradient · v. float32,
random data; medians of ratios, round by round, with quartiles; compiled temporaries beside them.
"""

# %%
import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet.bench.measure import alternating

COST = fn.log_likelihood


def nets(small):
    """Name -> (net, shape of one example, m)."""
    wide = 16 if small else 128
    return {
        "dense 784-100-10": (fn.Network(fn.Dense(100, fn.tanh), fn.Dense(10, fn.softmax)), (784,), wide),
        "conv 20@5x5, 40@5x5": (
            fn.Network(
                fn.Conv(20, 5, fn.tanh), fn.MaxPool(2), fn.Conv(40, 5, fn.tanh), fn.MaxPool(2),
                fn.Flatten(), fn.Dense(100, fn.tanh), fn.Dense(10, fn.softmax),
            ),
            (28, 28, 1),
            wide // 4,
        ),
        "LSTM 28x28, 128 units": (
            fn.Network(fn.LSTM(16 if small else 128), fn.LastStep(), fn.Dense(10, fn.softmax)),
            (28, 28),
            wide // 4,
        ),
    }  # fmt: skip


def logits(net, params, x):
    _, cache = net.forward(params, x, train=True)
    return net.output(params, cache)[1]


def terms(z, y):
    return COST(jax.nn.softmax(z), y, output=(fn.softmax, z))


# %% The diagonal of the Gauss-Newton matrix, with autodiff.
def diagonal_of_example(net, params, x, y):
    z = logits(net, params, x[None])[0]
    jacobian = jax.jacrev(lambda params: logits(net, params, x[None])[0])(params)
    h = jax.hessian(lambda z: terms(z[None], y[None]))(z)
    return jax.tree.map(lambda j: jnp.sum(j * jnp.tensordot(h, j, 1), axis=0), jacobian)


def by_vmap(net, params, x, y):
    rows = jax.vmap(functools.partial(diagonal_of_example, net), (None, 0, 0))(params, x, y)
    return jax.tree.map(lambda rows: jnp.mean(rows, axis=0), rows)


def one_after_the_other(net, params, x, y):
    def step(total, example):
        return jax.tree.map(jnp.add, total, diagonal_of_example(net, params, *example)), None

    total, _ = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, params), (x, y))
    return jax.tree.map(lambda total: total / len(x), total)


def by_columns(net, params, x, y):
    a = jax.nn.softmax(logits(net, params, x))

    def squares(x, s):
        _, pull = jax.vjp(lambda params: logits(net, params, x[None])[0], params)
        return jax.tree.map(jnp.square, pull(s)[0])

    def step(total, k):
        s = jnp.sqrt(a[:, k, None]) * (jax.nn.one_hot(k, a.shape[1]) - a)
        rows = jax.vmap(squares)(x, s)
        return jax.tree.map(lambda total, rows: total + jnp.mean(rows, axis=0), total, rows), None

    return jax.lax.scan(step, jax.tree.map(jnp.zeros_like, params), jnp.arange(a.shape[1]))[0]


def main(rounds: int = 9, only: list[str] | None = None, small: bool = False) -> dict[tuple[str, str], float]:
    print(f"JAX {jax.__version__} on {jax.default_backend()}, {rounds} rounds; ratios to the first of each group")
    ratios = {}
    for name, (net, shape, m) in nets(small).items():
        if only and not any(part in name for part in only):
            continue
        params = net.init(jax.random.key(0), shape)
        x = jax.random.normal(jax.random.key(1), (m, *shape))
        y = jax.random.randint(jax.random.key(2), (m,), 0, 10)
        v = jax.tree.map(lambda p: jax.random.normal(jax.random.key(3), p.shape), params)
        objective = fn.objective(net, COST)

        def inner(params, v, x=x, y=y, objective=objective):
            pairs = jax.tree.map(lambda g, v: jnp.sum(g * v), jax.grad(objective)(params, x, y), v)
            return jax.tree.reduce(jnp.add, pairs)

        groups = {
            "GGN diagonal": {
                "fn.ggn_diagonal": lambda p, v, net=net, x=x, y=y: fn.ggn_diagonal(net, COST, p, x, y),
                "jacrev, vmap": lambda p, v, net=net, x=x, y=y: by_vmap(net, p, x, y),
                "jacrev, one example at a time": lambda p, v, net=net, x=x, y=y: one_after_the_other(net, p, x, y),
                "vjp of columns, vmap": lambda p, v, net=net, x=x, y=y: by_columns(net, p, x, y),
            },
            "Hv": {
                "fn.hvp": lambda p, v, net=net, x=x, y=y: fn.hvp(net, COST, p, x, y, v),
                "jvp of grad": lambda p, v, x=x, y=y, f=objective: jax.jvp(lambda p: jax.grad(f)(p, x, y), (p,), (v,))[
                    1
                ],
                "grad of grad · v": jax.grad(inner),
                "fn.ggnvp": lambda p, v, net=net, x=x, y=y: fn.ggnvp(net, COST, p, x, y, v),
                "a plain gradient": lambda p, v, net=net, x=x, y=y: fn.value_and_grad(net, COST)(p, x, y)[1],
            },
        }
        for group, programs in groups.items():
            compiled = {what: jax.jit(f).lower(params, v).compile() for what, f in programs.items()}
            contenders = {what: functools.partial(f, params, v) for what, f in compiled.items()}
            calls = 1 if group == "GGN diagonal" else 5
            times = alternating(contenders, rounds, calls)
            for i, what in enumerate(contenders):
                low, ratio, high = np.percentile(times[:, i] / times[:, 0], (25, 50, 75))
                ratios[name, what] = float(ratio)
                memory = compiled[what].memory_analysis().temp_size_in_bytes / 2**20
                print(
                    f"{name:30s} m = {m:3d}  {group:13s} {what:30s} {1e3 * np.median(times[:, i]):8.2f} ms "
                    f"{ratio:7.2f} times ({low:.2f} to {high:.2f})  temporaries {memory:7.1f} MiB",
                    flush=True,
                )
    return ratios


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", help="networks whose names contain one of these")
    parser.add_argument("--small", action="store_true", help="smaller batches, to see that it runs")
    main(**vars(parser.parse_args()))
