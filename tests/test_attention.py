"""Attention: PyTorch's numbers, blocks against the plain form, who sees whom, masks, rotary positions, memory, messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.layers._attention import rotated, rotations

from .cases import assert_agree, params_of, thorough

KEY = jax.random.key(3)
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)


def drawn(*shape, seed=0):
    return jax.device_put(np.random.default_rng(seed).standard_normal(shape))


@functools.partial(jax.jit, static_argnums=0)
def both_ways(layer, a_in, da, mask=None):
    """(a_out, da_in) by hand and da_in by autodiff."""
    a, cache = layer.forward({}, a_in, mask=mask)
    autodiff = jax.vjp(lambda a: layer.forward({}, a, mask=mask)[0], a_in)[1](da)[0]
    return a, layer.propagate({}, cache, da), autodiff


class TestTorch:
    @pytest.mark.parametrize("block", [None, 3])
    @pytest.mark.parametrize("causal", [True, *thorough(False)])
    def test_scaled_dot_product_attention(self, causal, block):
        torch = pytest.importorskip("torch")
        x, da = drawn(3, 5, 24), drawn(3, 5, 8, seed=1)
        a, da_in, _ = both_ways(fn.Attention(2, causal, block), x, da)
        inputs = torch.tensor(np.asarray(x), requires_grad=True)
        q, k, v = (part.reshape(3, 5, 2, 4).transpose(1, 2) for part in inputs.split(8, dim=2))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out = out.transpose(1, 2).reshape(3, 5, 8)
        out.backward(torch.tensor(np.asarray(da)))
        close(a, out.detach().numpy())
        close(da_in, inputs.grad.numpy())

    @pytest.mark.parametrize("block", [2, *thorough(None)])
    def test_multihead_attention_with_lengths(self, block):
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        theirs = torch.nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float64)
        torch.nn.init.normal_(theirs.in_proj_bias)
        net = fn.Network(fn.Dense(18, fn.linear), fn.Attention(2, causal=False, block=block), fn.Dense(6, fn.linear))
        leaves = [theirs.in_proj_weight, theirs.in_proj_bias, theirs.out_proj.weight, theirs.out_proj.bias]
        w_in, b_in, w_out, b_out = (jnp.asarray(leaf.detach().numpy()) for leaf in leaves)
        params = ({"w": w_in, "b": b_in}, {}, {"w": w_out, "b": b_out})
        x, da, mask = drawn(4, 5, 6), drawn(4, 5, 6, seed=1), fn.length_mask(jnp.array([5, 3, 1, 4]), 5)
        da = jnp.where(mask[..., None], da, 0)
        inputs = torch.tensor(np.asarray(x), requires_grad=True)
        out, _ = theirs(inputs, inputs, inputs, key_padding_mask=torch.tensor(~np.asarray(mask)), need_weights=False)
        out.backward(torch.tensor(np.asarray(da)))
        a, cache = net.forward(params, x, mask=mask)
        da_in, grads = net.backward(params, cache, da)
        close(a[mask], out.detach().numpy()[mask])
        close(da_in, inputs.grad.numpy())
        ours = [grads[i][name] for i in (0, 2) for name in ("w", "b")]
        for grad, leaf in zip(ours, leaves, strict=True):
            close(4 * grad, leaf.grad.numpy())


@pytest.mark.parametrize("block", [None, 2])
def test_it_is_jaxs_own(block):
    x, mask = drawn(3, 5, 24).astype(jnp.float32), fn.length_mask(jnp.array([5, 1, 3]), 5)
    q, k, v = (part.reshape(3, 5, 2, 4) for part in jnp.split(x, 3, axis=2))
    for causal in (True, False):
        with jax.numpy_dtype_promotion("standard"):
            theirs = jax.nn.dot_product_attention(q, k, v, is_causal=causal, mask=mask[:, None, None])
        ours = fn.Attention(2, causal, block).apply({}, x, mask=mask)
        np.testing.assert_allclose(ours[mask], theirs.reshape(3, 5, 8)[mask], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, [7, 4, 1, 0]], ids=["", "masked"])
@pytest.mark.parametrize("rotary", [None, *thorough(100.0)])
@pytest.mark.parametrize("causal", [True, *thorough(False)])
@pytest.mark.parametrize("block", [3, *thorough(1, 7, 20)])
def test_blocks_are_the_plain_form(block, causal, rotary, lengths):
    x, da = drawn(4, 7, 24), drawn(4, 7, 8, seed=1)
    mask = None if lengths is None else fn.length_mask(jnp.array(lengths), 7)
    plain = both_ways(fn.Attention(2, causal, rotary=rotary), x, da, mask)
    blocks = both_ways(fn.Attention(2, causal, block, rotary), x, da, mask)
    for ours, theirs in zip(blocks, plain, strict=True):
        assert_agree(ours, theirs, 1e-13)
    for _, manual, autodiff in (plain, blocks):
        assert_agree(manual, autodiff, 1e-13)


@pytest.mark.parametrize("block", [None, 2])
def test_nothing_comes_from_the_future(block):
    layer, x = fn.Attention(1, block=block), drawn(1, 5, 9)

    @jax.jit
    def jacobian(x):
        cache = layer.forward({}, x)[1]
        return jax.vmap(lambda da: layer.propagate({}, cache, da)[0])(jnp.eye(15).reshape(15, 1, 5, 3))

    size = np.abs(jacobian(x)).sum(2).reshape(5, 3, 5).sum(1)  # of ∂a_t / ∂x_s
    assert not np.any(size[np.triu_indices(5, 1)])
    assert np.all(size[np.tril_indices(5)])


class TestMask:
    lengths = (4, 2, 0)

    @pytest.mark.parametrize("rotary", [None, *thorough(50.0)])
    @pytest.mark.parametrize("causal", [True, *thorough(False)])
    @pytest.mark.parametrize("block", [None, 3])
    def test_masked_steps_are_as_if_absent(self, block, causal, rotary):
        layer, x, da = fn.Attention(2, causal, block, rotary), drawn(3, 4, 12), drawn(3, 4, 4, seed=1)
        mask = fn.length_mask(jnp.array(self.lengths), 4)
        x, da = (jnp.where(mask[..., None], part, jnp.nan) for part in (x, da))
        a, da_in, _ = both_ways(layer, x, da, mask)
        for i, length in enumerate(self.lengths):
            assert not np.any(a[i, length:])
            assert not np.any(da_in[i, length:])
        for i, length in ((0, 4), (1, 2)):
            alone = both_ways(layer, x[i : i + 1, :length], da[i : i + 1, :length])
            assert_agree((a[i : i + 1, :length], da_in[i : i + 1, :length]), alone[:2], 1e-13)

    @pytest.mark.parametrize("block", [None, 2])
    def test_steps_masked_in_front_only_shift(self, block):
        layer, x = fn.Attention(2, block=block, rotary=10.0), drawn(2, 6, 12)
        mask = jnp.broadcast_to(jnp.arange(6) >= 2, (2, 6))
        a = layer.apply({}, x, mask=mask)
        np.testing.assert_allclose(a[:, 2:], layer.apply({}, x[:, 2:]), rtol=1e-12)

    @pytest.mark.thorough
    @pytest.mark.parametrize("block", [None, *thorough(2)])
    def test_in_a_network(self, block):
        net = fn.Network(fn.Dense(12, fn.linear), fn.Attention(2, block=block), fn.Dense(3, fn.softmax))
        params, mask = params_of(net, (5, 4)), fn.length_mask(jnp.array([5, 2, 3]), 5)
        given = {"mask": mask, "weights": mask.astype(float)}
        report = fn.compare_gradients(net, fn.log_likelihood, params, drawn(3, 5, 4), jnp.ones((3, 5), int), **given)
        assert report.ok, str(report)


class TestRotary:
    def test_scores_depend_on_the_distance_only(self):
        cos, sin = rotations(9, 6, 100.0)
        q, k = (jnp.broadcast_to(drawn(6, seed=i), (1, 9, 1, 6)) for i in (0, 1))
        scores = jnp.einsum("td,sd->ts", rotated(q, cos, sin)[0, :, 0], rotated(k, cos, sin)[0, :, 0])
        for distance in range(-8, 9):
            diagonal = np.diagonal(scores, distance)
            np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12)

    def test_a_pair_is_turned_by_its_angle(self):
        cos, sin = rotations(3, 4, 16.0)  # t and t / 4
        x = jnp.ones((1, 3, 1, 1)) * jnp.array([1.0, 2.0, 0.0, 0.0])
        turned = [np.cos(2), 2 * np.cos(0.5), np.sin(2), 2 * np.sin(0.5)]
        np.testing.assert_allclose(rotated(x, cos, sin)[0, 2, 0], turned, rtol=1e-12)

    def test_turning_back(self):
        cos, sin = rotations(5, 8, 10_000.0)
        x = drawn(2, 5, 3, 8)
        np.testing.assert_allclose(rotated(rotated(x, cos, sin), cos, -sin), x, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", *thorough("float32", "bfloat16")])
@pytest.mark.parametrize("block", [None, 2])
def test_large_scores_stay_finite(block, dtype):
    x = (200 * drawn(2, 5, 12)).astype(dtype)
    a, da_in, _ = both_ways(fn.Attention(2, block=block), x, jnp.ones((2, 5, 4), dtype))
    assert a.dtype == da_in.dtype == dtype
    assert np.all(np.isfinite(a.astype(float)))
    assert np.all(np.isfinite(da_in.astype(float)))


def temporaries(layer, steps):
    x = jax.ShapeDtypeStruct((2, steps, 96), jnp.float32)
    da = jax.ShapeDtypeStruct((2, steps, 32), jnp.float32)

    @jax.jit
    def by_hand(x, da):
        a, cache = layer.forward({}, x)
        return a, layer.propagate({}, cache, da)

    @jax.jit
    def autodiff(x, da):
        a, pull_back = jax.vjp(lambda x: layer.forward({}, x)[0], x)
        return a, pull_back(da)

    return tuple(f.lower(x, da).compile().memory_analysis().temp_size_in_bytes for f in (by_hand, autodiff))


def test_the_forward_pass_stores_its_scores_once():
    x = jax.ShapeDtypeStruct((2, 512, 96), "float32")
    program = jax.jit(lambda x: fn.Attention(4).apply({}, x)).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes < 1.3 * 4 * 2 * 4 * 512**2


@pytest.mark.thorough
def test_temporaries():
    plain, plain_autodiff = temporaries(fn.Attention(4), 512)
    blocks, _ = temporaries(fn.Attention(4, block=64), 512)
    assert plain <= 0.8 * plain_autodiff
    assert blocks <= 0.15 * plain_autodiff
    twice, _ = temporaries(fn.Attention(4, block=64), 1024)
    assert twice <= 2.1 * blocks  # with T, not with T²


class TestPosition:
    def test_shorter_inputs_read_the_first_rows(self):
        layer = fn.Position()
        params, x = params_of(layer, (6, 3)), drawn(4, 2, 3)
        a, cache = layer.forward(params, x)
        np.testing.assert_array_equal(a, x + params["w"][None, :2])
        da_in, grads = layer.backward(params, cache, jnp.ones_like(x))
        np.testing.assert_array_equal(da_in, np.ones((4, 2, 3)))
        np.testing.assert_array_equal(grads["w"], np.arange(6)[:, None] < [2, 2, 2])

    def test_its_table_starts_small(self):
        w = fn.Position().init(KEY, (200, 100))["w"]
        # 20,000 draws: the standard deviation's relative standard error is 1/√40000 = 0.5 %; 5 of them.
        np.testing.assert_allclose(jnp.std(w), 0.02, rtol=0.025)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fn.Attention(), r"Attention: missing a required argument: 'heads'.*as in fn\.Attention\(8\)"),
        (lambda: fn.Attention(0), r"Attention\(0\): expected a positive number of heads, got 0; give heads as an integer"),
        (lambda: fn.Attention(2, block=0), r"expected a block of a positive number of steps, or None, got 0; give block"),
        (lambda: fn.Attention(2, 128), r"Attention\(2, causal=128\): expected causal to be True or False, got 128; True"),
        (lambda: fn.Attention(2, rotary=True), r"expected a positive number rotary, or None, got True; it is the base"),
        (lambda: fn.Attention(2, rotary=-1.0), r"expected a positive number rotary, or None, got -1\.0"),
        (
            lambda: fn.Attention(4).init(KEY, (5, 18)),
            r"Attention\(4\): expected heads that divide n, got n = 6 and 4 heads; each head takes n / heads features",
        ),
        (
            lambda: fn.Attention(2, rotary=10.0).init(KEY, (5, 18)),
            r"expected an even number of features in a head, got 3; rotary turns pairs of them",
        ),
        (
            lambda: fn.Attention(2).apply({}, jnp.ones((2, 5, 16))),
            r"expected inputs of shape \(m, T, 3n\) with T ≥ 1, got \(2, 5, 16\); put fn\.Dense\(3 \* n, fn\.linear\) before",
        ),
        (lambda: fn.Attention(2).apply({}, jnp.ones((2, 12))), r"expected inputs of shape \(m, T, 3n\) .*got \(2, 12\)"),
        (lambda: fn.Attention(2).init(KEY, 12), r"expected inputs of shape \(m, T, 3n\) with T ≥ 1, got 12"),
        (
            lambda: fn.Attention(2).apply({}, jnp.ones((2, 5, 12)), mask=jnp.ones((2, 4), bool)),
            r"expected a mask of shape \(2, 5\), got \(2, 4\); it says which steps",
        ),
        (lambda: fn.Position().init(KEY, (5,)), r"Position\(\): expected an input shape \(T, n\), got \(5,\); give the"),
        (
            lambda: fn.Position().apply({"w": jnp.ones((4, 3))}, jnp.ones((2, 5, 3))),
            r"Position\(\): expected at most 4 steps, the rows of w, got 5; initialise with the shape of the longest",
        ),
        (
            lambda: fn.Position().apply({"w": jnp.ones((4, 3))}, jnp.ones((4, 3))),
            r"expected inputs of shape \(m, T, 3\), got \(4, 3\); give sequences \(m, T, n\); x\[None\] for a single one",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_a_clear_error(build, message):
    with pytest.raises((TypeError, fn.LayerError), match=message):
        build()
