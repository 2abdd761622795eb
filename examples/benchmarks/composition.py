"""Value and gradient of normalisation, attention and a GPT: by hand against `jax.grad`.

    python examples/benchmarks/composition.py [--rounds 9] [--only PART ...]

Two ratios, above 1 where the hand-written backward pass is faster: against autodiff of the *same* forward pass and of a plain
one (attention without blocks, blocks written out one after another, all logits at once), so that a faster forward is
not counted as a faster backward. Medians over alternating rounds with their quartiles; compiled temporaries beside.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from timing import alternating

import fnnet as fn

sys.path.append(str(Path(__file__).parent.parent))
from gpt import gpt

V = 32_768


def repeated(block, n):
    return [fn.Repeat(block, n)]


def recomputed(block, n):
    return [fn.Repeat(fn.Recompute(block), n)]


GPT = gpt(65, 128, 4, 4)
# name: (layer, shape of a batch, plain layer or None)
LAYERS = {
    "LayerNorm": (fn.LayerNorm(), (32, 64, 128), None),
    "RMSNorm": (fn.RMSNorm(), (32, 64, 128), None),
    "GroupNorm(8)": (fn.GroupNorm(8), (64, 16, 16, 64), None),
    "BatchNorm": (fn.BatchNorm(), (64, 16, 16, 64), None),
    "Dense(512, gelu) on 64 steps": (fn.Dense(512, fn.gelu), (12, 64, 128), None),
    "Attention, T = 64": (fn.Attention(4), (12, 64, 384), None),
    "Attention, T = 1,024": (fn.Attention(4), (4, 1024, 384), None),
    "Attention in blocks of 128, T = 1,024": (fn.Attention(4, block=128), (4, 1024, 384), fn.Attention(4)),
}
NETWORKS = {
    "GPT of 4 x 128, written out": (GPT, GPT),
    "GPT of 4 x 128, repeated": (gpt(65, 128, 4, 4, body=repeated), GPT),
    "GPT of 4 x 128, repeated and recomputed": (gpt(65, 128, 4, 4, body=recomputed), GPT),
}


def of_layer(layer, shape):
    """Both sides of a layer's value, gradients and ∂C/∂a_in, for a given ∂C/∂a_out."""
    params = layer.init(jax.random.key(0), shape[1:])
    x = jax.random.normal(jax.random.key(1), shape)
    da = jax.random.normal(jax.random.key(2), (shape[0], *layer.output_shape(shape[1:])))
    train = {"train": True} if isinstance(layer, fn.BatchNorm) else {}

    @jax.jit
    def by_hand(params, x, da):
        a, cache = layer.forward(params, x, **train)
        return a, layer.backward(params, cache, da)

    @jax.jit
    def autodiff(params, x, da):
        a, pull_back = jax.vjp(lambda params, x: layer.forward(params, x, **train)[0], params, x)
        of_params, da_in = pull_back(da)
        return a, (da_in, jax.tree.map(lambda g: g / len(x), of_params))

    return by_hand, autodiff, (params, x, da)


def of_network(net, m=12, steps=64, vocabulary=65, **settings):
    params = net.init(jax.random.key(0), (steps,))
    x = jax.random.randint(jax.random.key(1), (m, steps), 0, vocabulary)
    by_hand = jax.jit(fn.value_and_grad(net, fn.log_likelihood, micro_batch=None, **settings))
    return by_hand, jax.jit(jax.value_and_grad(fn.objective(net, fn.log_likelihood))), (params, x, jnp.roll(x, -1, 1))


def row(name, own, plain, rounds):
    by_hand, same, given = own
    _, other, given_plain = plain or own
    contenders = {"hand": lambda: by_hand(*given), "same": lambda: same(*given), "plain": lambda: other(*given_plain)}
    for f in contenders.values():
        jax.block_until_ready(f())
    times = alternating(contenders, rounds, 3)

    def mib(f, given):
        return f.lower(*given).compile().memory_analysis().temp_size_in_bytes / 2**20

    def ratio(i):
        low, middle, high = np.quantile(times[:, i] / times[:, 0], [0.25, 0.5, 0.75])
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    memory = " / ".join(f"{mib(f, g):.1f}" for f, g in ((by_hand, given), (same, given), (other, given_plain)))
    print(f"| {name} | {1e3 * np.median(times[:, 0]):.2f} | {ratio(1)} | {ratio(2)} | {memory} |", flush=True)


def main(rounds: int = 9, only: tuple[str, ...] = ()) -> None:
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}\n")
    print(
        "| | by hand, ms | against the same forward | against the plain one | temporaries, MiB: hand / same / plain |"
    )
    print("|---|---|---|---|---|")
    chosen = lambda name: not only or any(part in name for part in only)  # noqa: E731
    for name, (layer, shape, plain) in LAYERS.items():
        if chosen(name):
            row(name, of_layer(layer, shape), plain and of_layer(plain, shape), rounds)
    for name, (net, plain) in NETWORKS.items():
        if chosen(name):
            row(name, of_network(net), of_network(plain), rounds)
    name = "a vocabulary of 32,768, 128 steps at a time"
    if chosen(name):
        head = fn.Dense(V, fn.softmax)
        net = fn.Tied(
            fn.Network(fn.Embedding(V, 64), fn.Residual(fn.LayerNorm(), fn.Dense(64, fn.tanh)), head), "0.w", "-1.w"
        )
        sizes = {"m": 1, "steps": 1024, "vocabulary": V}
        row(name, of_network(net, **sizes, positions=128), of_network(net, **sizes), rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=(), help="rows whose name contains one of these")
    main(**vars(parser.parse_args()))
