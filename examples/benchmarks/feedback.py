"""Published figures of feedback alignment and its relatives beside fnnet's, over several seeds, on the whole of MNIST.

    FNNET_DATA=FOLDER python examples/benchmarks/feedback.py --settings 1x800,2x800,7x240 [--rules BP,FA,DFA] [--seeds 5]
    FNNET_DATA=FOLDER python examples/benchmarks/feedback.py --settings lenet [--rates BP=0.1,FA=0.01]
    python examples/benchmarks/feedback.py --quick --settings 2x30,lenet      # two epochs on 500 of the embedded images

LxN: L hidden layers of N units, tanh; 10 sigmoids, cross-entropy; 60,000 images. Nøkland (2016), his paper and his code
(anokland/dfa-torch): RMSProp (η 1e-4, decay 0.99), mini-batch 64, until the training error is 0.01 % or for 300 epochs.
Weights and biases start from 0 under FA and DFA, for BP uniformly on ±1/√n_in; B is uniform on ±1/√n, n the units that it
leads to. The figure is the test error at the end. (He takes the training error while an epoch runs, here it is taken after.)

lenet: conv 6@5×5, max-pool 2, conv 16@5×5, max-pool 2, conv 120@5×5, 84, softmax; ReLU, log-likelihood, images of 32×32.
BioTorch (Sanfiz and Akrout, 2021; jsalbert/biotorch, Benchmarks.md): momentum 0.9, weight decay 1e-3, mini-batch 64, 100
epochs, η divided by 10 after the 50th and the 75th; Glorot's uniform initialiser, also for B. It does not say which η:
``--rates``. Its DFA sends δ^L to every position of a feature map, through a kernel. The figure is the least test error of all
epochs, as there.

Each run writes its errors by epoch, and the angles between its gradients and the true ones, to a file in ``--results``;
stopped or killed, it goes on from its last checkpoint. Processes may share the folder: the table is of all that is there.
It needs optax.
"""

# %%
import argparse
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fnnet as fn

PUBLISHED = {
    "7x240": {"BP": "2.16 ± 0.13", "FA": "2.20 ± 0.13", "DFA": "2.32 ± 0.15"},
    "1x800": {"BP": "1.59 ± 0.04", "FA": "1.68 ± 0.05", "DFA": "1.68 ± 0.05"},
    "2x800": {"BP": "1.60 ± 0.06", "FA": "1.64 ± 0.03", "DFA": "1.74 ± 0.08"},
    "3x800": {"BP": "1.75 ± 0.05", "FA": "1.66 ± 0.09", "DFA": "1.70 ± 0.04"},
    "4x800": {"BP": "1.92 ± 0.11", "FA": "1.70 ± 0.04", "DFA": "1.83 ± 0.07"},
    "lenet": {"BP": "0.91", "FA": "1.7", "uSF": "0.94", "brSF": "0.91", "frSF": "0.97", "DFA": "1.61"},
}
RATES = {"BP": 1e-2, "FA": 3e-3, "uSF": 1e-2, "brSF": 1e-2, "frSF": 1e-2, "DFA": 1e-4}
BATCH, FITTED, AT_ONCE = 64, 0.01, 10


# %% Feedback kernels of a convolution, which is BioTorch's direct feedback: a rule of one's own.
@dataclass(frozen=True)
class DirectToEachPosition(fn.DirectFeedback):
    def init(self, key, layer, params, input_shape, n_top):
        if not isinstance(layer, fn.Conv):
            return super().init(key, layer, params, input_shape, n_top)
        w = params["w"]
        return {"B": self.weight_init(key, (*w.shape[:-1], n_top), w.dtype, -2, -1)}

    def propagate(self, layer, params, back, cache, delta, top):
        if not isinstance(layer, fn.Conv):
            return super().propagate(layer, params, back, cache, delta, top)
        everywhere = jnp.broadcast_to(top[:, None, None], (*delta.shape[:-1], top.shape[-1]))
        return layer.propagate({**params, "w": back["B"]}, cache, everywhere)


# %% A setting: the network under each rule, its optimiser and its data.
@dataclass(frozen=True)
class Setting:
    name: str
    rates: dict[str, float]

    @property
    def is_dense(self) -> bool:
        return self.name != "lenet"

    @property
    def cost(self) -> fn.Cost:
        return fn.cross_entropy if self.is_dense else fn.log_likelihood

    @property
    def rules(self) -> dict[str, fn.Rule | None]:
        if self.is_dense:
            draw = fn.initializers.scaled_uniform()
            return {"BP": None, "FA": fn.FeedbackAlignment(draw), "DFA": fn.DirectFeedback(draw)}
        draw = fn.initializers.glorot_uniform()
        signs = {kind: fn.SignSymmetry(kind, draw) for kind in ("uSF", "brSF", "frSF")}
        return {"BP": None, "FA": fn.FeedbackAlignment(draw), **signs, "DFA": DirectToEachPosition(draw)}

    def network(self, rule: str) -> fn.Layer:
        net = dense(*map(int, self.name.split("x")), from_zero=rule != "BP") if self.is_dense else lenet()
        return net if self.rules[rule] is None else fn.Swapped(net, self.rules[rule])

    def training(self, rule: str, examples: int, epochs: int) -> dict[str, Any]:
        """The optimizer and the penalty."""
        if self.is_dense:
            # His gradients are sums over the mini-batch: beside them his ε of 1e-8 is as small as this one.
            rate = self.rates.get(rule, 1e-4)
            return {"optimizer": optax.rmsprop(rate, decay=0.99, eps=1e-8 / BATCH, eps_in_sqrt=False)}
        rate = self.rates.get(rule, RATES[rule])
        half, three_quarters = (round(share * epochs) * math.ceil(examples / BATCH) for share in (0.5, 0.75))

        def decayed(step: jax.Array) -> jax.Array:
            return rate * jnp.where(step < half, 1.0, jnp.where(step < three_quarters, 0.1, 0.01))

        return {"optimizer": fn.sgd(decayed, momentum=0.9), "penalty": fn.L2(1e-3 * examples)}

    def data(self, quick: bool) -> tuple[Any, Any]:
        """Training and test images."""
        given = fn.datasets.mnist_subset(validation=0) if quick else fn.datasets.mnist(validation=0)
        pairs = [(x[:500], y[:500]) if quick else (x, y) for x, y in (given.train, given.test)]
        if self.is_dense:
            return jax.device_put(tuple((x, np.eye(10, dtype=x.dtype)[y]) for x, y in pairs))
        return jax.device_put(tuple((large(x), y) for x, y in pairs))


def dense(depth: int, width: int, *, from_zero: bool) -> fn.Network:
    def layer(n_in: int, n_out: int, activation: fn.Activation) -> fn.Dense:
        if from_zero:
            return fn.Dense(n_out, activation, fn.initializers.zeros())
        return fn.Dense(n_out, activation, fn.initializers.scaled_uniform(), uniform(n_in**-0.5))

    hidden = [layer(n_in, width, fn.tanh) for n_in in (784, *[width] * (depth - 1))]
    return fn.Network(fn.Flatten(), *hidden, layer(width, 10, fn.sigmoid))


def lenet() -> fn.Network:
    draw = fn.initializers.glorot_uniform()

    def conv(features: int) -> fn.Conv:
        return fn.Conv(features, 5, fn.relu, weight_init=draw)

    pooled = conv(6), fn.MaxPool(2), conv(16), fn.MaxPool(2), conv(120)
    return fn.Network(*pooled, fn.Flatten(), fn.Dense(84, fn.relu, draw), fn.Dense(10, fn.softmax, draw))


def uniform(bound: float) -> fn.initializers.Initializer:
    """Uniform on ±bound."""
    return fn.initializers.Initializer("uniform", drawn_uniformly, (bound,))


def drawn_uniformly(key, shape, dtype, in_axis, out_axis, bound):
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def large(x: np.ndarray) -> np.ndarray:
    """Images of 32×32 pixels, of mean 0 and variance 1 over the data set."""
    resized = jax.image.resize(x, (len(x), 32, 32, 1), "bilinear")
    return np.asarray((resized - 0.1307) / 0.3081)


# %% One run, some epochs at a time, so that it can stop where the images are fitted.
def run(setting: Setting, rule: str, seed: int, epochs: int, data: tuple, training: dict, folder: Path) -> dict:
    path = folder / f"{setting.name}-{rule}-{seed}.json"
    record = json.loads(path.read_text()) if path.exists() else {"seconds": 0}
    if record.get("finished") and record["limit"] == epochs:
        return record
    checkpoint, net, (train, test) = path.with_suffix(""), setting.network(rule), data
    key, fit_key = jax.random.split(jax.random.key(seed))
    params, seen = net.init(key, train[0].shape[1:]), jax.tree.map(lambda a: a[:1000], train)

    def angles(params: Any) -> jax.Array:
        return fn.diagnostics.alignment(net, setting.cost, params, *seen, key=key).gradient_angle

    for upto in (*range(AT_ONCE, epochs, AT_ONCE), epochs):
        start = time.perf_counter()
        _, history = fn.fit(
            net, setting.cost, params, train, key=fit_key, epochs=upto, batch_size=BATCH, validation=test, watch=angles,
            checkpoint=checkpoint, every=AT_ONCE, resume=checkpoint, progress=False, **training,
        )  # fmt: skip
        if len(history.cost) < upto:
            raise SystemExit(
                f"{path.stem} was stopped after {len(history.cost)} epochs; the same command goes on from there"
            )
        errors, of_training = (100 * (1 - a) for a in (history.validation_accuracy, history.accuracy))
        fitted = np.flatnonzero(of_training <= FITTED) if setting.is_dense else []
        last = int(fitted[0]) + 1 if len(fitted) else len(errors)
        record = {
            "setting": setting.name, "rule": rule, "seed": seed, "limit": epochs, "epochs": last,
            "finished": bool(len(fitted)) or upto == epochs,
            "error": float(errors[last - 1] if setting.is_dense else np.min(errors)),
            "errors": errors[:last].tolist(), "training errors": of_training[:last].tolist(),
            "angles": [[None if np.isnan(a) else float(a) for a in row] for row in history.watched[:last]],
            "seconds": record["seconds"] + time.perf_counter() - start,
        }  # fmt: skip
        path.write_text(json.dumps(record))
        if record["finished"]:
            break
    shutil.rmtree(checkpoint)
    return record


# %% All that the folder holds, beside what is published.
def table(folder: Path) -> dict[tuple[str, str], list[float]]:
    errors: dict[tuple[str, str], list[float]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if record["finished"]:
            errors.setdefault((record["setting"], record["rule"]), []).append(record["error"])
    print(f"\n{'setting':8}  {'rule':5}  {'published':>12}  {'fnnet':>12}  seeds   test error in %")
    for (name, rule), values in errors.items():
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        ours = f"{np.mean(values):.2f}{spread}"
        print(f"{name:8}  {rule:5}  {PUBLISHED.get(name, {}).get(rule, '-'):>12}  {ours:>12}  {len(values)}")
    return errors


def main(
    settings: str = "3x240", rules: str = "", seeds: int = 5, epochs: int | None = None, rates: str = "",
    results: str = "output/feedback", quick: bool = False,
) -> dict:  # fmt: skip
    folder = Path(f"{results}-quick" if quick else results)
    folder.mkdir(parents=True, exist_ok=True)
    given = {rule: float(rate) for rule, rate in (pair.split("=") for pair in rates.split(",") if pair)}
    for name in settings.split(","):
        setting = Setting(name, given)
        limit = epochs or (2 if quick else 300 if setting.is_dense else 100)
        data = setting.data(quick)
        for rule in rules.split(",") if rules else setting.rules:
            training = setting.training(rule, len(data[0][0]), limit)
            for seed in range(1 if quick else seeds):
                found = run(setting, rule, seed, limit, data, training, folder)
                print(
                    f"{name} {rule} seed {seed}: {found['error']:.2f} % after {found['epochs']} epochs, training error "
                    f"{found['training errors'][-1]:.2f} % ({found['seconds']:.0f} s)",
                    flush=True,
                )
    return table(folder)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="3x240", help="such as 3x240,7x240,2x800,lenet")
    parser.add_argument("--rules", default="", help="BP,FA,DFA, and for lenet uSF,brSF,frSF; all by default")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="at most: 300, and 100 for lenet")
    parser.add_argument("--rates", default="", help="learning rates by rule, as in BP=0.1,FA=0.01")
    parser.add_argument("--results", default="output/feedback", metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="a small network and two epochs on 500 images")
    main(**vars(parser.parse_args()))
