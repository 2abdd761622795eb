"""Recurrent layers against autodiff of a plain scan, sequences alone, PyTorch, and what they promise about memory."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnnet as fn
from fnnet.layers import forward_in_time, gru_step, gru_step_error, lstm_step, lstm_step_error, through_time
from fnnet.layers._sequence import Reversed

from .cases import assert_agree, normal, params_of, thorough

KEY = jax.random.key(3)
CELLS = {"RNN": fn.RNN, "LSTM": fn.LSTM, "GRU": fn.GRU}


def plain_step(kind, activation, params, x, states):
    """A step as textbooks write it, gate by gate."""
    h = states[0]
    if kind == "RNN":
        return (activation(x @ params["w_x"].T + h @ params["w_h"].T + params["b"][None]),)
    split = functools.partial(jnp.split, indices_or_sections=params["w_h"].shape[0] // h.shape[1])
    if kind == "LSTM":
        pairs = zip(split(params["w_x"]), split(params["w_h"]), split(params["b"]), strict=True)
        i, f, g, o = (x @ w.T + h @ u.T + b[None] for w, u, b in pairs)
        c = jax.nn.sigmoid(f) * states[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (
        (x @ w.T + b[None] for w, b in zip(split(params["w_x"]), split(params["b"]), strict=True)),
        (h @ u.T for u in split(params["w_h"])),
    )
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n + params["b_h"][None]))
    return ((1 - z) * n + z * h,)


def plain(cell, params, x, mask=None, start=None):
    """A plain scan: (h of every step, the last states)."""
    kind = type(cell).__name__
    zeros = jnp.zeros((x.shape[0], cell.n), x.dtype)
    start = ((zeros,) * (2 if kind == "LSTM" else 1)) if start is None else start
    mask = jnp.ones(x.shape[:2], bool) if mask is None else mask

    def step(states, now):
        x, valid, t = now
        before = states
        if cell.truncate:
            cut = (t % cell.truncate == 0) & (t > 0)
            before = tuple(jnp.where(cut, jax.lax.stop_gradient(s), s) for s in states)
        new = plain_step(kind, getattr(cell, "activation", None), params, x, before)
        new = tuple(jnp.where(valid[:, None], a, b) for a, b in zip(new, before, strict=True))
        return new, new[0]

    last, h = jax.lax.scan(step, start, (jnp.swapaxes(x, 0, 1), mask.T, jnp.arange(x.shape[1])))
    return jnp.swapaxes(h, 0, 1), last


@st.composite
def settings_of(draw):
    kind = draw(st.sampled_from(sorted(CELLS)))
    fields = {"truncate": draw(st.none() | st.integers(1, 12)), "recompute": draw(st.booleans())}
    if kind == "RNN":
        fields["activation"] = draw(st.sampled_from([fn.tanh, fn.sigmoid, fn.softplus, fn.linear]))
    cell = CELLS[kind](draw(st.integers(1, 12)), **fields)
    m, steps, n_in = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(1, 6))
    masked = draw(st.sampled_from(["none", "lengths", "any"]))
    return cell, m, steps, n_in, masked, draw(st.booleans()), draw(st.integers(0, 2**20))


@functools.partial(jax.jit, static_argnums=0)
def equations_and_references(cell, params, x, mask, start, da):
    h, cache = cell.forward(params, x, mask=mask, state=start)
    delta = cell.error(params, cache, da)
    manual = (h, cell.final_state(cache)), cell.backward(params, cache, da), cell.gradients(params, cache, delta)
    ones = jnp.zeros((x.shape[0], x.shape[1], params["w_h"].shape[0]), x.dtype)

    def with_probe(probe):
        return cell.forward(params, x, mask=mask, probe=probe, state=start)[0]

    (h, last), pull = jax.vjp(lambda p, x: plain(cell, p, x, mask, start), params, x)
    d_params, dx = pull((da, jax.tree.map(jnp.zeros_like, last)))
    d_params = jax.tree.map(lambda g: g / x.shape[0], d_params)
    autodiff = (h, last), (dx, d_params), d_params
    ordinary, of_probe = jax.vjp(with_probe, ones)
    return (*manual, delta, manual[0][0]), (*autodiff, of_probe(da)[0], ordinary)


@pytest.mark.thorough
@given(settings_of())
def test_cells_against_autodiff_of_a_plain_scan(drawn):
    cell, m, steps, n_in, masked, started, seed = drawn
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: cell.init(KEY, (steps, n_in)))
    params = jax.tree.map(lambda p: rng.normal(size=p.shape), shapes)
    x, da = (rng.normal(size=(m, steps, n)) for n in (n_in, cell.n))
    mask = None
    if masked != "none":
        mask = rng.random((m, steps)) < 0.7
        mask = np.asarray(fn.length_mask(mask.sum(1), steps)) if masked == "lengths" else mask
    start = tuple(rng.normal(size=(m, cell.n)) for _ in range(cell.n_states)) if started else None
    manual, autodiff = equations_and_references(cell, params, x, mask, start, da)
    silent = mask is not None and not np.any(mask)
    for ours, theirs in zip(manual, autodiff, strict=True):
        assert_agree(ours, theirs, 1e-10, zero=silent or n_in == 0 or _is_zero(theirs), scale=1.0)


def _is_zero(tree):
    """h at the start is zero for a recurrent weight that only one step reads, and masked sequences have no error."""
    return any(not np.any(leaf) for leaf in jax.tree.leaves(tree))


class TestMasks:
    @pytest.mark.thorough
    @pytest.mark.parametrize("every", [True, *thorough(False)], ids=["every step", "the last step"])
    @pytest.mark.parametrize("kind", ["GRU", *thorough("LSTM", "RNN")])
    def test_masked_steps_change_nothing(self, kind, every):
        """A padded batch against each sequence alone: outputs, errors, gradients; of a cost on every step or on the last."""
        lengths, steps = [5, 2, 4], 5
        x = normal((3, steps, 2))
        mask = fn.length_mask(jnp.array(lengths), steps)
        y = jax.random.uniform(jax.random.key(1), (3, steps, 2))
        spoilt = jnp.where(mask[..., None], x, jnp.nan)
        layers = [CELLS[kind](3), CELLS[kind](3), *([] if every else [fn.LastStep()]), fn.Dense(2, fn.sigmoid)]
        net, extra = fn.Network(*layers), {"weights": mask.astype(float)} if every else {}
        params = params_of(net, (steps, 2))
        targets = y if every else y[:, 0]
        padded = fn.backprop(net, fn.cross_entropy, params, spoilt, targets, mask=mask, **extra)
        cost, grads = fn.value_and_grad(net, fn.cross_entropy)(params, spoilt, targets, mask=mask, **extra)
        alone = []
        for i, length in enumerate(lengths):
            own = targets[i : i + 1, :length] if every else targets[i : i + 1]
            alone.append(fn.backprop(net, fn.cross_entropy, params, x[i : i + 1, :length], own))
            a = net.apply(params, spoilt, mask=mask)[i]
            ours = net.apply(params, x[i : i + 1, :length])[0]
            np.testing.assert_allclose(a[:length] if every else a, ours, rtol=1e-12)
            for padded_delta, delta in zip(padded.errors[:2], alone[-1].errors[:2], strict=True):
                np.testing.assert_allclose(padded_delta[i, :length], delta[0], rtol=1e-9, atol=1e-15)
                assert not np.any(padded_delta[i, length:])
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(bp.gradients for bp in alone))
        assert_agree(padded.gradients, mean, 1e-12)
        assert_agree(grads, mean, 1e-12)
        np.testing.assert_allclose([padded.cost, cost], float(sum(bp.cost for bp in alone)) / 3, rtol=1e-12)

    def test_length_mask(self):
        for lengths in ([0, 2, 3], np.array([0, 2, 3], np.uint8)):
            np.testing.assert_array_equal(fn.length_mask(lengths, 3), [[False] * 3, [True, True, False], [True] * 3])
        with pytest.raises(ValueError, match=r"length_mask: expected integer lengths of shape \(m,\), got float64"):
            fn.length_mask(jnp.ones(3), 3)

    def test_a_mask_as_a_list(self):
        net = fn.Network(fn.GRU(3), fn.LastStep())
        params, x = params_of(net, (2, 2)), normal((2, 2, 2))
        mask, y = [[1, 1], [1, 0]], jnp.ones((2, 3))
        a = net.apply(params, x, mask=jnp.array(mask))
        np.testing.assert_array_equal(net.apply(params, x, mask=mask), a)
        np.testing.assert_array_equal(fn.as_function(net)(params, x, mask=mask), a)
        cost, _ = fn.value_and_grad(net, fn.quadratic)(params, x, y, mask=mask)
        np.testing.assert_allclose(cost, jnp.sum((a - y) ** 2) / 4, rtol=1e-12)

    def test_a_mask_of_another_shape(self):
        net = fn.Network(fn.LSTM(3), fn.LastStep())
        params = params_of(net, (5, 2))
        with pytest.raises(fn.LayerError, match=r"layer 0 LSTM\(3\): expected a mask of shape \(4, 5\), got \(4, 6\)"):
            net.apply(params, jnp.ones((4, 5, 2)), mask=jnp.ones((4, 6)))


class TestSteps:
    def test_steps_and_their_errors(self):
        """The step equations by themselves, against autodiff of the step."""
        keys = jax.random.split(KEY, 6)
        z, c, dh, dc = (jax.random.normal(k, (3, n)) for k, n in zip(keys, (16, 4, 4, 4), strict=False))
        gates, _, new = lstm_step(z, c)
        _, pull = jax.vjp(lambda z, c: lstm_step(z, c)[1:], z, c)
        assert_agree(lstm_step_error(gates, c, new, dh, dc), pull((dh, dc)), 1e-12)
        z, q = (jax.random.normal(k, (3, 12)) for k in keys[4:])
        gates, _ = gru_step(z, q, c)
        _, pull = jax.vjp(lambda z, q, h: gru_step(z, q, h)[1], z, q, c)
        delta, of_q, back = gru_step_error(gates, q[:, 8:], c, dh)
        assert_agree((delta, jnp.concatenate([delta[:, :8], of_q], 1), back), pull(dh), 1e-12)


@pytest.mark.parametrize("kind", ["LSTM", *thorough("RNN", "GRU")])
def test_feedback_is_not_recomputed_with(kind):
    """The forward pass that is run again is that of the parameters, whatever BP2's products use."""
    gradients = []
    for recompute in (False, True):
        net = fn.Network(CELLS[kind](3, recompute=recompute), fn.LastStep(), fn.Dense(2, fn.softmax))
        params, feedback = (params_of(net, (5, 2), seed=2 + i) for i in (0, 1))
        x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 2)))
        gradients.append(fn.backprop(net, fn.log_likelihood, params, x, jnp.arange(4) % 2, feedback=feedback).gradients)
    assert_agree(*gradients, 1e-12)


class TestStates:
    @pytest.mark.parametrize("kind", ["LSTM", *thorough("RNN", "GRU")])
    @pytest.mark.parametrize("recompute", [False, *thorough(True)])
    def test_pieces_equal_the_whole(self, kind, recompute):
        cell = CELLS[kind](3, recompute=recompute)
        net = fn.Network(cell, fn.Dropout(0.5), cell, fn.Dense(2, fn.tanh))
        params, x = params_of(net, (7, 2)), normal((4, 7, 2))
        first, state = net.apply_from(params, x[:, :3])
        rest, end = net.apply_from(params, x[:, 3:], state)
        np.testing.assert_allclose(jnp.concatenate([first, rest], 1), net.apply(params, x), rtol=1e-12)
        assert_agree(end, net.apply_from(params, x)[1], 1e-12)
        assert [s is None for s in end] == [False, True, False, True]

    @pytest.mark.thorough
    def test_a_given_state_counts_in_cost_and_gradients(self):
        net = fn.Network(fn.GRU(3), fn.Dense(2, fn.linear))
        params, x, y = params_of(net, (4, 2)), normal((5, 4, 2)), jnp.ones((5, 4, 2))
        _, state = net.apply_from(params, x)
        manual = fn.value_and_grad(net, fn.quadratic)(params, x, y, state=state)
        bp = fn.backprop(net, fn.quadratic, params, x, y, state=state)
        reference = jax.value_and_grad(fn.objective(net, fn.quadratic))(params, x, y, state=state)
        assert_agree(manual, reference, 1e-12)
        assert_agree((bp.cost, bp.gradients), reference, 1e-12)
        in_chunks = fn.value_and_grad(net, fn.quadratic, micro_batch=2)(params, x, y, state=state)
        assert_agree(in_chunks, reference, 1e-12)
        assert float(manual[0]) != float(fn.value_and_grad(net, fn.quadratic)(params, x, y)[0])

    @pytest.mark.thorough
    def test_windows_add_up_to_the_truncated_gradient(self):
        """With the parameters held, windows of k steps give what truncate=k gives on the whole sequence."""
        x, y = normal((3, 8, 2)), normal((3, 8, 2), seed=1)
        net = fn.Network(fn.LSTM(3), fn.Dense(2, fn.linear))
        params = params_of(net, (8, 2))
        windowed, state = fn.value_and_grad(net, fn.quadratic, carry=True), None
        costs, total = [], None
        for start, stop in ((0, 3), (3, 6), (6, 8)):
            (cost, state), grads = windowed(params, x[:, start:stop], y[:, start:stop], state=state)
            costs.append(cost)
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        cut = fn.Network(fn.LSTM(3, truncate=3), fn.Dense(2, fn.linear))
        assert_agree((sum(costs), total), fn.value_and_grad(cut, fn.quadratic)(params, x, y), 1e-12)
        (auto_cost, auto_state), auto = jax.value_and_grad(fn.objective(net, fn.quadratic, carry=True), has_aux=True)(
            params, x[:, 6:], y[:, 6:], state=net.apply_from(params, x[:, :6])[1]
        )
        assert_agree((costs[-1], state, grads), (auto_cost, auto_state, auto), 1e-12)

    @pytest.mark.thorough
    def test_an_encoder_and_a_decoder_by_hand(self):
        """`through_time` from ∂C/∂(the last states) to ∂C/∂(the first): an error that enters and leaves by the states."""
        cell, other = fn.LSTM(3), fn.LSTM(3)
        p, q = params_of(cell, (4, 2)), other.init(jax.random.key(1), (5, 1))
        x, u = normal((2, 4, 2)), normal((2, 5, 1))

        def cost(p, q):
            _, kept = forward_in_time(cell, p, x)
            return jnp.sum(forward_in_time(other, q, u, start=kept.last)[0] ** 3)

        _, kept = forward_in_time(cell, p, x)
        h, own = forward_in_time(other, q, u, start=kept.last)
        delta, _, d_states = through_time(other, q, own, 3 * h**2)
        above, _, _ = through_time(cell, p, kept, jnp.zeros((2, 4, 3)), d_states)
        ours = [2 * cell.sums(k.x, k.before[0], d, ())["w_h"] for k, d in ((kept, above), (own, delta))]
        theirs = jax.grad(cost, (0, 1))(p, q)
        assert_agree(ours, [theirs[0]["w_h"], theirs[1]["w_h"]], 1e-12)

    def test_states_that_do_not_fit(self):
        net = fn.Network(fn.LSTM(3), fn.Dense(2, fn.linear))
        params, x = params_of(net, (4, 2)), jnp.ones((5, 4, 2))
        with pytest.raises(
            fn.LayerError, match=r"layer 0 LSTM\(3\): expected a state of 2 arrays of shape \(5, 3\), in a tuple"
        ):
            net.apply_from(params, x, ((jnp.ones((5, 3)),), None))
        with pytest.raises(fn.LayerError, match="expected a state with 2 entries, one per layer, got 1 entries"):
            net.apply_from(params, x, (None,))
        both = fn.Network(fn.Bidirectional(fn.RNN(3)))
        with pytest.raises(
            fn.LayerError, match=r"layer 0 Bidirectional\(RNN\(3\)\): expected a layer whose state can be carried"
        ):
            both.apply_from(params_of(both, (4, 2)), x)

    def test_a_state_for_another_batch_or_layer(self):
        net = fn.Network(fn.LSTM(3), fn.Dense(2, fn.linear))
        params, x, y = params_of(net, (4, 2)), jnp.ones((5, 4, 2)), jnp.ones((5, 4, 2))
        state = ((jnp.ones((5, 3)), jnp.ones((5, 3))), None)
        gradient = fn.value_and_grad(net, fn.quadratic, micro_batch=2)
        larger = jax.tree.map(lambda s: jnp.ones((7, 3)), state)
        with pytest.raises(
            ValueError, match=r"state: expected arrays with 5 examples on axis 0, as in x, got shape \(7, 3\)"
        ):
            gradient(params, x, y, state=larger)
        with pytest.raises(
            fn.LayerError, match=r"layer 1 Dense\(2, linear\): expected no state, since it carries none, got one"
        ):
            gradient(params, x, y, state=state[::-1])
        with pytest.raises(fn.LayerError, match=r"in a tuple, got \[\(\d, 3\)\], in none"):
            gradient(params, x, y, state=(jnp.ones((5, 3)), None))
        both = fn.Network(fn.Bidirectional(fn.RNN(3)), fn.Dense(2, fn.linear))
        with pytest.raises(fn.LayerError, match=r"layer 0 Bidirectional\(RNN\(3\)\): expected no state"):
            fn.backprop(both, fn.quadratic, params_of(both, (4, 2)), x, y, state=(state[0][:1], None))

    @pytest.mark.thorough
    @pytest.mark.parametrize("cell", [fn.LSTM(3), *thorough(fn.GRU(3), fn.LSTM(3, recompute=True))], ids=repr)
    def test_a_layer_above_in_another_dtype(self, cell):
        net = fn.Network(cell, fn.Dense(2, fn.linear))
        params = params_of(net, (4, 2))
        params = (jax.tree.map(lambda p: p.astype(jnp.float32), params[0]), params[1])
        x, y = jnp.ones((5, 4, 2), jnp.float32), jnp.ones((5, 4, 2))
        with jax.numpy_dtype_promotion("standard"):
            _, ours = fn.value_and_grad(net, fn.quadratic)(params, x, y)
            theirs = jax.grad(fn.objective(net, fn.quadratic))(params, x, y)
            assert_agree((ours, fn.backprop(net, fn.quadratic, params, x, y).gradients), (theirs, theirs), 1e-5)


class TestTruncation:
    @pytest.mark.thorough
    @pytest.mark.parametrize("kind", ["LSTM", *thorough("RNN", "GRU")])
    def test_truncated_is_full_less_the_listed_terms(self, kind):
        """∂C/∂h_t under truncation is the full one less ∂C_τ/∂h_t of every τ beyond t's window."""
        k, steps = 3, 8
        net = fn.Network(CELLS[kind](4), fn.Dense(2, fn.softmax))
        params, x = params_of(net, (steps, 2)), normal((3, steps, 2))
        y = jax.random.randint(KEY, (3, steps), 0, 2)
        credit = fn.diagnostics.credit(net, fn.log_likelihood, params, x, y)
        assert credit.shape == (3, steps, steps, 4)
        t = np.arange(steps)
        beyond = (t[:, None] // k > t // k)[None, :, :, None].astype(float)
        assert bool(jnp.any(credit * beyond))

        def on_states(cell):
            """∂C/∂h_t by autodiff: of a shift that is added to the state after step t and to the output there."""

            def cost(shift):
                states, outputs = (jnp.zeros((3, 4)),) * cell.n_states, []
                for i in range(steps):
                    if cell.truncate and i and i % cell.truncate == 0:
                        states = jax.lax.stop_gradient(states)
                    states = plain_step(kind, fn.tanh, params[0], x[:, i], states)
                    states = (states[0] + shift[:, i], *states[1:])
                    outputs.append(states[0])
                z = jnp.stack(outputs, 1) @ params[1]["w"].T + params[1]["b"][None, None]
                return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], -1))

            return jax.grad(cost)(jnp.zeros((3, steps, 4)))

        assert_agree(jnp.sum(credit, 1), on_states(CELLS[kind](4)), 1e-12)
        assert_agree(jnp.sum(credit * (1 - beyond), 1), on_states(CELLS[kind](4, truncate=k)), 1e-12)

    @pytest.mark.thorough
    def test_credit_map(self):
        net = fn.Network(fn.Embedding(5, 3), fn.GRU(4), fn.RNN(3), fn.Dense(2, fn.linear))
        x, y = jax.random.randint(KEY, (2, 6), 0, 5), jnp.ones((2, 6, 2))
        params, mask = params_of(net, (6,)), fn.length_mask([6, 4], 6)
        about = {"layer": 1, "mask": mask, "weights": mask.astype(float)}
        full = fn.diagnostics.credit(net, fn.quadratic, params, x, y, **about)
        norms = fn.diagnostics.credit_map(net, fn.quadratic, params, x, y, **about)
        np.testing.assert_allclose(norms, jnp.linalg.norm(full, axis=-1), rtol=1e-12)
        assert not np.any(np.triu(norms, 1))
        assert not np.any(norms[1, 4:])
        last = fn.Network(fn.LSTM(3), fn.LastStep(), fn.Dense(2, fn.softmax))
        params = params_of(last, (5, 2))
        assert fn.diagnostics.credit_map(
            last, fn.log_likelihood, params, jnp.ones((4, 5, 2)), jnp.zeros(4, int)
        ).shape == (4, 1, 5)
        np.testing.assert_array_equal(
            *(
                fn.diagnostics.credit_map(last, fn.quadratic, params, jnp.ones((4, 5, 2)), jnp.ones((4, 2)), layer=i)
                for i in (0, -3)
            )
        )
        with pytest.raises(ValueError, match=r"credit: expected layer=0 to be .* of a network, got LSTM\(3\)$"):
            fn.diagnostics.credit(last[0], fn.quadratic, params[0], jnp.ones((4, 5, 2)), jnp.ones((4, 5, 3)))
        with pytest.raises(
            ValueError, match=r"credit: expected layer=1 to be an RNN, LSTM or GRU of a network, got LastStep"
        ):
            fn.diagnostics.credit(last, fn.quadratic, params, jnp.ones((4, 5, 2)), jnp.ones((4, 2)), layer=1)


@pytest.mark.parametrize("wrap", [fn.Recompute, *thorough(lambda net: net)])
def test_credit_of_a_branch(wrap):
    """A branch beside an LSTM shifts the output: for the quadratic cost as a shift of the targets does."""
    branches = fn.Parallel(fn.LSTM(3), fn.Dense(3, fn.tanh))
    params, x, y = params_of(branches, (4, 2)), normal((3, 4, 2)), normal((3, 4, 3))
    credit = fn.diagnostics.credit(wrap(branches), fn.quadratic, params, x, y)
    shifted = y - branches.layers[1].apply(params[1], x)
    alone = fn.diagnostics.credit(fn.Network(fn.LSTM(3)), fn.quadratic, params[:1], x, shifted)
    assert_agree(credit, alone, 1e-12)


class TestFitByWindows:
    def data(self):
        x = normal((4, 10, 2))
        return x, jnp.cumsum(x, 1) / 3

    @pytest.mark.thorough
    def test_it_is_the_loop_over_windows(self):
        net, (x, y) = fn.Network(fn.GRU(3), fn.Dense(2, fn.linear)), self.data()
        params = params_of(net, (10, 2))
        about = {"key": KEY, "epochs": 2, "batch_size": 4, "optimizer": fn.adam(0.01), "progress": False}
        fitted, history = fn.fit(net, fn.quadratic, params, (x, y), window=4, monitor_training=False, **about)
        by_hand, opt = params, fn.adam(0.01)
        state, gradient, costs = opt.init(params), fn.value_and_grad(net, fn.quadratic, carry=True), []
        for _ in range(2):
            carried, cost = None, 0.0
            for start in (0, 4, 8):
                part = slice(start, start + 4)
                (value, carried), grads = gradient(by_hand, x[:, part], y[:, part], state=carried)
                updates, state = opt.update(grads, state, by_hand)
                by_hand, cost = fn.apply_updates(by_hand, updates), cost + float(value)
            costs.append(cost)
        assert_agree(fitted, by_hand, 1e-9)
        np.testing.assert_allclose(history.cost, costs, rtol=1e-9)
        auto = jax.value_and_grad(fn.objective(net, fn.quadratic, carry=True), has_aux=True)
        same, _ = fn.fit(net, fn.quadratic, params, (x, y), window=4, gradient=auto, monitor_training=False, **about)
        assert_agree(same, fitted, 1e-9)

    @pytest.mark.thorough
    def test_masks_and_resuming(self):
        net, (x, y) = fn.Network(fn.LSTM(3), fn.Dropout(0.2), fn.Dense(2, fn.linear)), self.data()
        params, mask = params_of(net, (10, 2)), fn.length_mask([10, 7, 3, 9], 10)
        data = x, y, {"mask": mask, "weights": mask.astype(float)}
        about = {"key": KEY, "batch_size": 3, "optimizer": fn.sgd(0.01), "window": 4, "progress": False}
        whole, history = fn.fit(net, fn.quadratic, params, data, epochs=3, **about)
        _, half = fn.fit(net, fn.quadratic, params, data, epochs=1, **about)
        resumed, more = fn.fit(net, fn.quadratic, params, data, epochs=3, resume=half.state, **about)
        for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(more.cost, history.cost)
        assert history.cost[-1] < history.cost[0]

    @pytest.mark.thorough
    def test_a_window_longer_than_the_sequences(self):
        net, (x, y) = fn.Network(fn.GRU(3), fn.Dense(2, fn.linear)), self.data()
        params = params_of(net, (10, 2))
        about = {"key": KEY, "epochs": 1, "batch_size": 4, "optimizer": fn.sgd(0.1), "progress": False}
        longer, _ = fn.fit(net, fn.quadratic, params, (x, y), window=17, **about)
        assert_agree(longer, fn.fit(net, fn.quadratic, params, (x, y), **about)[0], 1e-9)

    def test_windows_that_do_not_fit(self):
        net, (x, y) = fn.Network(fn.GRU(3), fn.Dense(2, fn.linear)), self.data()
        params = params_of(net, (10, 2))
        about = {"key": KEY, "epochs": 1, "batch_size": 2, "optimizer": fn.sgd(0.1), "progress": False}
        with pytest.raises(ValueError, match="fit: expected window to be an integer of at least 1, got 0"):
            fn.fit(net, fn.quadratic, params, (x, y), window=0, **about)
        last = fn.Network(fn.GRU(3), fn.LastStep())
        with pytest.raises(ValueError, match=r"fit: expected x and y with as many steps on axis 1 for window=4"):
            fn.fit(last, fn.quadratic, (params[0], {}), (x, jnp.ones((4, 3))), window=4, **about)
        flat = fn.Network(fn.Dense(2, fn.linear))
        with pytest.raises(ValueError, match="fit: expected a network with a state to carry for window=4"):
            fn.fit(flat, fn.quadratic, params_of(flat, (10, 2)), (x, y), window=4, **about)


class TestTorch:
    @pytest.mark.parametrize("kind", CELLS)
    def test_outputs_and_gradients_are_pytorch_s(self, kind):
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        theirs = getattr(torch.nn, kind)(3, 4, batch_first=True, dtype=torch.float64)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        arrays = [getattr(theirs, name).detach().numpy() for name in names]
        cell = CELLS[kind](4)
        params = fn.from_torch(cell, *arrays)
        x, da = np.asarray(normal((5, 6, 3))), np.asarray(normal((5, 6, 4)))
        inputs = torch.tensor(x, requires_grad=True)
        h, _ = theirs(inputs)
        h.backward(torch.tensor(da))
        ours, cache = cell.forward(params, jnp.asarray(x))
        da_in, grads = cell.backward(params, cache, jnp.asarray(da))
        np.testing.assert_allclose(ours, h.detach().numpy(), rtol=1e-10)
        assert inputs.grad is not None
        np.testing.assert_allclose(da_in, inputs.grad.numpy(), rtol=1e-9, atol=1e-12)
        sums = {name: 5 * np.asarray(g) for name, g in grads.items()}
        wanted = [getattr(theirs, name).grad.numpy() for name in names]
        np.testing.assert_allclose(sums["w_x"], wanted[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(sums["w_h"], wanted[1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(sums["b"], wanted[2], rtol=1e-9, atol=1e-12)
        if kind == "GRU":
            np.testing.assert_allclose(sums["b_h"], wanted[3][8:], rtol=1e-9, atol=1e-12)
        back = fn.to_torch(cell, params)
        theirs.load_state_dict({name: torch.tensor(np.asarray(a)) for name, a in back.items()})
        np.testing.assert_allclose(theirs(inputs)[0].detach().numpy(), ours, rtol=1e-10)

    @pytest.mark.parametrize("kind", ["GRU", *thorough("RNN", "LSTM")])
    def test_there_and_back(self, kind):
        cell = CELLS[kind](4)
        params = jax.tree.map(lambda p: p + 0.5, params_of(cell, (6, 3)))
        arrays = fn.to_torch(cell, params)
        assert list(arrays) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
        assert_agree(fn.from_torch(cell, *arrays.values()), params, 1e-15)
        assert_agree(fn.from_torch(cell, arrays), params, 1e-15)
        without = fn.from_torch(cell, arrays["weight_ih_l0"], arrays["weight_hh_l0"])
        assert not np.any(without["b"])
        assert jax.tree.structure(without) == jax.tree.structure(params)

    def test_arrays_of_other_shapes(self):
        cell = fn.LSTM(4)
        for arrays, leaf in (
            ((jnp.ones((16, 3)), jnp.ones((12, 4))), "weight_hh_l0"),
            ((jnp.ones(16), jnp.ones((16, 4))), "weight_ih_l0"),
        ):
            with pytest.raises(fn.LayerError, match=rf"LSTM\(4\): expected an array '{leaf}' of shape \(16, "):
                fn.from_torch(cell, *arrays)
        with pytest.raises(fn.LayerError, match="expected parameters with a leaf 'w_x'"):
            fn.to_torch(cell, {})
        whole = fn.from_torch(fn.RNN(2), [[1, 2], [3, 4]], [[1, 0], [0, 1]])
        assert {leaf.dtype for leaf in whole.values()} == {jnp.dtype(float)}


class TestEmbedding:
    def test_rows_and_their_gradient(self):
        layer = fn.Embedding(4, 3)
        params = params_of(layer, (2,))
        tokens = jnp.array([[1, 1], [3, 1], [0, 3]], jnp.uint8)
        a, cache = layer.forward(params, tokens)
        np.testing.assert_array_equal(a, params["w"][tokens])
        delta = normal(a.shape)
        grads = layer.gradients(params, cache, delta)["w"]
        np.testing.assert_allclose(grads[1], (delta[0, 0] + delta[0, 1] + delta[1, 1]) / 3, rtol=1e-12)
        assert not np.any(grads[2])
        assert layer.propagate(params, cache, delta) is None

    def test_a_token_outside_is_nan(self):
        layer = fn.Embedding(4, 3)
        params = params_of(layer, (2,))
        a = layer.apply(params, jnp.array([[0, 4], [-1, 3]]))
        np.testing.assert_array_equal(np.isnan(a).all(-1), [[False, True], [True, False]])
        grads = layer.gradients(params, jnp.array([[0, 4], [-1, 3]]), jnp.ones((2, 2, 3)))["w"]
        np.testing.assert_array_equal(grads[:, 0], [0.5, 0, 0, 0.5])

    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int64"])
    def test_tokens_of_any_integer_type(self, dtype):
        layer = fn.Embedding(300, 2)
        params = params_of(layer, (2,))
        tokens = jnp.array([[0, 100]], dtype)
        a, cache = layer.forward(params, tokens)
        np.testing.assert_array_equal(a, params["w"][jnp.array([[0, 100]])])
        assert int(jnp.sum(layer.gradients(params, cache, jnp.ones(a.shape))["w"])) == 4

    @pytest.mark.thorough
    def test_it_trains_and_is_audited(self):
        net = fn.Network(fn.Embedding(6, 4), fn.LSTM(3), fn.LastStep(), fn.Dense(2, fn.softmax))
        x = jax.random.randint(KEY, (8, 5), 0, 6)
        y, params = (jnp.sum(x == 2, 1) > 0).astype(int), params_of(net, (5,))
        assert fn.compare_gradients(net, fn.log_likelihood, params, x, y).ok
        about = {"key": KEY, "epochs": 30, "batch_size": 4, "optimizer": fn.adam(0.05), "progress": False}
        _, history = fn.fit(net, fn.log_likelihood, params, (x, y), **about)
        assert history.accuracy is not None
        assert history.accuracy[-1] == 1

    def test_inputs_that_are_no_tokens(self):
        layer = fn.Embedding(4, 3)
        with pytest.raises(
            fn.LayerError, match=r"Embedding\(4, 3\): expected integer inputs, got float64; give tokens as integers"
        ):
            layer.apply(params_of(layer, (2,)), jnp.ones((5, 2)))
        with pytest.raises(fn.LayerError, match="expected a positive number tokens, got 0"):
            fn.Embedding(0, 3)


class TestClipping:
    grads: ClassVar = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([[12.0]])}

    def test_by_value(self):
        ours, _ = fn.clip(3.5).update(self.grads, fn.clip(3.5).init(self.grads))
        np.testing.assert_array_equal(ours["a"], [3.0, -3.5])
        np.testing.assert_array_equal(ours["b"], [[3.5]])

    def test_by_the_global_norm(self):
        for limit, scale in ((6.5, 0.5), (13.0, 1.0), (100.0, 1.0)):
            ours, _ = fn.clip_by_global_norm(limit).update(self.grads, ())
            assert_agree(ours, jax.tree.map(lambda g, s=scale: s * g, self.grads), 1e-15)
        zero, _ = fn.clip_by_global_norm(1.0).update({"a": jnp.zeros(2), "b": jnp.zeros(0)}, ())
        assert not np.any(zero["a"])

    def test_infinite_gradients_and_the_derivative_at_zero(self):
        ours, _ = fn.clip_by_global_norm(1.0).update({"a": jnp.array([jnp.inf, 1.0]), "b": 2.0}, ())
        np.testing.assert_array_equal(ours["a"], [jnp.nan, 0])
        assert float(ours["b"]) == 0
        through = jax.grad(lambda g: jnp.sum(fn.clip_by_global_norm(1.0).update(g, ())[0]))(jnp.zeros(3))
        np.testing.assert_array_equal(through, jnp.ones(3))

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, *thorough(jnp.float32)])
    def test_a_norm_whose_square_overflows(self, dtype):
        huge = {"a": jnp.array([3e30, -4e30], dtype)}
        ours, _ = fn.clip_by_global_norm(1.0).update(huge, ())
        assert ours["a"].dtype == dtype
        np.testing.assert_allclose(ours["a"].astype(float), [0.6, -0.8], rtol=1e-2)

    def test_in_a_chain_under_jit_vmap_and_fit(self):
        def update(limit):
            opt = fn.chain(fn.clip_by_global_norm(limit), fn.sgd(0.1))
            return opt.update(self.grads, opt.init(self.grads), self.grads)[0]

        both = jax.jit(jax.vmap(update))(jnp.array([6.5, 13.0]))
        np.testing.assert_allclose(both["b"][:, 0, 0], [-0.6, -1.2])
        net = fn.Network(fn.Dense(1, fn.linear))
        params, x = params_of(net, (1,)), jnp.full((4, 1), 1e3)
        opt = fn.chain(fn.clip(1.0), fn.chain(fn.clip_by_global_norm(1.0), fn.sgd(0.01, momentum=0.5)))
        fitted, _ = fn.fit(
            net, fn.quadratic, params, (x, -x), key=KEY, epochs=3, batch_size=4, optimizer=opt, progress=False
        )
        assert float(jnp.abs(fitted[0]["w"] - params[0]["w"]).max()) <= 0.01 * (1 + 1.5 + 1.75)

    def test_against_optax(self):
        optax = pytest.importorskip("optax")
        ours = fn.chain(fn.clip_by_global_norm(2.0), fn.clip(1.0), optax.sgd(0.1))
        theirs = optax.chain(optax.clip_by_global_norm(2.0), optax.clip(1.0), optax.sgd(0.1))
        a, b = (o.update(self.grads, o.init(self.grads), self.grads)[0] for o in (ours, theirs))
        assert_agree(a, b, 1e-12)

    def test_errors(self):
        with pytest.raises(ValueError, match="clip: expected limit ≥ 0, got -1"):
            fn.clip(-1)
        for limit in ("1", None, jnp.ones(2)):
            with pytest.raises(ValueError, match="clip_by_global_norm: expected limit to be one number"):
                fn.clip_by_global_norm(limit)
        with pytest.raises(ValueError, match="chain: expected transformations with init and update, got float"):
            fn.chain(fn.clip(1.0), 0.1)  # pyright: ignore[reportArgumentType]


def gradient_of(cell, steps, m, n_in):
    """The gradient of the layer, and autodiff's of a plain scan with the input's product hoisted: lowered, and compiled."""
    dtype = jnp.float32
    params = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, dtype), jax.eval_shape(lambda: cell.init(KEY, (steps, n_in)))
    )
    x, da = (jax.ShapeDtypeStruct((m, steps, n), dtype) for n in (n_in, cell.n))

    def by_hand(params, x, da):
        _, cache = cell.forward(params, x)
        return cell.backward(params, cache, da)

    def autodiff(params, x, da):
        _, pull = jax.vjp(functools.partial(hoisted, type(cell).__name__, cell.n), params, x)
        return pull(da)

    lowered = [jax.jit(f).lower(params, x, da) for f in (by_hand, autodiff)]
    return [(program, program.compile()) for program in lowered]


def hoisted(kind, n, params, x):
    """What a careful user writes: the product with all inputs outside of the scan."""
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


def temporaries(compiled):
    return compiled.memory_analysis().temp_size_in_bytes


class TestCompiled:
    @pytest.mark.parametrize(("kind", "share"), [("LSTM", 0.4), ("GRU", 0.6), ("RNN", 0.8)])
    @pytest.mark.parametrize("shape", [(28, 32, 128, 28), *thorough((100, 32, 256, 64))], ids=str)
    def test_temporaries(self, kind, share, shape):
        steps, m, n, n_in = shape
        (_, by_hand), (_, autodiff) = gradient_of(CELLS[kind](n), steps, m, n_in)
        assert temporaries(by_hand) <= share * temporaries(autodiff)

    @pytest.mark.thorough
    @pytest.mark.parametrize("kind", ["LSTM", *thorough("RNN", "GRU")])
    def test_recomputing_needs_the_root_of_the_steps(self, kind):
        """From T to 16 T, four times the memory and not sixteen."""
        cell = CELLS[kind](64, recompute=True)

        def memory(steps, cell=cell):
            def gradients(params, x, da):
                _, cache = cell.forward(params, x)
                return cell.backward(params, cache, da)[1]

            params = jax.eval_shape(lambda: cell.init(KEY, (steps, 4)))
            x, da = (jax.ShapeDtypeStruct((16, steps, n), jnp.float64) for n in (4, 64))
            return temporaries(jax.jit(gradients).lower(params, x, da).compile())

        few, many = memory(64), memory(1024)
        assert many < 5 * few
        assert many < 0.3 * memory(1024, CELLS[kind](64))

    @pytest.mark.parametrize("kind", ["LSTM", *thorough("RNN", "GRU")])
    def test_the_program_does_not_grow_with_the_steps(self, kind):
        """The compiler is given as many HLO instructions for 1,000 steps as for 10."""
        few, many = (gradient_of(CELLS[kind](8), steps, 4, 3)[0][0].as_text("hlo") for steps in (10, 1000))
        assert 0 < instructions(few) == instructions(many)


def instructions(text):
    return sum(" = " in line and " constant(" not in line for line in text.splitlines())


class TestShapes:
    def test_inputs_that_are_no_sequences(self):
        net = fn.Network(fn.GRU(3), fn.LastStep())
        params = params_of(net, (5, 2))
        for x in (jnp.ones((4, 2)), jnp.ones((4, 5, 3)), jnp.ones((4, 0, 2))):
            with pytest.raises(fn.LayerError, match=r"layer 0 GRU\(3\): expected inputs of shape \(m, T, 2\)"):
                net.apply(params, x)
        with pytest.raises(fn.LayerError, match=r"RNN\(3\): expected an input shape \(T, n_in\), got \(7,\)"):
            fn.Network(fn.RNN(3)).init(KEY, (7,))
        with pytest.raises(fn.LayerError, match=r"LastStep\(\): expected sequences \(m, T, n\) of at least one step"):
            fn.LastStep().apply({}, jnp.ones((3, 2)))
        with pytest.raises(fn.LayerError, match="expected a positive number of units, got 0"):
            fn.LSTM(0)
        with pytest.raises(
            fn.LayerError, match=r"expected a positive number of steps, got 1\.5; give truncate as an integer"
        ):
            fn.LSTM(2, truncate=1.5)  # pyright: ignore[reportArgumentType]
        with pytest.raises(fn.LayerError, match=r"expected a recurrent cell, got Dense\(3, tanh\)"):
            fn.Bidirectional(fn.Dense(3, fn.tanh))  # pyright: ignore[reportArgumentType]

    def test_any_number_of_steps_and_integer_inputs(self):
        net = fn.Network(fn.RNN(3), fn.LastStep())
        params = params_of(net, (5, 1))
        for steps in (1, 9):
            assert net.apply(params, jnp.ones((2, steps, 1), int)).shape == (2, 3)

    def test_the_forget_gate_starts_open(self):
        b = fn.LSTM(2).init(KEY, (5, 3))["b"]
        np.testing.assert_array_equal(b, [0, 0, 1, 1, 0, 0, 0, 0])
        assert not np.any(fn.LSTM(2, forget_bias=0.0).init(KEY, (5, 3))["b"])

    def test_bidirectional_gives_both_final_states(self):
        cell = fn.GRU(3)
        last, every = fn.Bidirectional(cell, last=True), fn.Bidirectional(cell)
        params, x = params_of(last, (5, 2)), normal((4, 5, 2))
        mask = fn.length_mask([5, 3, 1, 4], 5)
        h = every.apply(params, x, mask=mask)
        both = last.apply(params, x, mask=mask)
        np.testing.assert_allclose(both, jnp.concatenate([h[:, -1, :3], h[:, 0, 3:]], -1), rtol=1e-12)
        alone = last.apply(params, x[1:2, :3])
        np.testing.assert_allclose(both[1], alone[0], rtol=1e-12)


class TestPlantedFaults:
    """The audit names a recurrent layer's own mistakes."""

    def first_row(self, **methods):
        wrong = fn.layer(type("Wrong", (fn.LSTM,), methods))(4)
        row = fn.check_layer(wrong, params_of(wrong, (6, 3)), normal((5, 6, 3))).rows[0]
        return row.layer, row.equation, row.leaf, row.verdict

    @pytest.mark.thorough  # by default, in tests/test_recurrent_mutants.py
    def test_the_state_after_the_step_for_the_one_before(self):
        def sums(self, x, h_before, delta, extra):
            return fn.LSTM.sums(self, x, jnp.roll(h_before, -1, 0), delta, extra)

        assert self.first_row(sums=sums) == ("0 Wrong", "gradients", "['w_h']", "fail")

    @pytest.mark.thorough
    def test_the_path_through_the_cell_left_out(self):
        def step_error(self, gates, extra, before, after, d_states):
            delta, extra, (dh, dc) = fn.LSTM.step_error(self, gates, extra, before, after, d_states)
            return delta, extra, (dh, jnp.zeros_like(dc))

        assert self.first_row(step_error=step_error) == ("0 Wrong", "error", "", "fail")

    @pytest.mark.thorough
    def test_in_one_direction_of_two(self):
        def propagate(self, params, cache, delta):
            return fn.LSTM.propagate(self, params, cache, jnp.roll(delta, 4, -1))

        wrong = fn.layer(type("Wrong", (fn.LSTM,), {"propagate": propagate}))
        both = type("Both", (fn.Bidirectional,), {"layers": property(lambda self: (wrong(3), Reversed(self.cell)))})
        net = fn.Network(fn.RNN(2), fn.layer(both)(fn.LSTM(3)), fn.Dense(2, fn.softmax))
        params, x = params_of(net, (4, 3)), normal((5, 4, 3))
        row = fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.ones((5, 4), int)).rows[0]
        assert (row.layer, row.equation, row.verdict) == ("1.0 Wrong", "propagate", "fail")

    def test_gates_in_another_order(self):
        def propagate(self, params, cache, delta):
            return fn.LSTM.propagate(self, params, cache, jnp.roll(delta, 4, -1))

        assert self.first_row(propagate=propagate) == ("0 Wrong", "propagate", "", "fail")


@pytest.mark.thorough
def test_pictures_of_exploding_maps():
    plots = pytest.importorskip("fnnet.plots")
    for norms in ([[1, np.inf], [1, 2]], [[1, np.nan], [1, 2]], np.zeros((2, 2)), np.full((2, 2), 1e-320), [[1, 0, 2]]):
        ax = plots.credit_map(norms, label="a map")
        ax.figure.canvas.draw()
    with pytest.raises(ValueError, match=r"credit_map: expected norms \(τ, t\), got \(2, 3, 3\)"):
        plots.credit_map(np.ones((2, 3, 3)))
