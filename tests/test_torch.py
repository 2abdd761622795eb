"""PyTorch's weights give PyTorch's outputs and gradients, both ways. Where PyTorch is not installed, a GPT's numbers are
compared with those it gave: tests/data/gpt.npz, which `write_the_gpt` makes.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.interop import nanogpt_names

from . import cases
from .cases import assert_agree, gpt_block, thorough

KEPT = Path(__file__).parent / "data" / "gpt.npz"
V, T, N, HEADS, BLOCKS = 11, 8, 12, 3, 2


def gpt(blocks=BLOCKS, **settings):
    """nanoGPT with biases."""
    return cases.gpt(V, N, gpt_block(N, fn.Attention(HEADS)) * blocks, **settings)


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def torch_gpt(torch):
    """nanoGPT's model.py in a few lines: its names, pre-norm blocks, exact gelu, causal attention, the head tied."""
    nn = torch.nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn, self.c_proj = nn.Linear(N, 3 * N), nn.Linear(N, N)

        def forward(self, x):
            m = x.shape[0]
            q, k, v = (a.view(m, T, HEADS, -1).transpose(1, 2) for a in self.c_attn(x).split(N, dim=2))
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.c_proj(y.transpose(1, 2).reshape(m, T, N))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc, self.c_proj = nn.Linear(N, 4 * N), nn.Linear(4 * N, N)

        def forward(self, x):
            return self.c_proj(nn.functional.gelu(self.c_fc(x)))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(N), Attention(), nn.LayerNorm(N), MLP()

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            parts = {"wte": nn.Embedding(V, N), "wpe": nn.Embedding(T, N)}
            parts |= {"h": nn.ModuleList(Block() for _ in range(BLOCKS)), "ln_f": nn.LayerNorm(N)}
            self.transformer = nn.ModuleDict(parts)
            self.lm_head = nn.Linear(N, V, bias=False)
            self.transformer.wte.weight = self.lm_head.weight

        def forward(self, tokens, targets):
            x = self.transformer.wte(tokens) + self.transformer.wpe(torch.arange(T))
            for block in self.transformer.h:
                x = block(x)
            logits = self.lm_head(self.transformer.ln_f(x))
            return nn.functional.cross_entropy(logits.view(-1, V), targets.view(-1))

    torch.manual_seed(0)
    return GPT().double()


def gradients_of(torch, model, tokens, targets):
    """(state dict, loss, gradients by name), as NumPy arrays."""
    loss = model(torch.from_numpy(tokens), torch.from_numpy(targets))
    loss.backward()
    state = {name: a.numpy() for name, a in model.state_dict().items()}
    return state, loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}


def text():
    tokens = np.random.default_rng(0).integers(V, size=(3, T + 1))
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def write_the_gpt(path=KEPT):
    """Make tests/data/gpt.npz again: python -c "from tests.test_torch import write_the_gpt as w; w()"."""
    import torch

    state, loss, gradients = gradients_of(torch, torch_gpt(torch), *text())
    arrays = {f"weight {name}": a for name, a in state.items() if name != "lm_head.weight"}
    arrays |= {f"gradient {name}": a for name, a in gradients.items()}
    x, y = text()
    np.savez_compressed(path, **arrays, x=x, y=y, loss=loss)


def kept_gpt():
    """(state dict, loss, gradients by name, x, y) of the file."""
    with np.load(KEPT) as kept:
        groups = {
            kind: {name.split(" ")[1]: kept[name] for name in kept if name.startswith(kind)}
            for kind in ("weight", "gradient")
        }
        state = {**groups["weight"], "lm_head.weight": groups["weight"]["transformer.wte.weight"]}
        return state, float(kept["loss"]), groups["gradient"], kept["x"], kept["y"]


def ours(net, params, x, y):
    """The cost and the gradients of the mean over the steps, by hand and by autodiff."""
    weights = np.full(x.shape, 1 / x.shape[1])

    @jax.jit
    def both(params):
        plain = jax.grad(fn.objective(net, fn.log_likelihood))(params, x, y, weights=weights)
        return fn.value_and_grad(net, fn.log_likelihood)(params, x, y, weights=weights), plain

    return both(params)


def assert_gpt(state, loss, gradients, x, y):
    net, names = gpt(), nanogpt_names(BLOCKS)
    params = fn.from_torch(net, state, names=names)
    (cost, by_hand), plain = ours(net, params, jnp.asarray(x), jnp.asarray(y))
    assert abs(cost - loss) < 1e-10 * loss
    assert_agree(by_hand, plain, 1e-12)
    of_theirs = fn.to_torch(net, by_hand, names=names)
    assert len(gradients) == 2 + 12 * BLOCKS + 2
    assert_agree({name: of_theirs[name] for name in gradients}, dict(gradients), 1e-10)
    back = fn.to_torch(net, params, names=names)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], state[name]) for name in state)


@pytest.mark.thorough
def test_a_gpt_s_gradients_are_those_that_pytorch_gave():
    assert_gpt(*kept_gpt())


def test_a_gpt_s_gradients_are_pytorch_s():
    torch = pytest.importorskip("torch")
    model, (x, y) = torch_gpt(torch), text()
    state, loss, gradients = gradients_of(torch, model, x, y)
    assert_gpt(state, loss, gradients, x, y)
    model.load_state_dict({name: torch.from_numpy(2 * a) for name, a in kept_gpt()[0].items()})


def attention(causal=False):
    return fn.Network(fn.Dense(24, fn.linear), fn.Attention(2, causal), fn.Dense(8, fn.linear))


PROJECTIONS = ("in_proj_", "out_proj.")
LAYERS = {
    "Linear": (fn.Dense(4, fn.linear), "Linear", (3, 4), {}, (5, 3), None),
    "Linear without a bias": (fn.Dense(4, fn.linear, bias=False), "Linear", (3, 4), {"bias": False}, (5, 3), None),
    "Conv2d": (fn.Conv(4, (3, 2), fn.linear, groups=2), "Conv2d", (6, 4, (3, 2)), {"groups": 2}, (5, 6, 6), None),
    "Conv1d": (fn.Conv(4, 3, fn.linear, 2), "Conv1d", (3, 4, 3), {"stride": 2}, (7, 3), None),
    "LayerNorm": (fn.LayerNorm(), "LayerNorm", (6,), {}, (5, 6), None),
    "LayerNorm without a bias": (fn.LayerNorm(), "LayerNorm", (6,), {"bias": False}, (5, 6), None),
    "RMSNorm": (fn.RMSNorm(1e-3), "RMSNorm", (6,), {"eps": 1e-3}, (5, 6), None),
    "GroupNorm": (fn.GroupNorm(3), "GroupNorm", (3, 6), {}, (4, 5, 6), None),
    "BatchNorm1d": (fn.BatchNorm(), "BatchNorm1d", (6,), {}, (6,), None),
    "BatchNorm1d on steps": (fn.BatchNorm(0.3), "BatchNorm1d", (6, 1e-5, 0.3), {}, (5, 6), None),
    "BatchNorm2d": (fn.BatchNorm(), "BatchNorm2d", (6,), {}, (3, 4, 6), None),
    "Embedding": (fn.Embedding(7, 4), "Embedding", (7, 4), {}, (5,), None),
    "MultiheadAttention": (attention(), "MultiheadAttention", (8, 2), {"batch_first": True}, (5, 8), PROJECTIONS),
    "a causal MultiheadAttention": (
        attention(True), "MultiheadAttention", (8, 2), {"batch_first": True}, (5, 8), PROJECTIONS
    ),
    "LSTM": (fn.LSTM(4), "LSTM", (3, 4), {"batch_first": True}, (5, 3), None),
}  # fmt: skip
CHANNELS_FIRST = ("Conv", "GroupNorm", "BatchNorm")


@pytest.mark.parametrize(
    "name", [name for name in LAYERS if name not in ("BatchNorm1d", "Conv1d")] + thorough("BatchNorm1d", "Conv1d")
)
def test_a_layer_is_pytorch_s(name):
    torch = pytest.importorskip("torch")
    layer, kind, args, options, shape, names = LAYERS[name]
    torch.manual_seed(0)
    module = getattr(torch.nn, kind)(*args, **options, dtype=torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(-1, 1)
    state = {key: a.clone() for key, a in module.state_dict().items()}
    params = fn.from_torch(layer, state, names=names)

    x = np.random.default_rng(1).integers(7, size=(3, *shape)) if kind == "Embedding" else draw((3, *shape))
    inputs = torch.tensor(x, requires_grad=kind != "Embedding")
    turned = inputs.movedim(-1, 1) if kind.startswith(CHANNELS_FIRST) else inputs
    if kind == "MultiheadAttention":
        causal = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
        a, _ = module(turned, turned, turned, attn_mask=causal if "causal" in name else None, need_weights=False)
    else:
        a = module(turned)
        a = a[0] if kind == "LSTM" else a
    a = a.movedim(1, -1) if kind.startswith(CHANNELS_FIRST) else a
    da = draw(a.shape, 2)
    a.backward(torch.tensor(da))

    @jax.jit
    def both(params, x):
        about = {"train": True} if kind.startswith("BatchNorm") or names else {}
        a, cache = layer.forward(params, x, **about)
        return a, *layer.backward(params, cache, jnp.asarray(da)), layer.moving(params, cache)

    by_hand, da_in, gradients, moved = both(params, jnp.asarray(x))
    assert_agree(by_hand, a.detach().numpy(), 1e-10)
    if inputs.requires_grad:
        assert_agree(da_in, inputs.grad.numpy(), 1e-10)
    of_theirs = fn.to_torch(layer, jax.tree.map(lambda g: len(x) * g, gradients), names=names)
    wanted = {key: p.grad.numpy() for key, p in module.named_parameters() if "bias_hh" not in key}
    assert_agree({key: of_theirs[key] for key in wanted}, wanted, 1e-10)

    back = fn.to_torch(layer, params, names=names)
    if kind != "LSTM":
        assert all(np.array_equal(back[key], state[key]) for key in state if key != "num_batches_tracked")
    after = fn.to_torch(layer, moved, names=names)
    statistics = {key: a.numpy() for key, a in module.state_dict().items() if key.startswith("running")}
    assert_agree({key: after[key] for key in statistics}, statistics, 1e-10)
    module.load_state_dict({key: torch.from_numpy(a) for key, a in back.items() if key in state})


def test_a_network_goes_by_its_places_and_back():
    net = fn.Network(fn.Conv(4, 3, fn.relu, bias=False), fn.BatchNorm(), fn.Network(fn.Flatten(), fn.Dense(3, fn.tanh)))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), (4, 4, 2)))
    params = jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape)), shapes)
    state = fn.to_torch(net, params)
    assert {name: a.shape for name, a in state.items()} == {
        "0.weight": (4, 2, 3, 3),
        "1.weight": (4,),
        "1.bias": (4,),
        "1.running_mean": (4,),
        "1.running_var": (4,),
        "2.1.weight": (3, 16),
        "2.1.bias": (3,),
    }
    back = fn.from_torch(net, {**state, "1.num_batches_tracked": np.zeros((), int)})
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert_agree(back, params, 0)


@pytest.mark.parametrize("repeated", [fn.Repeat, fn.Recompute], ids=["Repeat", "Recompute"])
def test_composites_of_another_structure(repeated):
    block = fn.Residual(fn.LayerNorm(), fn.Dense(4, fn.tanh))
    net = fn.Repeat(block, 2) if repeated is fn.Repeat else fn.Recompute(fn.Network(block, block))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), (4,)))
    params = jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape)), shapes)
    state = fn.to_torch(net, params)
    assert sorted(state)[:2] == ["0.1.0.bias", "0.1.0.weight"]
    assert_agree(fn.from_torch(net, state), params, 0)


def test_half_precision_and_integers():
    params = fn.from_torch(fn.Dense(2, fn.tanh), {"weight": np.eye(2, dtype=np.float16), "bias": [1, 2]})
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float16")}
    assert fn.from_torch(fn.Dense(2, fn.tanh, bias=False), {"weight": [[1, 2], [3, 4]]})["w"].dtype == float


class Odd:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("no numbers here")


TWO = fn.Network(fn.Dense(2, fn.tanh), fn.Flatten(), fn.Dense(2, fn.tanh))
STATE = {"0.weight": np.ones((2, 2)), "2.weight": np.zeros((2, 2)), "0.bias": np.ones(2), "2.bias": np.ones(2)}
PLAIN, THIN, CONV = fn.Dense(3, fn.tanh), fn.Dense(2, fn.tanh, bias=False), fn.Conv(2, 3, fn.tanh)


def sized(**shapes):
    return {name: np.ones(shape) for name, shape in shapes.items()}


BAD = {
    "missing": (PLAIN, sized(bias=3), r"^Dense\(3, tanh\): .* 'weight' of shape \(3, c\), got the names 'bias'; names="),
    "a missing layer": (TWO, {"fc.weight": 0}, r"^layer 0 Dense\(2, tanh\): .* '0\.weight' .*, got the names 'fc\.weight'"),
    "other units": (TWO, {**STATE, "2.weight": np.ones((3, 2))}, r"^layer 2 .* '2\.weight' of shape \(2, c\), got \(3, 2\)"),
    "too much": (THIN, sized(weight=(2, 2), bias=2), r"expected only weight after '', got 'bias'; choose the layer"),
    "other channels": (fn.LayerNorm(), sized(weight=3, bias=4), r"an array 'bias' of shape \(3\), got \(4,\); give"),
    "other tokens": (fn.Embedding(3, 2), sized(weight=(4, 2)), r"an array 'weight' of shape \(3, 2\), got \(4, 2\)"),
    "other kernels": (CONV, sized(weight=(2, 1, 3, 4), bias=2), r"an array 'weight' of shape \(2, c, 3, 3\), got"),
    "no numbers": (fn.RMSNorm(), {"weight": Odd()}, r"an array 'weight' of numbers, got Odd \(no numbers here\); convert"),
    "untied": (fn.Tied(TWO, "0.w", "2.w"), STATE, r"^Tied.*: expected equal arrays in tied places, got others for Dense\(2"),
    "no counterpart": (fn.Network(fn.Bidirectional(fn.GRU(2))), {}, r"^layer 0.1 Reversed.* PyTorch has a counterpart of"),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "state", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_a_clear_error(layer, state, message):
    with pytest.raises(fn.LayerError, match=message):
        fn.from_torch(layer, state)


def test_names_for_every_layer_with_parameters():
    message = r"names: expected 2, one for each layer with parameters \(Dense, Dense\), got 1; what stands"
    with pytest.raises(ValueError, match=message):
        fn.from_torch(TWO, STATE, names="0.")


def test_parameters_that_are_no_parameters():
    with pytest.raises(
        fn.LayerError, match=r"layer 2 Dense\(2, tanh\): expected parameters with a leaf 'b' of shape \(2\)"
    ):
        fn.to_torch(TWO, ({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, {}, {"w": jnp.ones((2, 2))}))
