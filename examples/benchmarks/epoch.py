"""One epoch of 784-100-10 at mini-batch 10 on 50,000 images: ``fn.fit`` beside its peers, alternating in one run.

    python examples/benchmarks/epoch.py [--rounds 7] [--examples 50000]

Cross-entropy, L2 with λ = 5, η = 0.5, sigmoid, float32; random data of MNIST's shape. Each contender trains one epoch over
shuffled mini-batches, compilation excluded; the table shows the median time and the median of the ratios, round by round, to
``fit``. Peers that are not installed are left out.
"""

# %%
import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn

LAMBDA, ETA, BATCH = 5.0, 0.5, 10


def fit_contender(x, y, params, net):
    def run():
        fn.fit(
            net, fn.cross_entropy, params, (x, y), key=jax.random.key(1), epochs=1, batch_size=BATCH,
            optimizer=fn.sgd(ETA), penalty=fn.L2(LAMBDA), monitor_training=False, progress=False,
        )  # fmt: skip

    return run


def plain_objective(params, x, y, n):
    a = jax.nn.sigmoid(x @ params[0]["w"].T + params[0]["b"][None])
    z = a @ params[1]["w"].T + params[1]["b"][None]
    value = jnp.mean(jnp.sum(jax.nn.softplus(z) - y * z, axis=1))
    return value + LAMBDA / (2 * n) * sum(jnp.sum(p["w"] ** 2) for p in params)


def grad_step(params, x, y, n):
    value, grads = jax.value_and_grad(plain_objective)(params, x, y, n)
    return jax.tree.map(lambda p, g: p - ETA * g, params, grads), value


def scan_contender(x, y, params):
    n = len(x)

    @jax.jit
    def epoch(params, x, y, key):
        rows = jax.random.permutation(key, n).reshape(-1, BATCH)
        return jax.lax.scan(lambda p, r: grad_step(p, x[r], jax.nn.one_hot(y[r], 10), n), params, rows)

    def run():
        jax.block_until_ready(epoch(params, x, y, jax.random.key(1)))

    return run


def loop_contender(x, y, params):
    n, x, y = len(x), np.asarray(x), np.eye(10, dtype=np.float32)[np.asarray(y)]
    step = jax.jit(partial(grad_step, n=n))

    def run():
        p = params
        for rows in np.random.default_rng(0).permutation(n).reshape(-1, BATCH):
            p, _ = step(p, x[rows], y[rows])
        jax.block_until_ready(p)

    return run


def torch_contender(x, y, params):
    import torch

    x, y = torch.tensor(np.asarray(x)), torch.tensor(np.eye(10, dtype=np.float32)[np.asarray(y)])
    n = len(x)

    def run():
        net = torch.nn.Sequential(torch.nn.Linear(784, 100), torch.nn.Sigmoid(), torch.nn.Linear(100, 10))
        decay = [
            {"params": [p for p in net.parameters() if p.ndim == 2], "weight_decay": LAMBDA / n},
            {"params": [p for p in net.parameters() if p.ndim == 1]},
        ]
        optimizer, loss = torch.optim.SGD(decay, lr=ETA), torch.nn.BCEWithLogitsLoss(reduction="sum")
        for rows in torch.randperm(n).reshape(-1, BATCH):
            optimizer.zero_grad()
            (loss(net(x[rows]), y[rows]) / BATCH).backward()
            optimizer.step()

    return run


def sklearn_contender(x, y, params):
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, y = np.asarray(x), np.asarray(y)

    def run():
        net = MLPClassifier(
            (100,), activation="logistic", solver="sgd", alpha=LAMBDA * BATCH / len(x), batch_size=BATCH,
            learning_rate_init=ETA, momentum=0, max_iter=1,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            net.fit(x, y)

    return run


def main(rounds: int = 7, examples: int = 50_000) -> dict[str, float]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((examples, 784), np.float32))
    y = jnp.asarray(rng.integers(0, 10, examples, np.int32))
    net = fn.Network(fn.Dense(100, fn.sigmoid), fn.Dense(10, fn.sigmoid))
    params = net.init(jax.random.key(0), (784,))
    contenders = {
        "fn.fit": fit_contender(x, y, params, net),
        "jax.grad in the same compiled scan": scan_contender(x, y, params),
        "jax.grad in a Python loop": loop_contender(x, y, params),
    }
    for name, make in (("PyTorch", torch_contender), ("scikit-learn", sklearn_contender)):
        try:
            contenders[name] = make(x, y, params)
        except ImportError:
            print(f"{name} is not installed: left out")
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    print(f"JAX {jax.__version__} on {jax.default_backend()}, {rounds} rounds, {examples} examples")
    ratios = {name: float(np.median(np.divide(t, times["fn.fit"]))) for name, t in times.items()}
    for name, ratio in ratios.items():
        print(f"{name:36s} {np.median(times[name]):7.3f} s   {ratio:6.2f} times fn.fit")
    return ratios


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--examples", type=int, default=50_000)
    main(**vars(parser.parse_args()))
