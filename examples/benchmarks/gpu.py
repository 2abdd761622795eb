"""All that is to be seen on a GPU, in one run of under six minutes: `--small` for a CPU.

    python examples/benchmarks/gpu.py [--only rows,table,audits,sweep,images,gpt] [--seconds 330] [--json FILE]
    FNNET_DATA=FOLDER python examples/benchmarks/gpu.py --text input.txt      # with MNIST and tiny Shakespeare

rows    every row of the tests' table of layers: value and backward pass by hand and by autodiff in float32 with and without
        TF32, in float64 and in bfloat16, each against autodiff in float64 of the same numbers. Wrong is a row whose error by
        hand is more than four times autodiff's and 32 roundings of its products.
table   `python -m fnnet.bench`: by hand against `jax.grad` of the same and of a plain forward pass.
audits  the verdicts of `fn.compare_gradients` on a convolutional, a recurrent and an attentive network.
sweep   64 networks by one call of `fn.sweep` against `fn.fit` for one after another: 5 times or more is the aim.
images  seconds for an epoch of the networks of conv_mnist.py that train on 250,000 images (50,000 of noise without MNIST).
gpt     the GPU setting of nanoGPT (published: 1.4697), for the time that is left; the loss so far, and where it ends.

A part that fails is printed and does not end the run; the exit status is then 1.
"""

# %%
import argparse
import collections
import functools
import json
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet.bench.measure import deviation

HERE = Path(__file__).parent
sys.path[1:1] = [str(HERE.parent), str(HERE.parent.parent)]

# name: dtype, precision of products, one rounding of theirs
PRECISIONS = {
    "float64": ("float64", "highest", 2.0**-53),
    "float32": ("float32", "highest", 2.0**-24),
    "TF32": ("float32", "default", 2.0**-11),
    "bfloat16": ("bfloat16", "default", 2.0**-9),
}


# %% The table of layers.
def both_sides(layer, params, a_in):
    """(value, ∂C/∂a_in, gradients) by hand and by autodiff, from one ∂C/∂a_out."""
    from fnnet.layers._layer import run_forward

    given = {"key": jax.random.key(7), "train": True}
    a_out, cache = run_forward(layer, params, a_in, **given)
    da_out = jnp.asarray(np.random.default_rng(2).standard_normal(a_out.shape), a_out.dtype)
    value, pull_back = jax.vjp(lambda p, a: run_forward(layer, p, a, **given)[0], params, a_in)
    of_params, da_in = pull_back(da_out)
    mean = jax.tree.map(lambda g: (g / len(a_in)).astype(g.dtype), of_params)
    da_in = None if jnp.issubdtype(a_in.dtype, jnp.integer) else da_in
    return (a_out, *layer.backward(params, cache, da_out)), (value, da_in, mean)


def rows(small: bool, m: int = 64) -> dict:
    """Compiled side by side: a GPU's compiler takes a second for each."""
    from tests.cases import LAYERS, cast

    cases = LAYERS[::12] if small else LAYERS
    with jax.enable_x64(True), ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        programs, given = [], []
        for case in cases:
            exact = case.params("float64"), case.inputs(m, "float64")
            for dtype, precision, _ in PRECISIONS.values():
                given.append(cast(exact, dtype))
                with jax.default_matmul_precision(precision):
                    lowered = jax.jit(functools.partial(both_sides, case.layer)).lower(*given[-1])
                programs.append(pool.submit(lowered.compile))
        errors = np.empty((len(cases), len(PRECISIONS), 2))
        for i, (program, arguments) in enumerate(zip(programs, given, strict=True)):
            row, column = divmod(i, len(PRECISIONS))
            _, reference = programs[row * len(PRECISIONS)].result()(*cast(arguments, "float64"))
            errors[row, column] = [deviation(side, reference) for side in program.result()(*arguments)]
    summary, wrong = {}, []
    for name, (_, _, rounding), (by_hand, autodiff) in zip(
        PRECISIONS, PRECISIONS.values(), errors.transpose(1, 2, 0), strict=True
    ):
        summary[name] = {"by hand": by_hand.max(), "autodiff": autodiff.max()}
        print(f"{name:9s} {len(cases)} rows, worst error by hand {by_hand.max():.1e}, by autodiff {autodiff.max():.1e}")
        for case, own, other in zip(cases, by_hand, autodiff, strict=True):
            if not own <= max(4 * other, 32 * rounding):
                wrong.append(f"{case.name} in {name}: {own:.1e} by hand, {other:.1e} by autodiff")
    if wrong:
        raise AssertionError("\n".join(wrong))
    return summary


# %% Networks as they are used.
def audits(small: bool) -> dict:
    """How often each verdict is given, by network."""
    from gpt import gpt

    side = 10 if small else 28
    convolutional = fn.Network(
        fn.Conv(20, 5, fn.sigmoid), fn.MaxPool(2), fn.Conv(40, 3, fn.relu), fn.Flatten(), fn.Dense(10, fn.softmax)
    )
    recurrent = fn.Network(fn.LSTM(32), fn.LastStep(), fn.Dense(10, fn.softmax))
    found = {}
    for name, net, shape, tokens in (
        ("convolutional", convolutional, (side, side, 1), False),
        ("recurrent", recurrent, (12, 8), False),
        ("GPT", gpt(17, 16, 2, 2), (12,), True),
    ):
        params, key = net.init(jax.random.key(0), shape), jax.random.key(1)
        x = jax.random.randint(key, (32, *shape), 0, 17) if tokens else jax.random.normal(key, (32, *shape))
        out = net.output_shape(shape)
        y = jax.random.randint(key, (32, *out[:-1]), 0, out[-1])
        report = fn.compare_gradients(net, fn.log_likelihood, params, x, y)
        found[name] = dict(collections.Counter(row.verdict for row in report.rows))
        print(f"{name:14s} {', '.join(f'{count} {verdict}' for verdict, count in found[name].items())}")
        report.raise_if_failed()
    return found


def sweep(small: bool) -> dict:
    from sweep import main

    rates = seeds = 2 if small else 8
    return main(rounds=1 if small else 3, epochs=1 if small else 5, at_once="64", rates=rates, seeds=seeds)


def images(small: bool) -> dict:
    from conv_mnist import network

    try:
        train = fn.datasets.shifted(*fn.datasets.mnist().train)
    except FileNotFoundError:
        draw = np.random.default_rng(0)
        train = draw.random((50_000, 28, 28, 1), np.float32), draw.integers(10, size=50_000)
    train = tuple(part[: 200 if small else None] for part in train)
    took = {}
    for setting in ("expanded", "dropout"):
        net = network(setting)
        run = functools.partial(
            fn.fit, net, fn.log_likelihood, net.init(jax.random.key(0), (28, 28, 1)), train, key=jax.random.key(1),
            batch_size=10, optimizer=fn.sgd(0.03), monitor_training=False, progress=False,
        )  # fmt: skip
        seconds = []
        for epochs in (1, 1, 2):  # the first run compiles
            start = time.perf_counter()
            jax.block_until_ready(run(epochs=epochs)[0])
            seconds.append(time.perf_counter() - start)
        took[setting] = seconds[2] - seconds[1]
        print(f"{setting:9s} {took[setting]:.2f} s for an epoch of {len(train[0])} images, mini-batches of 10")
    return took


def table(small: bool) -> dict:
    """In a process of its own: it chooses its dtypes itself."""
    command = [sys.executable, "-m", "fnnet.bench", *(["--quick", "784-100-10"] if small else [])]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE)
    print(done.stdout)
    done.check_returncode()
    return {}


def gpt(small: bool, text: str | None, until: float) -> dict:
    """As many of the setting's 5,000 steps as there is time for, under its own schedule."""
    from gpt import NANOGPT_GPU, Setting, train
    from gpt import gpt as network
    from texts import read

    setting = Setting(steps=40) if small else NANOGPT_GPU
    tokens, alphabet = read(text, 20_000 if small else None)
    held_back, steps = len(tokens) // 10, setting.block
    last = tokens[-held_back:][: 50 * steps + 1]
    x, y = (last[i : i + (len(last) - 1) // steps * steps].reshape(-1, steps) for i in (0, 1))
    validation = x, y, {"weights": np.full(x.shape, 1 / steps, np.float32)}
    net = network(len(alphabet), setting.n, setting.heads, setting.layers, setting.dropout)
    params = net.init(jax.random.key(0), (steps,))
    rounds = 4 if small else 50
    _, losses, seconds = train(setting, net, params, tokens[:-held_back], validation, 0, True, rounds, until)
    done = losses[-1][0]
    per_step = 1e3 * seconds * len(losses) / max(len(losses) - 1, 1) / done
    print(
        f"{done} of {setting.steps} steps, {per_step:.1f} ms each: validation {losses[-1][2]:.4f} (published: 1.4697)"
    )
    return {"steps": done, "ms a step": per_step, "validation": losses[-1][2]}


# %%
def main(only: str, small: bool, seconds: float, text: str | None, file: str | None) -> None:
    start = time.perf_counter()
    device = jax.devices()[0]
    print(f"JAX {jax.__version__}, {device.platform}, {device.device_kind}\n")
    found, failed = {"jax": jax.__version__, "device": device.device_kind}, []
    parts = {"rows": rows, "table": table, "audits": audits, "sweep": sweep, "images": images}
    parts["gpt"] = functools.partial(gpt, text=text, until=start + seconds)
    for name in only.split(",") if only else parts:
        begin = time.perf_counter()
        print(f"## {name}", flush=True)
        try:
            found[name] = parts[name](small)
        except Exception:
            failed.append(name)
            traceback.print_exc(file=sys.stdout)
        print(f"({time.perf_counter() - begin:.0f} s)\n", flush=True)
    if file:
        Path(file).write_text(json.dumps(found, indent=1) + "\n")
    print(f"{time.perf_counter() - start:.0f} s in all")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="some of the parts, separated by commas")
    parser.add_argument("--small", action="store_true", help="small sizes, and a few rows")
    parser.add_argument("--seconds", type=float, default=330, help="when the GPT stops")
    parser.add_argument("--text", help="the text that the GPT reads")
    parser.add_argument("--json", dest="file", help="where the figures are written")
    main(**vars(parser.parse_args()))
