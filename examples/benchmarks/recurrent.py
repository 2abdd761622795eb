"""Recurrent layers by hand beside ``jax.grad`` and PyTorch, alternating in one run.

    python examples/benchmarks/recurrent.py [--rounds 15] [--cells LSTM,GRU,RNN] [--sizes 28x32x128x28,...]

The gradient of a layer (parameters and inputs, from a given ∂C/∂h of every step) at T × m × n × n_in. ``jax.grad``
differentiates a scan with the input's product hoisted out of it. float32; random data; medians of ratios, round by round;
compiled temporaries beside them. PyTorch is left out where it is not installed.
"""

# %%
import argparse
import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
from timing import alternating

import fnnet as fn

CELLS = {"LSTM": fn.LSTM, "GRU": fn.GRU, "RNN": fn.RNN}


def plain(kind, n, params, x):
    """h of every step, as a careful user writes it: one product with all inputs, then the scan."""
    z = jnp.einsum("mtk,jk->tmj", x, params["w_x"]) + params["b"][None, None]
    zeros = jnp.zeros((x.shape[0], n), x.dtype)

    def step(states, z):
        h = states[0]
        q = h @ params["w_h"].T
        if kind == "RNN":
            new = (jnp.tanh(z + q),)
        elif kind == "LSTM":
            i, f, g, o = jnp.split(z + q, 4, -1)
            c = jax.nn.sigmoid(f) * states[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
            new = jax.nn.sigmoid(o) * jnp.tanh(c), c
        else:
            (z_r, z_u, z_n), (q_r, q_u, q_n) = jnp.split(z, 3, -1), jnp.split(q, 3, -1)
            r, u = jax.nn.sigmoid(z_r + q_r), jax.nn.sigmoid(z_u + q_u)
            candidate = jnp.tanh(z_n + r * (q_n + params["b_h"][None]))
            new = ((1 - u) * candidate + u * h,)
        return new, new[0]

    _, h = jax.lax.scan(step, (zeros,) * (2 if kind == "LSTM" else 1), z)
    return jnp.swapaxes(h, 0, 1)


def torch_gradient(kind, cell, params, x, da):
    import torch

    layer = getattr(torch.nn, kind)(x.shape[-1], cell.n, batch_first=True)
    layer.load_state_dict({name: torch.tensor(np.asarray(a)) for name, a in fn.to_torch(cell, params).items()})
    inputs, da = torch.tensor(np.asarray(x), requires_grad=True), torch.tensor(np.asarray(da))

    def run():
        layer.zero_grad()
        inputs.grad = None
        layer(inputs)[0].backward(da)
        return ()

    return run


def main(
    rounds: int = 15,
    cells: str = "LSTM,GRU,RNN",
    sizes: str = "28x32x128x28,100x32x256x64,256x16x256x128,784x32x128x1",
) -> dict[tuple[str, str, str], float]:
    print(f"JAX {jax.__version__} on {jax.default_backend()}, {rounds} rounds")
    ratios = {}
    for size in sizes.split(","):
        steps, m, n, n_in = map(int, size.split("x"))
        for kind in cells.split(","):
            cell = CELLS[kind](n)
            params = cell.init(jax.random.key(0), (steps, n_in))
            x, da = (jax.random.normal(jax.random.key(i), (m, steps, k)) for i, k in ((1, n_in), (2, n)))

            def by_hand(params, x, da, cell=cell):
                h, cache = cell.forward(params, x)
                return h, cell.backward(params, cache, da)

            def autodiff(f, params, x, da):
                h, pull = jax.vjp(f, params, x)
                return h, pull(da)

            plain_scan = functools.partial(plain, kind, n)
            own_forward = lambda params, x, cell=cell: cell.forward(params, x)[0]  # noqa: E731
            programs = {
                "by hand": by_hand,
                "jax.grad of a scan": functools.partial(autodiff, plain_scan),
                "jax.grad of forward": functools.partial(autodiff, own_forward),
            }
            compiled = {name: jax.jit(f).lower(params, x, da).compile() for name, f in programs.items()}
            contenders = {name: functools.partial(f, params, x, da) for name, f in compiled.items()}
            with contextlib.suppress(ImportError):
                contenders["PyTorch"] = torch_gradient(kind, cell, params, x, da)
            times = alternating(contenders, rounds, max(1, 2**21 // (steps * m * n)))
            for i, name in enumerate(contenders):
                ratio = ratios[kind, size, name] = float(np.median(times[:, i] / times[:, 0]))
                line = f"{kind:4s} {size:15s} {name:20s} {1e3 * np.median(times[:, i]):8.2f} ms  {ratio:5.2f} times"
                if name in compiled:
                    memory = [compiled[k].memory_analysis().temp_size_in_bytes for k in ("by hand", name)]
                    line += f"  temporaries {memory[1] / 2**20:6.1f} MiB, by hand / this {memory[0] / memory[1]:.2f}"
                print(line, flush=True)
    return ratios


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cells", default="LSTM,GRU,RNN")
    parser.add_argument(
        "--sizes", default="28x32x128x28,100x32x256x64,256x16x256x128,784x32x128x1", help="T x m x n x n_in"
    )
    main(**vars(parser.parse_args()))
