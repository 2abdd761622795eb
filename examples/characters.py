"""A character model: a recurrent network reads a text and says what comes next.

    python examples/characters.py                    # the help texts that ship with Python, some minutes
    python examples/characters.py --text FILE --cell GRU --units 256

The text is cut into long streams that are read side by side, a window of steps at a time: the states are carried from window
to window, the errors are cut in between (truncated backpropagation through time). Prints the cost in bits per character and
a text that the model draws by key, and writes characters.png: the cost by epoch, and the credit maps of an untrained cell of
each kind and of the trained one.
"""

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from pictures import pyplot, save
from texts import read

CELLS = {"RNN": fn.RNN, "LSTM": fn.LSTM, "GRU": fn.GRU}


def network(cell: str, characters: int, units: int) -> fn.Network:
    return fn.Network(fn.Embedding(characters, 32), CELLS[cell](units), fn.Dense(characters, fn.softmax))


def streams(tokens: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """m streams of equal length: the tokens (m, T), and at each step the token that follows."""
    steps = (len(tokens) - 1) // m
    return tokens[: m * steps].reshape(m, steps), tokens[1 : m * steps + 1].reshape(m, steps)


def main(
    text: str | None = None,
    cell: str = "LSTM",
    units: int = 192,
    epochs: int = 10,
    window: int = 64,
    rate: float = 4e-3,
    characters: int | None = None,
    length: int = 400,
    seed: int = 0,
    output: str = "output",
) -> float:
    # %% Data: characters as tokens, the last tenth of the text held back.
    tokens, alphabet = read(text, characters)
    held_back = len(tokens) // 10
    train, validation = streams(tokens[:-held_back], 32), streams(tokens[-held_back:], 8)
    print(f"{len(tokens)} characters, {len(alphabet)} different ones\n")

    # %% A probability for each character that may come next, at every step.
    net = network(cell, len(alphabet), units)
    init_key, fit_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    params = net.init(init_key, (window,))
    print(net)

    # %% Train by windows. C_x sums over the steps, in nats.
    steps = epochs * -(-train[0].shape[1] // window)
    params, history = fn.fit(
        net,
        fn.log_likelihood,
        params,
        train,
        key=fit_key,
        epochs=epochs,
        batch_size=32,
        window=window,
        optimizer=fn.chain(fn.clip_by_global_norm(5.0 * window), fn.adam(fn.CosineDecay(rate, steps))),
        validation=validation,
        monitor_training=False,
    )
    bits = {
        "training": history.cost / train[0].shape[1] / np.log(2),
        "validation": history.validation_cost / validation[0].shape[1] / np.log(2),
    }
    print("\n" + ", ".join(f"{name} {values[-1]:.3f} bits per character" for name, values in bits.items()))

    # %% Draw a text.
    drawn = draw(net, params, jnp.asarray(tokens[:1]), draw_key, length)
    print("\n" + "".join(alphabet[i] for i in np.asarray(drawn)))

    # %% Look.
    x, y = (part[:8, :48] for part in train)
    maps = {}
    for name in CELLS:
        other = network(name, len(alphabet), units)
        maps[f"{name}, untrained"] = credit(other, other.init(init_key, (window,)), x, y)
    maps[f"{cell}, trained"] = credit(net, params, x, y)
    picture(bits, maps, Path(output) / "characters.png")
    return float(bits["validation"][-1])


def draw(net: fn.Network, params, first, key, length: int):
    """``length`` tokens, each drawn from what the network says after those before it; a scan that carries the state."""
    _, state = net.apply_from(params, first[None])

    def step(carry, key):
        token, state = carry
        a, state = net.apply_from(params, token[None, None], state)
        token = jax.random.categorical(key, jnp.log(a[0, 0])).astype(first.dtype)
        return (token, state), token

    return jax.lax.scan(step, (first[0], state), jax.random.split(key, length))[1]


def credit(net: fn.Network, params, x, y):
    """‖∂C_τ/∂h_t‖ for all pairs of steps, the mean over the streams."""
    return jnp.mean(fn.diagnostics.credit_map(net, fn.log_likelihood, params, x, y, layer=1), axis=0)


def picture(bits: dict, maps: dict, path: Path) -> None:
    """The cost by epoch, and the credit maps on one scale."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(4.2 * (1 + len(maps)), 4), layout="constrained")
    for name, values in bits.items():
        axes[0].plot(np.arange(1, len(values) + 1), values, marker=".", label=name)
    axes[0].set(xlabel="epoch", ylabel="bits per character", title="Cost by epoch")
    axes[0].grid(alpha=0.3)
    axes[0].legend()
    top = max(float(jnp.max(norms)) for norms in maps.values())
    for ax, (name, norms) in zip(axes[1:], maps.items(), strict=True):
        plots.credit_map(norms, span=(1e-6 * top, top), ax=ax).set_title(name)
    print()
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="FILE", help="a text in UTF-8; by default Python's own help texts")
    parser.add_argument("--cell", choices=CELLS, default="LSTM")
    parser.add_argument("--units", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--window", type=int, default=64, help="steps between which errors flow")
    parser.add_argument("--rate", type=float, default=4e-3, help="Adam's learning rate at the start")
    parser.add_argument("--characters", type=int, help="read the first so many characters only")
    parser.add_argument("--length", type=int, default=400, help="how many characters to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
