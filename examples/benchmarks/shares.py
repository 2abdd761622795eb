"""Every example's share of the gradient beside ``vmap(jax.grad)``, alternating in one run.

    python examples/benchmarks/shares.py [--rounds 11] [--only norms clipping]

For each quantity: the time by hand, how many times as long ``jax.vmap(jax.grad(...))`` takes (median and quartiles of ratios,
round by round), the hand-written time in plain gradients (``fn.value_and_grad`` of the same batch), and compiled temporaries.
Clipping also beside optax's ``differentially_private_aggregate``; of the dense network norms beside BackPACK, and clipping
beside Opacus, where they are installed. float32; random data.
"""

# %%
import argparse

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet.bench.measure import alternating

BOUND = 1.0
DENSE = fn.Network(fn.Dense(100, fn.sigmoid), fn.Dense(10, fn.softmax)), (784,), 10
LSTM = fn.Network(fn.LSTM(128), fn.LastStep(), fn.Dense(10, fn.softmax)), (28, 28), 10
CONV = (
    fn.Network(
        fn.Conv(20, 5, fn.sigmoid),
        fn.MaxPool(2),
        fn.Conv(40, 5, fn.sigmoid),
        fn.MaxPool(2),
        fn.Flatten(),
        fn.Dense(100, fn.sigmoid),
        fn.Dense(10, fn.softmax),
    ),
    (28, 28, 1),
    10,
)


# %% The four quantities by ``vmap(jax.grad)``.
def of_each(net):
    """(params, x, y) -> g_x with a leading axis m."""
    objective = fn.objective(net, fn.log_likelihood)
    one = lambda params, x, y: objective(params, x[None], y[None])  # noqa: E731
    return jax.vmap(jax.grad(one), (None, 0, 0))


def square_norms(shares):
    return sum(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(shares))


def clipped(shares, m):
    factors = jnp.minimum(1, BOUND / jnp.sqrt(square_norms(shares)))
    return jax.tree.map(lambda g: jnp.tensordot(factors, g, 1) / m, shares)


def by_autodiff(net, quantity):
    shares = of_each(net)
    after = {
        "norms": lambda g, m: jnp.sqrt(square_norms(g)),
        "clipping": clipped,
        "variance": lambda g, m: jax.tree.map(lambda g: jnp.mean(g**2, 0) - jnp.mean(g, 0) ** 2, g),
        "inner products": lambda g, m: sum(g.reshape(m, -1) @ g.reshape(m, -1).T for g in jax.tree.leaves(g)),
    }[quantity]
    return jax.jit(lambda params, x, y: after(shares(params, x, y), len(x)))


def by_hand(net, quantity):
    given = net, fn.log_likelihood
    clip = fn.clipped_value_and_grad(*given, BOUND)
    return jax.jit(
        {
            "norms": lambda *batch: fn.gradient_norms(*given, *batch),
            "clipping": lambda *batch: clip(*batch)[1],
            "variance": lambda *batch: fn.gradient_statistics(*given, *batch).variance,
            "inner products": lambda *batch: fn.gradient_gram(*given, *batch),
        }[quantity]
    )


def by_optax(net, batch):
    """The clipped mean by optax, of the examples' gradients that it asks for; None without optax."""
    try:
        from optax.contrib import differentially_private_aggregate
    except ImportError:
        return None
    shares, private = of_each(net), differentially_private_aggregate(BOUND, 0.0, 0)
    state = private.init(batch[0])
    return jax.jit(lambda params, x, y: private.update(shares(params, x, y), state)[0])


# %% The same dense network in PyTorch.
def torch_contenders(params, x, y):
    """Norms by BackPACK and clipped gradients by Opacus of 784-100-10, those of them that are installed."""
    found = {}
    try:
        import torch
    except ImportError:
        return found

    def network():
        net = torch.nn.Sequential(torch.nn.Linear(784, 100), torch.nn.Sigmoid(), torch.nn.Linear(100, 10))
        with torch.no_grad():
            for layer, p in zip((net[0], net[2]), params, strict=True):
                layer.weight.copy_(torch.tensor(np.asarray(p["w"])))
                layer.bias.copy_(torch.tensor(np.asarray(p["b"])))
        return net

    x, y = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y)).long()
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    try:
        from backpack import backpack, extend
        from backpack.extensions import BatchL2Grad
    except ImportError:
        pass
    else:
        net, cost = extend(network()), extend(loss)

        def norms():
            net.zero_grad()
            with backpack(BatchL2Grad()):
                cost(net(x), y).backward()
            return sum(p.batch_l2 for p in net.parameters()).sqrt()

        found["norms"] = "BackPACK", norms
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError:
        pass
    else:
        sampled = GradSampleModule(network(), loss_reduction="sum")

        def clipping():
            sampled.zero_grad()
            loss(sampled(x), y).backward()
            grads = [p.grad_sample for p in sampled.parameters()]
            factors = (BOUND / sum(g.flatten(1).square().sum(1) for g in grads).sqrt()).clamp(max=1)
            return [torch.tensordot(factors, g, 1) / len(x) for g in grads]

        found["clipping"] = "Opacus", clipping
    return found


# %%
ROWS = [
    *(
        (f"{quantity}, 784-100-10, m = {m}", quantity, DENSE, m)
        for quantity in ("norms", "clipping")
        for m in (128, 1024)
    ),
    ("variance, 784-100-10, m = 128", "variance", DENSE, 128),
    ("inner products, 784-100-10, m = 128", "inner products", DENSE, 128),
    ("norms, LSTM(128), 28 steps, m = 32", "norms", LSTM, 32),
    ("clipping, LSTM(128), 28 steps, m = 32", "clipping", LSTM, 32),
    ("norms, the book's network, m = 32", "norms", CONV, 32),
    ("norms, the book's network, m = 128", "norms", CONV, 128),
    ("clipping, the book's network, m = 32", "clipping", CONV, 32),
    ("variance, the book's network, m = 32", "variance", CONV, 32),
]


def row(name, quantity, of, m, rounds):
    net, shape, classes = of
    params = net.init(jax.random.key(0), shape)
    batch = (
        params,
        jax.random.normal(jax.random.key(1), (m, *shape)),
        jax.random.randint(jax.random.key(2), (m,), 0, classes),
    )
    hand, auto = by_hand(net, quantity), by_autodiff(net, quantity)
    plain = jax.jit(fn.value_and_grad(net, fn.log_likelihood))
    contenders = {"hand": lambda: hand(*batch), "vmap(grad)": lambda: auto(*batch), "plain": lambda: plain(*batch)}
    if quantity == "clipping" and (optax := by_optax(net, batch)):
        contenders["optax"] = lambda: optax(*batch)
    if of is DENSE:
        contenders |= dict(filter(None, [torch_contenders(*batch).get(quantity)]))
    for f in contenders.values():
        jax.block_until_ready(f())
    times = alternating(contenders, rounds, 5 if of is DENSE else 2)

    def ratio(i, to=0):
        low, middle, high = np.quantile(times[:, i] / times[:, to], [0.25, 0.5, 0.75])
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    mib = [f.lower(*batch).compile().memory_analysis().temp_size_in_bytes / 2**20 for f in (hand, auto)]
    others = ", ".join(f"{peer} {ratio(i)}" for i, peer in enumerate(contenders) if i > 2) or "-"
    cells = name, f"{1e3 * np.median(times[:, 0]):.2f}", ratio(1), ratio(0, 2), "{:.2f} / {:.1f}".format(*mib), others
    print(f"| {' | '.join(cells)} |", flush=True)


def main(rounds: int = 11, only: tuple[str, ...] = ()) -> None:
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}\n")
    print(
        "| | by hand, ms | vmap(grad) / hand | hand / plain gradient | temporaries, MiB: hand / vmap(grad) | others / hand |"
    )
    print("|---|---|---|---|---|---|")
    for name, *of in ROWS:
        if not only or any(part in name for part in only):
            row(name, *of, rounds)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", nargs="*", default=(), help="rows whose name contains one of these")
    main(**vars(parser.parse_args()))
