"""Convolutional networks by hand beside ``jax.grad`` and PyTorch, alternating in one run.

    python examples/benchmarks/convolution.py [--rounds 11] [--parts gradient,training,pooling,modern,growth]

gradient: value and gradient of the book's network (conv 20@5×5, max-pool 2, conv 40@5×5, max-pool 2, 100, 10; sigmoid) at
mini-batch m. training: a step of it in ``fit``, in the same compiled scan with ``jax.grad``, and in a Python loop over a
jitted step. pooling: max-pool's backward pass alone. modern: blocks of 3×3 convolutions with ReLU, with pooling and with
stride 2. growth: time per example from m = 128 to 2,048. ``jax.grad`` differentiates the same forward pass written with
``lax.conv_general_dilated`` and ``lax.reduce_window``. float32; random data; medians of ratios, round by round. PyTorch is
left out where it is not installed.
"""

# %%
import argparse
import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from timing import alternating

import fnnet as fn


def table(title, contenders, times, notes=None):
    """A line for each contender; the ratios of each to the first."""
    ratios = np.median(times / times[:, :1], axis=0)
    for i, name in enumerate(contenders):
        figures = f"{1e3 * np.median(times[:, i]):9.3f} ms  {ratios[i]:6.2f} times"
        print(f"{title:26s} {name:24s} {figures}  {(notes or {}).get(name, '')}".rstrip())
    return dict(zip(contenders, ratios.tolist(), strict=True))


def gemm_rate(rounds):
    """FLOP/s of a large matrix product: the limit that FLOPs are held against."""
    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(jnp.dot)
    seconds = np.median(alternating({"product": lambda: product(a, a)}, rounds, 3))
    return 2 * 2048**3 / seconds


# %% The book's network


def book(activation=fn.sigmoid):
    return fn.Network(
        fn.Conv(20, 5, activation), fn.MaxPool(2), fn.Conv(40, 5, activation), fn.MaxPool(2), fn.Flatten(),
        fn.Dense(100, activation), fn.Dense(10, fn.softmax),
    )  # fmt: skip


def plain_conv(p, a, stride=1, padding="VALID"):
    z = lax.conv_general_dilated(a, p["w"], (stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return z + p["b"][None, None, None]


def plain_pool(a):
    return lax.reduce_window(a, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def plain_cost(z, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1))


def plain_book(params, x, y):
    a = plain_pool(jax.nn.sigmoid(plain_conv(params[0], x)))
    a = plain_pool(jax.nn.sigmoid(plain_conv(params[2], a)))
    a = jax.nn.sigmoid(a.reshape(len(a), -1) @ params[5]["w"].T + params[5]["b"][None])
    return plain_cost(a @ params[6]["w"].T + params[6]["b"][None], y)


def torch_book(x, y):
    import torch
    from torch import nn

    net = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(20, 40, 5), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(640, 100), nn.Sigmoid(), nn.Linear(100, 10),
    )  # fmt: skip
    x, y, loss = (
        torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)),
        torch.tensor(np.asarray(y)).long(),
        nn.CrossEntropyLoss(),
    )

    def run():
        net.zero_grad()
        loss(net(x), y).backward()
        return ()

    return run


def digits(m):
    return jax.random.uniform(jax.random.key(1), (m, 28, 28, 1)), jnp.arange(m, dtype=jnp.int32) % 10


def gradient(rounds, sizes):
    net, rate = book(), gemm_rate(rounds)
    params = net.init(jax.random.key(0), (28, 28, 1))
    print(f"a large matrix product runs at {rate / 1e9:.0f} GFLOP/s")
    for m in sizes:
        x, y = digits(m)
        functions = {"fnnet": fn.value_and_grad(net, fn.log_likelihood), "jax.grad": jax.value_and_grad(plain_book)}
        programs = {name: jax.jit(f).lower(params, x, y).compile() for name, f in functions.items()}
        contenders = {name: partial(program, params, x, y) for name, program in programs.items()}
        with contextlib.suppress(ImportError):
            contenders["PyTorch"] = torch_book(x, y)
        # 2 FLOPs for each multiplication: two convolutions forwards, the kernels' gradients, the error of the second's input.
        flops = 2 * m * (2 * 24**2 * 25 * 20 + 3 * 8**2 * 25 * 20 * 40 + 3 * 640 * 100)
        times = alternating(contenders, rounds, max(4, 1024 // m))
        spaces = {n: p.memory_analysis().temp_size_in_bytes / 2**20 for n, p in programs.items()}
        extra = {n: f"temporaries {s:.1f} MiB" for n, s in spaces.items()}
        extra["fnnet"] += f", {flops / np.median(times[:, 0]) / rate:.0%} of the product's rate"
        table(f"gradient, m = {m}", contenders, times, extra)


# %% Training


def descend(params, grads):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def training(rounds, sizes):
    net = book()
    params = net.init(jax.random.key(0), (28, 28, 1))
    for m in sizes:
        steps = max(8, 1024 // m)
        x, y = digits(m * steps)

        def fitted(x=x, y=y, m=m):
            return fn.fit(
                net, fn.log_likelihood, params, (x, y), key=jax.random.key(2), epochs=1, batch_size=m, optimizer=fn.sgd(0.1),
                monitor_training=False, progress=False,
            )[0]  # fmt: skip

        @jax.jit
        def scanned(params, x, y, m=m):
            def step(params, rows):
                value, grads = jax.value_and_grad(plain_book)(params, x[rows], y[rows])
                return descend(params, grads), value

            return lax.scan(step, params, jax.random.permutation(jax.random.key(2), len(x)).reshape(-1, m))

        @jax.jit
        def step(params, x, y):
            value, grads = jax.value_and_grad(plain_book)(params, x, y)
            return descend(params, grads), value

        x_host, y_host = np.asarray(x), np.asarray(y)

        def looped(x=x_host, y=y_host, m=m, step=step):
            p = params
            for rows in np.random.default_rng(0).permutation(len(x)).reshape(-1, m):
                p, _ = step(p, x[rows], y[rows])
            return p

        contenders = {
            "fnnet.fit": fitted,
            "jax.grad, the same scan": partial(scanned, params, x, y),
            "jax.grad, a Python loop": looped,
        }
        table(f"training step, m = {m}", contenders, alternating(contenders, min(rounds, 5), 1) / steps)


# %% Pooling alone, networks of today's shape, growth


def pooling(rounds, sizes):
    for m in sizes:
        a = jax.random.normal(jax.random.key(0), (m, 24, 24, 20))
        a_out = plain_pool(a)
        delta = jnp.ones_like(a_out)
        by_hand = jax.jit(partial(fn.unsample_max, size=2))
        autodiff = jax.jit(lambda delta, a: jax.vjp(plain_pool, a)[1](delta)[0])
        contenders = {
            "fnnet": lambda f=by_hand, v=(delta, a, a_out): f(*v),
            "jax.grad": lambda f=autodiff, v=(delta, a): f(*v),
        }
        table(f"max-pool backward, m = {m}", contenders, alternating(contenders, rounds, max(2, 256 // m)))


def modern(rounds, sizes):
    def pooled(c):
        return [fn.Conv(c, 3, fn.relu, padding="same"), fn.MaxPool(2)]

    def strided(c):
        return [fn.Conv(c, 3, fn.relu, stride=2, padding="same")]

    def plain(params, x, y, kinds):
        for kind, p in zip(kinds, [p for p in params if p], strict=False):
            x = jax.nn.relu(plain_conv(p, x, 2 if kind is strided else 1, "SAME"))
            x = plain_pool(x) if kind is pooled else x
        return plain_cost(jnp.mean(x, axis=(1, 2)) @ params[-1]["w"].T + params[-1]["b"][None], y)

    for name, kinds in (("pooling", [pooled, pooled, pooled]), ("stride 2", [strided, strided, strided])):
        blocks = [layer for kind, c in zip(kinds, (64, 64, 128), strict=True) for layer in kind(c)]
        net = fn.Network(*blocks, fn.GlobalMeanPool(), fn.Dense(10, fn.softmax))
        params = net.init(jax.random.key(0), (32, 32, 3))
        for m in sizes:
            x, y = jax.random.normal(jax.random.key(1), (m, 32, 32, 3)), jnp.arange(m, dtype=jnp.int32) % 10
            functions = {
                "fnnet": fn.value_and_grad(net, fn.log_likelihood),
                "jax.grad": jax.value_and_grad(partial(plain, kinds=kinds)),
            }
            programs = {n: jax.jit(f).lower(params, x, y).compile() for n, f in functions.items()}
            contenders = {n: partial(program, params, x, y) for n, program in programs.items()}
            spaces = {
                n: f"temporaries {p.memory_analysis().temp_size_in_bytes / 2**20:.1f} MiB" for n, p in programs.items()
            }
            table(f"3×3, {name}, m = {m}", contenders, alternating(contenders, min(rounds, 7), max(1, 32 // m)), spaces)


def growth(rounds, sizes):
    net = book()
    params = net.init(jax.random.key(0), (28, 28, 1))
    contenders = {}
    for m in sizes:
        x, y = digits(m)
        program = jax.jit(fn.value_and_grad(net, fn.log_likelihood)).lower(params, x, y).compile()
        contenders[f"m = {m}"] = partial(program, params, x, y)
    times = alternating(contenders, min(rounds, 7), 1) / np.array(sizes)
    ratios = np.median(times / times[:, :1], axis=0)
    for m, time_, ratio in zip(sizes, np.median(times, axis=0), ratios, strict=True):
        print(f"growth, m = {m:5d}: {1e6 * time_:.1f} µs per example, {ratio:.2f} times that of m = {sizes[0]}")


PARTS = {
    "gradient": (gradient, (10, 32, 128, 512)),
    "training": (training, (10, 32, 128)),
    "pooling": (pooling, (10, 32, 128)),
    "modern": (modern, (8, 32)),
    "growth": (growth, (128, 256, 512, 1024, 2048)),
}


def main(rounds: int = 11, parts: str = ",".join(PARTS), largest: int = 2048) -> None:
    print(f"JAX {jax.__version__} on {jax.default_backend()}, {rounds} rounds; ratios to the first of each group")
    for part in parts.split(","):
        run, sizes = PARTS[part]
        run(rounds, [m for m in sizes if m <= largest])


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--largest", type=int, default=2048, help="leave out larger mini-batches")
    main(**vars(parser.parse_args()))
