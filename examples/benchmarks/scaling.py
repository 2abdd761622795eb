"""How time and memory of value and gradient grow with the batch, the width, the depth and the steps: by hand and by autodiff.

    python examples/benchmarks/scaling.py [--rounds 5] [--small] [--only batch,width,depth,steps] [--output output]

One size grows, the others stand; `jax.grad` differentiates the same forward pass. Prints the medians of alternating rounds
and the compiled temporaries, and the slope of log time over log size between the two largest sizes: 1 is linear. Writes
scaling.png and scaling.json.
"""

# %%
import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np

import fnnet as fn
from fnnet.bench import networks
from fnnet.bench.measure import Contender, compiled, in_turns

sys.path.append(str(Path(__file__).parent.parent))
from pictures import pyplot, save


def classifier(*layers: fn.Layer) -> fn.Network:
    return fn.Network(*layers, fn.Dense(10, fn.softmax))


BLOCK = fn.Residual(fn.LayerNorm(), fn.Dense(256, fn.relu), fn.Dense(128, fn.linear))
# what grows: (its sizes, name -> size -> (network, shape of one example, m))
GROWTH = {
    "batch": (
        2 ** np.arange(5, 14),
        {
            "784-100-10": lambda m: (networks.dense(100, 10), (784,), m),
            "the book's conv net": lambda m: (networks.book(), (28, 28, 1), m),
        },
    ),
    "width": (
        2 ** np.arange(7, 13),
        {"two hidden layers, m = 64": lambda n: (networks.dense(n, n, 10, activation=fn.relu), (784,), 64)},
    ),
    "depth": (
        2 ** np.arange(1, 7),
        {
            "residual blocks of 128, m = 64": lambda n: (classifier(*[BLOCK] * n), (128,), 64),
            "the same, repeated": lambda n: (classifier(fn.Repeat(BLOCK, n)), (128,), 64),
        },
    ),
    "steps": (
        2 ** np.arange(4, 12),
        {
            "LSTM(128), m = 32": lambda T: (networks.classifier(fn.LSTM(128)), (T, 28), 32),
            "attention of 4 heads, m = 4": lambda T: (
                classifier(fn.Dense(192, fn.linear), fn.Attention(4, block=128), fn.LastStep()),
                (T, 64),
                4,
            ),
        },
    ),
}  # fmt: skip


def measured(net: fn.Layer, shape: tuple[int, ...], m: int, rounds: int) -> dict[str, tuple[float, float]]:
    """(seconds, MiB of temporaries) of each side."""
    params, x = net.init(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (m, *shape))
    given = params, x, jax.random.randint(jax.random.key(2), (m,), 0, 10)
    sides = {
        "by hand": fn.value_and_grad(net, fn.log_likelihood),
        "jax.grad": jax.value_and_grad(fn.objective(net, fn.log_likelihood)),
    }
    programs = {name: compiled(Contender(f, given)) for name, f in sides.items()}
    times = np.median(in_turns({name: program.call for name, program in programs.items()}, rounds), axis=0)
    memory = (program.temporaries / 2**20 for program in programs.values())
    return {name: (float(t), size) for name, t, size in zip(sides, times, memory, strict=True)}


def main(rounds: int = 5, small: bool = False, only: str = "", output: str = "output") -> dict:
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}, {rounds} rounds")
    curves = {}
    for what in only.split(",") if only else GROWTH:
        sizes, contenders = GROWTH[what]
        for name, make in contenders.items():
            print(f"\n{what}: {name}\n{'size':>6s} {'by hand':>10s} {'jax.grad':>10s} {'times':>6s}   temporaries")
            points = []
            for size in map(int, sizes[:2] if small else sizes):
                point = measured(*make(size), rounds)
                (own, space), (other, more) = point.values()
                print(
                    f"{size:6d} {1e3 * own:7.2f} ms {1e3 * other:7.2f} ms {other / own:6.2f}   {space:.1f} / {more:.1f} MiB"
                )
                sys.stdout.flush()
                points.append((size, own, other, space, more))
            (n, own, other, *_), (n2, own2, other2, *_) = points[-2:]
            slopes = (np.log(b / a) / np.log(n2 / n) for a, b in ((own, own2), (other, other2)))
            print("slope at the end: {:.2f} by hand, {:.2f} by jax.grad".format(*slopes))
            curves[f"{what}: {name}"] = points
    Path(output).mkdir(exist_ok=True, parents=True)
    (Path(output) / "scaling.json").write_text(json.dumps(curves, indent=1) + "\n")
    picture(curves, Path(output) / "scaling.png")
    return curves


def picture(curves: dict, path: Path) -> None:
    """Time above, temporaries below."""
    if (plt := pyplot()) is None:
        return
    figure, axes = plt.subplots(2, len(curves), figsize=(3.1 * len(curves), 6), squeeze=False, layout="constrained")
    for (name, points), (above, below) in zip(curves.items(), axes.T, strict=True):
        size, own, other, space, more = np.transpose(points)
        for ax, hand, autodiff, unit in ((above, own, other, 1e3), (below, space, more, 1)):
            ax.loglog(size, unit * autodiff, "s--", color="C1", label="jax.grad", markersize=4)
            ax.loglog(size, unit * hand, "o-", color="C0", label="by hand", markersize=4)
            ax.grid(alpha=0.3)
        what, network = name.split(": ")
        above.set_title(network, fontsize=9)
        below.set_xlabel({"batch": "m", "width": "units", "depth": "blocks", "steps": "T"}[what])
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("temporaries, MiB")
    axes[0, 0].legend(fontsize=8)
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="the two smallest sizes of each")
    parser.add_argument("--only", default="", help="some of batch, width, depth, steps")
    parser.add_argument("--output", default="output", metavar="DIR")
    main(**vars(parser.parse_args()))
