"""A GPT whose backpropagation is written by hand: it reads a text, character by character, and says what comes next.

    python examples/gpt.py                                  # the help texts that ship with Python, a small model, two minutes
    python examples/gpt.py --text input.txt --nanogpt       # the CPU setting of nanoGPT's README on tiny Shakespeare
    python examples/gpt.py --text input.txt --nanogpt --autodiff --seeds 3

A pre-norm block has two residual branches: LayerNorm, Dense(3n), Attention, Dense(n); LayerNorm, Dense(4n, gelu), Dense(n).
Embedding and output layer share one array. fnnet/bench/networks.py builds it, as the benchmarks measure the same network.
`--autodiff` trains it by `jax.grad` in the same loop, on the same batches. Prints the loss (the mean over the steps,
in nats) over the whole validation text and a text that the model draws by key, and writes gpt.png: the losses by step, and
what each head of the first block attends to.
"""

# %%
import argparse
import dataclasses
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet.bench.networks import gpt
from pictures import pyplot, save
from texts import read


@dataclass(frozen=True)
class Setting:
    """By default a small model; `NANOGPT` is the CPU setting of nanoGPT's README, `NANOGPT_GPU` its other one."""

    block: int = 32
    batch: int = 16
    layers: int = 2
    heads: int = 4
    n: int = 64
    steps: int = 600
    rate: float = 1e-3
    dropout: float = 0.0


NANOGPT = Setting(64, 12, 4, 4, 128, 2000)
NANOGPT_GPU = Setting(256, 64, 6, 6, 384, 5000, dropout=0.2)


def schedule(setting: Setting):
    """A linear rise over a twentieth of the steps (at most 100), then half a cosine down to a tenth of the rate."""
    warmup = min(100, setting.steps // 20)

    def rate(step):
        step = step.astype(float)
        done = jnp.clip((step - warmup) / (setting.steps - warmup), 0, 1)
        decayed = setting.rate * (0.1 + 0.45 * (1 + jnp.cos(jnp.pi * done)))
        return jnp.where(step < warmup, setting.rate * (step + 1) / (warmup + 1), decayed)

    return rate


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(gradient, optimizer, params, state, windows, key):
    """A step for each batch of windows (steps, m, T + 1): the losses by step and what comes after the last."""

    def step(carry, given):
        params, state = carry
        batch, key = given
        x, y = batch[:, :-1], batch[:, 1:]
        weights = jnp.full(x.shape, 1 / x.shape[1])  # a mean over the steps, where C_x is a sum
        loss, gradients = gradient(params, x, y, key=key, weights=weights)
        updates, state = optimizer.update(gradients, state, params)
        return (fn.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, state), (windows, jax.random.split(key, len(windows))))


def train(setting, net, params, tokens, validation, seed, by_hand, rounds, until=float("inf")):
    """(parameters, [(step, training loss, validation loss), ...], seconds), seeing windows drawn by the seed; it ends early
    after the round in which ``time.perf_counter()`` passes ``until``."""
    value_and_grad = fn.value_and_grad(net, fn.log_likelihood)
    gradient = value_and_grad if by_hand else jax.value_and_grad(fn.objective(net, fn.log_likelihood))
    optimizer = fn.chain(fn.clip_by_global_norm(1.0), fn.adamw(schedule(setting), 0.9, 0.99, weight_decay=0.1))
    state, draw, key = optimizer.init(params), np.random.default_rng(seed), jax.random.key(seed + 1)
    losses, seconds = [], 0.0
    for i, steps in enumerate(np.diff(np.linspace(0, setting.steps, rounds + 1).astype(int))):
        starts = draw.integers(len(tokens) - setting.block, size=(steps, setting.batch, 1))
        windows = jnp.asarray(tokens[starts + np.arange(setting.block + 1)])
        begin = time.perf_counter()
        (params, state), costs = jax.block_until_ready(
            run(gradient, optimizer, params, state, windows, jax.random.fold_in(key, i))
        )
        seconds += (time.perf_counter() - begin) * (i > 0)  # the first round compiles
        held_out = fn.evaluate(net, fn.log_likelihood, params, validation)[0]
        done = sum(s for s, *_ in losses[-1:]) + int(steps)
        losses.append((done, float(jnp.mean(costs[-50:])), held_out))
        print(f"  step {done}: training {losses[-1][1]:.3f}, validation {held_out:.3f}", flush=True)
        if time.perf_counter() > until:
            break
    return params, losses, seconds


def main(
    text: str | None = None,
    setting: Setting = Setting(),
    seeds: int = 1,
    autodiff: bool = False,
    characters: int | None = None,
    length: int = 300,
    rounds: int = 8,
    output: str = "output",
) -> dict[str, Any]:
    """The losses (rounds, 3) by name, of seed 0: step, training, validation; the maps of the first block's heads and the
    text they are of."""
    # %% Data: characters as tokens, the last tenth of the text held back.
    tokens, alphabet = read(text, characters)
    held_back = len(tokens) - int(0.9 * len(tokens))
    rows = (held_back - 1) // setting.block
    last = tokens[-held_back:]
    x, y = (last[i : i + rows * setting.block].reshape(rows, setting.block) for i in (0, 1))
    validation = x, y, {"weights": np.full(x.shape, 1 / setting.block, np.float32)}
    print(f"{len(tokens)} characters, {len(alphabet)} different ones; {setting}\n")

    # %% The network.
    net = gpt(len(alphabet), setting.n, setting.heads, setting.layers, setting.dropout)
    curves, results, trained = {}, {"by hand": [], "jax.grad": []}, None
    for seed in range(seeds):
        start = net.init(jax.random.key(seed), (setting.block,))
        if seed == 0:
            print(f"{sum(leaf.size for leaf in jax.tree.leaves(start))} parameters")
        for name in ("by hand", "jax.grad") if autodiff else ("by hand",):
            print(f"{name}, seed {seed}")
            last_trained, losses, seconds = train(
                setting, net, start, tokens[:-held_back], validation, seed, name == "by hand", rounds
            )
            per_step = 1e3 * seconds * rounds / max(rounds - 1, 1) / setting.steps
            results[name].append((losses[-1][2], per_step))
            curves.setdefault(name, losses)
            trained = last_trained if name == "by hand" else trained
    print()
    for name, measured in results.items():
        if measured:
            losses, times = zip(*measured, strict=True)
            print(
                f"{name}: validation loss {', '.join(f'{loss:.4f}' for loss in losses)}; "
                f"{min(times):.1f} to {max(times):.1f} ms a step"
            )

    # %% Draw a text.
    drawn = draw_text(net, trained, jnp.asarray(last[: setting.block]), jax.random.key(0), length)
    print("\n" + "".join(alphabet[i] for i in np.asarray(drawn)))

    # %% Look.
    seen = last[: min(setting.block, 20)]
    maps = attention_maps(net, trained, jnp.asarray(seen), setting)
    found = {"losses": curves, "maps": np.asarray(maps), "text": "".join(alphabet[i] for i in seen)}
    picture(found, Path(output) / "gpt.png")
    return found


@functools.partial(jax.jit, static_argnums=(0, 4))
def draw_text(net, params, window, key, length):
    """``length`` tokens, each drawn from what the network says after a window that moves along."""

    def step(window, key):
        a = net.apply(params, window[None])
        token = jax.random.categorical(key, jnp.log(a[0, -1])).astype(window.dtype)
        return jnp.append(window[1:], token), token

    return jax.lax.scan(step, window, jax.random.split(key, length))[1]


def attention_maps(net, params, tokens, setting):
    """Of each head of the first block, how much each step attends to each: (heads, T, T)."""
    layers, inside = net.net.layers, net.expanded(params)
    first = next(i for i, part in enumerate(layers) if isinstance(part, fn.Parallel))
    before, branch = fn.Network(*layers[:first]), layers[first].layers[1][:2]
    a = before.apply(inside[:first], tokens[None])
    q, k, _ = jnp.split(branch.apply(inside[first][1][:2], a)[0], 3, axis=-1)
    q, k = (part.reshape(len(tokens), setting.heads, -1) for part in (q, k))
    scores = jnp.einsum("thc,shc->hts", q, k) / q.shape[-1] ** 0.5
    return jax.nn.softmax(jnp.where(jnp.tri(len(tokens), dtype=bool), scores, -jnp.inf))


def picture(found: dict, path: Path) -> None:
    if (plt := pyplot()) is None:
        return
    figure = plt.figure(figsize=(11, 5.5), layout="constrained")
    draw(found, figure)
    print()
    save(figure, path)


def draw(found: dict, figure: Any) -> None:
    """The losses by step, and the attention of each head of the first block."""
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    loss, maps = left.subplots(), found["maps"]
    axes = right.subplots(2, len(maps) // 2)
    for (name, losses), style in zip(found["losses"].items(), (".-", "x"), strict=False):
        steps, training, validation = zip(*losses, strict=True)
        loss.plot(steps, training, style, color="C0", label=f"training, {name}")
        loss.plot(steps, validation, style, color="C1", label=f"validation, {name}")
    loss.set(xlabel="step", ylabel="loss in nats per character", title="Loss")
    loss.grid(alpha=0.3)
    loss.legend(fontsize="small")
    shown = [letter if letter.isprintable() and letter != " " else "␣" for letter in found["text"]]
    for head, (ax, weights) in enumerate(zip(axes.flat, maps, strict=True)):
        ax.imshow(weights, cmap="viridis", vmin=0, interpolation="none")
        ax.set_title(f"Head {head + 1}", fontsize="small")
        ax.set_xticks(range(len(shown)), shown, fontsize=4)
        ax.set_yticks([])
        ax.tick_params(bottom=False, pad=1)
        ax.label_outer()
    right.supxlabel("attended to", fontsize="small")
    right.supylabel("from (the same text, downwards)", fontsize="small")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="FILE", help="a text in UTF-8; by default Python's own help texts")
    parser.add_argument("--nanogpt", action="store_true", help="the CPU setting of nanoGPT's README")
    parser.add_argument("--nanogpt-gpu", action="store_true", help="its GPU setting: hours without one")
    parser.add_argument("--autodiff", action="store_true", help="train by jax.grad too, beside it")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--characters", type=int, help="read the first so many characters only")
    parser.add_argument("--steps", type=int, help="of training, in place of the setting's")
    parser.add_argument("--rounds", type=int, default=8, help="how often the validation loss is measured")
    parser.add_argument("--length", type=int, default=300, help="characters to draw")
    parser.add_argument("--output", default="output", metavar="DIR")
    given = vars(parser.parse_args())
    chosen = NANOGPT if given.pop("nanogpt") else Setting()
    chosen = NANOGPT_GPU if given.pop("nanogpt_gpu") else chosen
    if (steps := given.pop("steps")) is not None:
        chosen = dataclasses.replace(chosen, steps=steps)
    main(setting=chosen, **given)
