"""Second derivatives: products, diagonals, factors and the spectrum, against full Hessians and JᵀHJ by autodiff."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fnnet as fn
from fnnet import chunks
from fnnet.layers._layer import example_keys, run_forward
from fnnet.optimizers import updated
from fnnet.programs import program

from .cases import FEW, array, cast, largest, params_of, thorough

KEY = jax.random.key(3)
EXACT = 1e-12
"""Relative to the largest entry of the reference, in float64."""

PAIRS = [
    (fn.log_likelihood, fn.softmax),
    (fn.cross_entropy, fn.sigmoid),
    (fn.quadratic, fn.linear),
]


def normal(seed, shape, dtype=float):
    return array(np.random.default_rng(seed).standard_normal(shape), dtype)


def assert_close(ours, wanted, tolerance=EXACT):
    ours, wanted = (np.asarray(ravel_pytree(tree)[0], float) for tree in (ours, wanted))
    assert np.max(np.abs(wanted)) > 0
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * np.max(np.abs(wanted)))


def weighted_input(net, params, x, key=None, mask=None, **_):
    cache = run_forward(net, params, x, key=key, train=True, mask=mask)[1]
    return net.output(params, cache)


def by_autodiff(net, cost, params, x, y, v, **given):
    """(H v, G v, diag G, empirical Fisher's diagonal) from the plain objective, the Jacobian of z and the Hessian by z."""
    m, weights = len(x), given.get("weights")
    flat, unflat = ravel_pytree(params)
    objective = lambda flat: fn.objective(net, cost)(unflat(flat), x, y, **given)  # noqa: E731
    v = ravel_pytree(v)[0]
    hv = jax.jvp(jax.grad(objective), (flat,), (v,))[1]

    activation, z = weighted_input(net, params, x, **given)
    jacobian = jax.jacobian(lambda flat: weighted_input(net, unflat(flat), x, **given)[1])(flat).reshape(z.size, -1)
    of_z = lambda z: m * cost(activation(z), y, weights=weights, output=(activation, z))  # noqa: E731
    h = jax.hessian(of_z)(z).reshape(z.size, z.size)
    hj = h @ jacobian
    gv = jacobian.T @ (h @ (jacobian @ v)) / m

    def of_example(i):
        own = (jnp.arange(m) == i).astype(float)
        own = own if weights is None else weights * own.reshape(-1, *(1,) * (weights.ndim - 1))
        return jax.grad(lambda flat: m * fn.objective(net, cost)(unflat(flat), x, y, **{**given, "weights": own}))(flat)

    fisher = jnp.mean(jnp.square(jnp.stack([of_example(i) for i in range(m)])), axis=0)
    return hv, gv, jnp.sum(jacobian * hj, axis=0) / m, fisher


def by_hand(net, cost, params, x, y, v, **given):
    return (
        fn.hvp(net, cost, params, x, y, v, **given),
        fn.ggnvp(net, cost, params, x, y, v, **given),
        fn.ggn_diagonal(net, cost, params, x, y, **given),
        fn.fisher_diagonal(net, cost, params, x, y, **given),
    )


def check(net, cost, shape, x, y, **given):
    params = params_of(net, shape)
    v = jax.tree.map(lambda p: normal(4, p.shape), params)
    ours, wanted = jax.jit(
        lambda: (by_hand(net, cost, params, x, y, v, **given), by_autodiff(net, cost, params, x, y, v, **given))
    )()
    for one, other in zip(ours, wanted, strict=True):
        assert_close(one, other)


class TestAgainstAutodiff:
    @pytest.mark.parametrize("case", FEW, ids=repr)
    def test_every_layer(self, case):
        net = fn.Network(case.layer, fn.Flatten(), fn.Dense(3, fn.softmax))
        check(net, fn.log_likelihood, case.shape, case.inputs(3, float), jnp.array([0, 2, 1]), key=KEY)

    @pytest.mark.thorough
    @pytest.mark.parametrize("pair", [PAIRS[1], *thorough(PAIRS[0], PAIRS[2])], ids=str)
    def test_sequences_with_a_mask_and_weights(self, pair):
        cost, activation = pair
        valid = fn.length_mask(jnp.array([4, 2, 3]), 4)
        weights = valid.astype(float) * normal(1, (3, 1)) ** 2
        net = fn.Network(fn.Dropout(0.3), fn.RNN(3), fn.LayerNorm(), fn.Dense(2, activation))
        y = jnp.asarray(np.random.default_rng(1).integers(2, size=(3, 4)))
        if cost is fn.quadratic:
            y = normal(2, (3, 4, 2))
        check(net, cost, (4, 2), normal(0, (3, 4, 2)), y, key=KEY, mask=valid, weights=weights)

    def test_full_matrices(self):
        net, params, x, y = small()
        flat, unflat = ravel_pytree(params)

        @jax.jit
        def matrices():
            h, g = (
                jax.vmap(lambda v, f=f: ravel_pytree(f(net, fn.log_likelihood, params, x, y, unflat(v)))[0])(
                    jnp.eye(flat.size)
                )
                for f in (fn.hvp, fn.ggnvp)
            )
            full = jax.hessian(lambda flat: fn.objective(net, fn.log_likelihood)(unflat(flat), x, y))(flat)
            return h, g, full, unflat(jnp.diag(g))

        h, g, full, diagonal = matrices()
        assert_close(h, full)
        assert_close(h, h.T)
        assert_close(g, g.T)
        assert np.linalg.eigvalsh(g)[0] > -1e-15
        assert_close(fn.ggn_diagonal(net, fn.log_likelihood, params, x, y), diagonal)

    def test_the_penaltys_hessian_is_added(self):
        net, params, x, y = small()
        given = net, fn.log_likelihood, params, x, y, jax.tree.map(jnp.ones_like, params)
        added = jax.tree.map(jnp.subtract, fn.hvp(*given, penalty=fn.L2(3.0), n_examples=6), fn.hvp(*given))
        for layer in added:
            np.testing.assert_allclose(layer["w"], 0.5, rtol=1e-12)
            np.testing.assert_allclose(layer["b"], 0, atol=1e-15)

    def test_linear_regression_has_one_matrix(self):
        """A linear net with the quadratic cost: Hessian and Gauss-Newton matrix are (1/m) Σ_x (a aᵀ) ⊗ 1."""
        net, x, y = fn.Dense(2, fn.linear, bias=False), normal(0, (5, 3)), normal(1, (5, 2))
        params, v = {"w": normal(2, (2, 3))}, {"w": normal(3, (2, 3))}
        for f in (fn.hvp, fn.ggnvp):
            assert_close(f(net, fn.quadratic, params, x, y, v), v["w"] @ (x.T @ x) / 5)

    def test_pearlmutters_equations(self):
        """R{·} = d/dε at θ + ε v, written out for a sigmoid and a softmax layer: the derivation of docs/curvature.md."""
        net = fn.Network(fn.Dense(4, fn.sigmoid), fn.Dense(3, fn.softmax))
        params, x, y = params_of(net, (5,)), normal(0, (6, 5)), jnp.arange(6) % 3
        v = jax.tree.map(lambda p: normal(4, p.shape), params)
        (w1, b1), (w2, b2) = ((layer["w"], layer["b"]) for layer in params)
        (v1, c1), (v2, c2) = ((layer["w"], layer["b"]) for layer in v)
        m = len(x)
        a1 = fn.sigmoid(x @ w1.T + b1[None])
        a2 = fn.softmax(a1 @ w2.T + b2[None])
        slope = a1 * (1 - a1)
        d2 = a2 - jax.nn.one_hot(y, 3)
        back = d2 @ w2

        rz1 = x @ v1.T + c1[None]
        ra1 = slope * rz1
        rz2 = ra1 @ w2.T + a1 @ v2.T + c2[None]
        rd2 = a2 * (rz2 - jnp.sum(a2 * rz2, axis=1, keepdims=True))
        rd1 = (rd2 @ w2 + d2 @ v2) * slope + back * slope * (1 - 2 * a1) * rz1
        wanted = (
            {"w": rd1.T @ x / m, "b": jnp.mean(rd1, axis=0)},
            {"w": (rd2.T @ a1 + d2.T @ ra1) / m, "b": jnp.mean(rd2, axis=0)},
        )
        assert_close(fn.hvp(net, fn.log_likelihood, params, x, y, v), wanted)

    @pytest.mark.thorough
    def test_chunks_give_what_the_whole_batch_gives(self, monkeypatch):
        net = fn.Network(fn.Dense(4, fn.tanh), fn.Dropout(0.4), fn.Dense(3, fn.softmax))
        params, x, y = params_of(net, (5,)), normal(0, (7, 5)), jnp.arange(7) % 3
        v, weights = jax.tree.map(jnp.ones_like, params), jnp.arange(7.0)
        given = {"key": KEY, "weights": weights}

        def all_of_them():
            program.cache_clear()
            start = net, fn.log_likelihood, params, x, y
            return (
                *by_hand(*start, v, **given),
                fn.ggn_diagonal(*start, samples=3, **given),
                fn.kfac_factors(*start, **given),
                fn.kfac_factors(*start, samples=3, **given),
            )

        whole = jax.jit(lambda: all_of_them())()
        monkeypatch.setattr(chunks, "WHOLE_BATCH_BYTES", 0)
        monkeypatch.setattr(chunks, "CHUNK_BYTES", 0)
        monkeypatch.setattr(chunks, "SMALLEST_CHUNK", 3)
        parts = jax.jit(lambda: all_of_them())()
        program.cache_clear()
        for one, other in zip(parts, whole, strict=True):
            assert_close(one, other)

    def test_examples_of_weight_0_count_for_nothing(self):
        net, params, x, y = small()
        v, weights = jax.tree.map(jnp.ones_like, params), jnp.array([1.0, 1, 1, 1, 0, 0])
        bad = x.at[4].set(jnp.nan).at[5].set(jnp.inf)
        every = jax.jit(lambda x, y: by_hand(net, fn.log_likelihood, params, x, y, v, weights=weights))
        for ours, wanted in zip(every(bad, y.at[4].set(-100)), every(x, y), strict=True):
            assert_close(ours, wanted)

    @pytest.mark.parametrize("dtype", [jnp.float32, *thorough(jnp.bfloat16)])
    def test_other_dtypes(self, dtype):
        net, params, x, y = small()
        v = jax.tree.map(lambda p: normal(4, p.shape), params)
        every = jax.jit(lambda params, x, v: by_hand(net, fn.log_likelihood, params, x, y, v))
        wide, ours = every(params, x, v), every(*cast((params, x, v), dtype))
        for one, other in zip(ours, wide, strict=True):
            assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(one))
            assert_close(one, other, 64 * float(jnp.finfo(dtype).eps))

    def test_an_equal_net_compiles_nothing_new(self):
        net, params, x, y = small()
        equal = fn.Network(*(type(part)(part.n_out, part.activation) for part in net))
        f = jax.jit(fn.ggnvp, static_argnums=(0, 1))
        for given in (net, equal):
            f(given, fn.log_likelihood, params, x, y, params)
        assert f._cache_size() == 1


def small():
    net = fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, fn.softmax))
    return net, params_of(net, (5,)), normal(0, (6, 5)), jnp.arange(6) % 3


def within_errors(draws, wanted, bound=4):
    """Whether the mean of independent draws (n, k) lies within so many of its standard errors."""
    draws = np.asarray(draws)
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    assert np.all(np.abs(np.mean(draws, axis=0) - wanted) <= bound * error + 1e-15)
    assert np.any(error > 0)


class TestDraws:
    def draws(self, f, net, params, x, y, n=400, **given):
        def one(key):
            return ravel_pytree(f(net, fn.log_likelihood, params, x, y, key=key, samples=1, **given))[0]

        return jax.jit(jax.vmap(one))(jax.random.split(KEY, n))

    @pytest.mark.thorough
    @pytest.mark.parametrize("norm", [fn.Identity(), fn.BatchNorm()], ids=repr)
    def test_the_gauss_newton_diagonal(self, norm):
        net = fn.Network(fn.Dense(3, fn.tanh), norm, fn.Dense(3, fn.softmax))
        params, x, y = params_of(net, (2,)), normal(0, (4, 2)), jnp.arange(4) % 3
        exact = ravel_pytree(fn.ggn_diagonal(net, fn.log_likelihood, params, x, y))[0]
        within_errors(self.draws(fn.ggn_diagonal, net, params, x, y), exact)

    @pytest.mark.thorough
    def test_sequences_need_one_draw_for_all_steps(self):
        net = fn.Network(fn.RNN(2), fn.Dense(2, fn.softmax))
        params, x, y = params_of(net, (3, 2)), normal(0, (4, 3, 2)), jnp.zeros((4, 3), int)
        given = {"weights": normal(1, (4, 3)) ** 2}
        exact = ravel_pytree(fn.ggn_diagonal(net, fn.log_likelihood, params, x, y, **given))[0]
        within_errors(self.draws(fn.ggn_diagonal, net, params, x, y, **given), exact)

    @pytest.mark.thorough
    def test_hutchinson(self):
        net, params, x, y = small()
        flat, unflat = ravel_pytree(params)
        full = jax.jit(jax.hessian(lambda flat: fn.objective(net, fn.log_likelihood)(unflat(flat), x, y)))(flat)
        within_errors(self.draws(fn.hutchinson_diagonal, net, params, x, y), jnp.diag(full))

    def test_samples_are_averaged(self):
        net, params, x, y = small()
        f = jax.jit(lambda key: fn.ggn_diagonal(net, fn.log_likelihood, params, x, y, key=key, samples=500))
        exact = fn.ggn_diagonal(net, fn.log_likelihood, params, x, y)
        one, other = f(KEY), f(jax.random.key(4))
        assert_close(one, exact, 0.1)
        assert largest(jax.tree.map(jnp.subtract, one, other)) > 0


class TestCosts:
    @pytest.mark.parametrize(("cost", "activation"), PAIRS)
    @pytest.mark.parametrize("shape", [(3, 4), *thorough((2, 3, 4), (5, 1))], ids=str)
    def test_product_root_and_sample(self, cost, activation, shape):
        z, u, weights = normal(0, shape), normal(1, shape), jnp.arange(1.0, shape[0] + 1)
        y = normal(2, shape) if cost is fn.quadratic else jax.nn.sigmoid(normal(2, shape))

        def everything(keys):
            of_z = lambda z: shape[0] * cost(activation(z), y, weights=weights, output=(activation, z))  # noqa: E731
            full = jax.hessian(of_z)(z).reshape(z.size, z.size)
            s = cost.hessian_root(z, y, weights=weights)
            drawn = jax.vmap(lambda key: cost.sampled_error(z, key, y=y, weights=weights))(keys)
            return full, cost.hessian_product(z, y, u, weights=weights), s, drawn

        full, product, s, drawn = jax.jit(everything)(jax.random.split(KEY, 1000))
        assert s.shape == (*shape, shape[-1])
        if cost is fn.log_likelihood and shape[-1] == 1:  # a softmax of one unit is 1
            assert largest((full, product, s, drawn)) == 0
            return
        assert_close(product.ravel(), full @ u.ravel())
        blocks = jnp.einsum("...ik,...jk->...ij", s, s).reshape(-1, shape[-1], shape[-1])
        assert_close(jax.scipy.linalg.block_diag(*blocks), full)
        rows = drawn.reshape(1000, -1)
        within_errors(jnp.einsum("ri,rj->rij", rows, rows).reshape(1000, -1), full.ravel(), 5)

    @pytest.mark.parametrize(("cost", "activation"), PAIRS[:2])
    @pytest.mark.parametrize("size", [30.0, 1e4])
    def test_saturated_outputs_keep_their_relative_accuracy(self, cost, activation, size):
        z = jnp.array([[size, 0.0, -1.0]])
        y, u = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[1.0, 2.0, -3.0]])
        narrow, wide = ((z.astype(d), y.astype(d), u.astype(d)) for d in (jnp.float32, float))
        s = [cost.hessian_root(z, y) for z, y, _ in (narrow, wide)]
        products = [cost.hessian_product(*given) for given in (narrow, wide)]
        e = jnp.exp(z[0] - size)
        if cost is fn.log_likelihood and size == 30:
            others = e[1] + e[2]
            np.testing.assert_allclose(s[1][0, 0, 0] ** 2, others**2 / (1 + others) ** 3, rtol=1e-12)
            np.testing.assert_allclose(products[1][0, 0], e[1] * (1 - 2) + e[2] * (1 + 3), rtol=1e-9)
        for one, other in (s, products):
            assert np.isfinite(one).all()
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-30)

    @pytest.mark.thorough
    def test_chunks_draw_what_the_whole_batch_draws(self):
        z = normal(0, (5, 3))
        for cost, _ in PAIRS:
            whole = cost.sampled_error(z, KEY)
            part = cost.sampled_error(z[2:], fn.ExampleKeys(KEY, jnp.arange(2, 5)))
            np.testing.assert_array_equal(part, whole[2:])
        classes = jax.vmap(jax.random.categorical)(example_keys(KEY, 5), z)
        np.testing.assert_array_equal(jnp.argmin(fn.log_likelihood.sampled_error(z, KEY), axis=1), classes)

    def test_dtypes_are_kept(self):
        z = jnp.ones((2, 3), jnp.bfloat16)
        for cost, _ in PAIRS:
            y = jnp.zeros((2, 3))
            for given in (cost.hessian_product(z, y, z), cost.hessian_root(z, y), cost.sampled_error(z, KEY)):
                assert given.dtype == jnp.bfloat16

    def test_errors(self):
        own = fn.Cost("own", fn.quadratic.terms, fn.quadratic.gradient)
        z = jnp.ones((2, 3))
        with pytest.raises(
            ValueError, match=r"own: expected a cost with second derivatives, got none; give Cost\(..., curv"
        ):
            own.hessian_root(z, z)
        with pytest.raises(ValueError, match=r"quadratic: expected u of shape \(2, 3\), as z, got \(3,\)"):
            fn.quadratic.hessian_product(z, z, z[0])
        with pytest.raises(ValueError, match="quadratic: expected a key to draw targets with, got None"):
            fn.quadratic.sampled_error(z, None)
        with pytest.raises(ValueError, match="expected one PRNG key"):
            fn.quadratic.sampled_error(z, 3)


class TestSpectrum:
    @pytest.mark.parametrize("of", ["hessian", "ggn"])
    def test_every_eigenvalue(self, of):
        net, params, x, y = small()
        flat, unflat = ravel_pytree(params)
        product = {"hessian": fn.hvp, "ggn": fn.ggnvp}[of]

        @jax.jit
        def both():
            times = lambda v: ravel_pytree(product(net, fn.log_likelihood, params, x, y, unflat(v)))[0]  # noqa: E731
            found = fn.spectrum(net, fn.log_likelihood, params, x, y, key=KEY, steps=1000, of=of)
            return found, jnp.linalg.eigvalsh(jax.vmap(times)(jnp.eye(flat.size)))

        found, wanted = both()
        assert_close(found.values, wanted, 1e-10)
        assert (found.smallest, found.largest) == (found.values[0], found.values[-1])
        np.testing.assert_allclose(jnp.sum(found.weights), 1, rtol=1e-12)

    @pytest.mark.thorough
    def test_fewer_steps_reach_the_ends(self):
        net, params, x, y = small()
        given = net, fn.log_likelihood, params, x, y
        every = fn.spectrum(*given, key=KEY, steps=1000)
        found = fn.spectrum(*given, key=KEY, steps=25, starts=2)
        assert found.values.shape == (50,)
        np.testing.assert_allclose([found.smallest, found.largest], [every.smallest, every.largest], rtol=1e-10)
        grid = jnp.linspace(found.smallest - 1, found.largest + 1, 2001)
        np.testing.assert_allclose(jnp.sum(found.density(grid, 0.1)) * (grid[1] - grid[0]), 1, rtol=1e-6)
        assert found.density(grid).shape == grid.shape

    def test_an_exhausted_space_goes_on_outside(self):
        """A diagonal matrix with eigenvalues that come more than once: every one is found as often as it comes."""
        from fnnet.lanczos import lanczos

        wanted = jnp.array([-2.0, 1, 1, 1, 1, 5, 5, 7])
        alpha, beta = lanczos(lambda v: wanted * v, normal(0, (8,)), KEY, 8)
        t = np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)
        np.testing.assert_allclose(np.linalg.eigvalsh(t), wanted, atol=1e-12)

    @pytest.mark.thorough
    def test_float32_and_no_weights_at_all(self):
        net, params, x, y = small()
        found = fn.spectrum(net, fn.log_likelihood, *cast((params, x), jnp.float32), y, key=KEY, steps=10, of="ggn")
        assert found.values.dtype == jnp.float32
        exact = fn.spectrum(net, fn.log_likelihood, params, x, y, key=KEY, steps=39, of="ggn")
        np.testing.assert_allclose(found.largest, exact.largest, rtol=1e-4)


def block(net, params, x, y, given):
    """The block of JᵀHJ/m of the entries that ``given`` numbers."""
    flat, unflat = ravel_pytree(params)
    activation, z = weighted_input(net, params, x)
    jacobian = jax.jacobian(lambda flat: weighted_input(net, unflat(flat), x)[1])(flat).reshape(z.size, -1)
    h = jax.hessian(lambda z: len(x) * fn.log_likelihood(activation(z), y, output=(activation, z)))(z)
    full = jacobian.T @ h.reshape(z.size, z.size) @ jacobian / len(x)
    numbers = unflat(jnp.arange(flat.size))
    return [full[jnp.ix_(entries, entries)] for entries in given(numbers)]


def rows_of(layer):
    parts = [layer["w"], *([layer["b"][:, None]] if "b" in layer else [])]
    return jnp.concatenate(parts, axis=1).ravel().astype(int)


class TestFactors:
    @pytest.mark.thorough
    def test_of_one_example_they_are_the_blocks(self):
        net = fn.Network(
            fn.Dense(4, fn.tanh),
            fn.Dense(3, fn.sigmoid, bias=False),
            fn.Residual(fn.Dense(3, fn.tanh)),
            fn.Dense(3, fn.softmax),
        )
        params, x, y = params_of(net, (5,)), normal(0, (1, 5)), jnp.array([2])
        factors = fn.kfac_factors(net, fn.log_likelihood, params, x, y)
        layers = lambda tree: [tree[0], tree[1], tree[2][1][0], tree[3]]  # noqa: E731
        wanted = block(net, params, x, y, lambda numbers: map(rows_of, layers(numbers)))
        for ours, exact in zip(layers(factors), wanted, strict=True):
            assert_close(jnp.kron(ours.G, ours.A), exact)
        assert factors[2][0] is None

    def test_of_a_batch_they_are_means(self):
        net, params, x, y = small()
        first, last = fn.kfac_factors(net, fn.log_likelihood, params, x, y)
        a = jnp.concatenate([x, jnp.ones((6, 1))], axis=1)
        assert_close(first.A, a.T @ a / 6)
        s = fn.log_likelihood.hessian_root(weighted_input(net, params, x)[1], y)
        assert_close(last.G, jnp.einsum("mik,mjk->ij", s, s) / 6)

    @pytest.mark.thorough
    def test_steps_are_summed_before_the_product(self):
        net = fn.Network(fn.RNN(2), fn.GRU(2), fn.Dense(3, fn.softmax))
        params, x, y = params_of(net, (4, 2)), normal(0, (5, 4, 2)), jnp.zeros((5, 4), int)
        cell, gru, dense = fn.kfac_factors(net, fn.log_likelihood, params, x, y)
        h = net[:1].apply(params[:1], x)
        before = jnp.concatenate([jnp.zeros((5, 1, 2)), h[:, :-1]], axis=1)
        a = jnp.concatenate([jnp.mean(x, 1), jnp.mean(before, 1), jnp.ones((5, 1))], axis=1)
        assert_close(cell.A, a.T @ a / 5)
        assert cell.G.shape == (2, 2)
        assert gru is None
        s = fn.log_likelihood.hessian_root(weighted_input(net, params, x)[1], y)
        assert_close(dense.G, jnp.einsum("mtik,mtjk->ij", s, s) / 5)

    def test_places_of_images_and_tied_layers_too(self):
        net = fn.Network(
            fn.Conv(2, 2, fn.tanh), fn.Conv(2, 1, fn.tanh, groups=2), fn.Flatten(), fn.Dense(3, fn.softmax)
        )
        params, x, y = params_of(net, (3, 3, 1)), normal(0, (4, 3, 3, 1)), jnp.arange(4) % 3
        conv, groups, flatten, _ = fn.kfac_factors(net, fn.log_likelihood, params, x, y)
        windows = jnp.stack([x[:, i : i + 2, j : j + 2, 0] for i in range(2) for j in range(2)])
        a = jnp.concatenate([jnp.mean(windows, (2, 3)).T, jnp.ones((4, 1))], axis=1)
        assert_close(conv.A, a.T @ a / 4)
        assert groups is None
        assert flatten is None

        tied = fn.Tied(fn.Network(fn.Dense(3, fn.tanh), fn.Dense(3, fn.softmax, bias=False)), "0.w", "1.w")
        params, x = params_of(tied, (3,)), normal(0, (4, 3))
        first, second = fn.kfac_factors(tied, fn.log_likelihood, params, x, y)
        a = (x + fn.tanh(x @ params[0]["w"].T + params[0]["b"][None])) / 2
        a = jnp.concatenate([a, jnp.ones((4, 1))], axis=1)
        assert_close(first.A, a.T @ a / 4)
        assert second is None

    @pytest.mark.parametrize(
        "of_several", [fn.Repeat(fn.Dense(3, fn.tanh), 2), *thorough(fn.Recompute(fn.Dense(3, fn.tanh)))], ids=repr
    )
    def test_through_composites(self, of_several):
        net = fn.Network(of_several, fn.Bidirectional(fn.LSTM(2)), fn.Dense(3, fn.softmax))
        params, x, y = params_of(net, (4, 3)), normal(0, (2, 4, 3)), jnp.zeros((2, 4), int)
        first, both, _ = fn.kfac_factors(net, fn.log_likelihood, params, x, y)
        assert all(one.A.shape == (4, 4) for one in first)
        assert [(one.A.shape, one.G.shape) for one in both] == [((6, 6), (8, 8))] * 2

    def test_draws(self):
        net, params, x, y = small()
        exact = fn.kfac_factors(net, fn.log_likelihood, params, x, y)
        drawn = fn.kfac_factors(net, fn.log_likelihood, params, x, y, key=KEY, samples=500)
        for ours, wanted in zip(drawn, exact, strict=True):
            np.testing.assert_array_equal(ours.A, wanted.A)
            assert_close(ours.G, wanted.G, 0.15)

    def test_a_tied_array_in_a_repetition_is_refused(self):
        net = fn.Tied(
            fn.Network(fn.Repeat(fn.Dense(3, fn.tanh), 2), fn.Repeat(fn.Dense(3, fn.tanh), 2), fn.Dense(3, fn.softmax)),
            "0.w",
            "1.w",
        )
        params = params_of(net, (3,))
        with pytest.raises(
            fn.LayerError, match=r"expected a single layer for the factors of a tied array, got several at '0.w'"
        ):
            fn.kfac_factors(net, fn.log_likelihood, params, normal(0, (2, 3)), jnp.array([0, 1]))


class TestNaturalGradient:
    def test_it_solves_the_damped_system(self):
        net, params, x, y = small()
        flat, unflat = ravel_pytree(params)
        ggnvp = lambda v: fn.ggnvp(net, fn.log_likelihood, params, x, y, v)  # noqa: E731
        grads = fn.backprop(net, fn.log_likelihood, params, x, y).gradients
        optimizer = fn.natural_gradient(0.5, damping=0.1, iterations=60)
        g = jax.vmap(lambda v: ravel_pytree(ggnvp(unflat(v)))[0])(jnp.eye(flat.size))
        updates, step = optimizer.update(grads, optimizer.init(params), params, ggnvp=ggnvp)
        wanted = -0.5 * jnp.linalg.solve(g + 0.1 * jnp.eye(flat.size), ravel_pytree(grads)[0])
        assert_close(updates, wanted, 1e-4)
        assert step == 1

    @pytest.mark.thorough
    @pytest.mark.parametrize("chained", [False, True])
    def test_fit_hands_it_the_product(self, chained):
        net, params, x, y = small()
        optimizer = fn.natural_gradient(1.0, damping=0.1)
        penalty = fn.L2(0.6)
        fitted, _ = fn.fit(
            net, fn.log_likelihood, params, (x, y), key=KEY, epochs=1, batch_size=6, penalty=penalty, progress=False,
            optimizer=fn.chain(optimizer) if chained else optimizer,
        )  # fmt: skip
        grads = fn.value_and_grad(net, fn.log_likelihood, penalty=penalty)(params, x, y)[1]

        def curved(v):
            product = fn.ggnvp(net, fn.log_likelihood, params, x, y, v)
            return tuple({"w": p["w"] + 0.1 * u["w"], "b": p["b"]} for p, u in zip(product, v, strict=True))

        updates, _ = optimizer.update(grads, optimizer.init(params), params, ggnvp=curved)
        assert_close(fitted, fn.apply_updates(params, updates), 1e-10)

    @pytest.mark.thorough
    def test_a_rule_in_the_place_of_bp2_changes_no_curvature(self):
        net, params, x, y = small()
        swapped = fn.Swapped(net, fn.FeedbackAlignment())
        back = jax.tree.map(lambda b: 2 * b, params_of(swapped, x.shape[1:])["back"])
        own, v = {"net": params, "back": back}, jax.tree.map(jnp.ones_like, {"net": params, "back": back})
        for f in (fn.hvp, fn.ggnvp):
            found = f(swapped, fn.log_likelihood, own, x, y, v)
            assert_close(found["net"], f(net, fn.log_likelihood, params, x, y, v["net"]))
            assert largest(found["back"]) == 0

        optimizer = fn.natural_gradient(1.0, damping=0.1)
        fitted, _ = fn.fit(
            swapped,
            fn.log_likelihood,
            own,
            (x, y),
            key=KEY,
            epochs=1,
            batch_size=6,
            optimizer=optimizer,
            progress=False,
        )
        grads = fn.value_and_grad(swapped, fn.log_likelihood)(own, x, y)[1]
        product = lambda v: fn.ggnvp(swapped, fn.log_likelihood, own, x, y, v)  # noqa: E731
        updates, _ = optimizer.update(grads, optimizer.init(own), own, ggnvp=product)
        assert_close(fitted["net"], fn.apply_updates(own, updates)["net"], 1e-10)

    def test_it_learns_faster_than_gradient_descent(self):
        net, params, x, y = small()
        costs = [
            fn.fit(
                net,
                fn.log_likelihood,
                params,
                (x, y),
                key=KEY,
                epochs=8,
                batch_size=6,
                optimizer=optimizer,
                progress=False,
            )[1].cost[-1]
            for optimizer in (fn.natural_gradient(damping=0.1), fn.sgd(1.0))
        ]
        assert costs[0] < 0.1 * costs[1]

    @pytest.mark.thorough
    def test_windows_of_sequences(self):
        net = fn.Network(fn.RNN(3), fn.Dense(2, fn.softmax))
        params, x, y = params_of(net, (6, 2)), normal(0, (4, 6, 2)), jnp.zeros((4, 6), int)
        given = {"key": KEY, "epochs": 2, "batch_size": 4, "progress": False, "window": 3}
        _, history = fn.fit(net, fn.log_likelihood, params, (x, y), optimizer=fn.natural_gradient(), **given)
        assert history.cost[1] < history.cost[0]

    def test_two_dampings_are_one_program(self):
        leaves, structure = jax.tree.flatten(fn.natural_gradient(0.5, 0.1, 7))
        assert leaves == [0.5, 0.1, 7]
        assert structure == jax.tree.structure(fn.natural_gradient(1.0, 0.2, 9))

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_dtypes_are_kept(self, dtype):
        params = {"w": jnp.ones(3, dtype)}
        optimizer = fn.natural_gradient(1.0, 0.5)
        updates, _ = optimizer.update(params, optimizer.init(params), params, ggnvp=lambda v: v)
        assert updates["w"].dtype == dtype
        np.testing.assert_allclose(updates["w"].astype(float), -1 / 1.5, rtol=1e-2)

    def test_errors(self):
        with pytest.raises(ValueError, match="natural_gradient: expected damping ≥ 0, got -1"):
            fn.natural_gradient(damping=-1)
        with pytest.raises(
            ValueError, match="natural_gradient: expected iterations to be an integer of at least 1, got 0"
        ):
            fn.natural_gradient(iterations=0)
        params = {"w": jnp.ones(3)}
        with pytest.raises(ValueError, match=r"fit: expected an optimizer whose update needs no more than .*'ggnvp'"):
            updated("fit", fn.natural_gradient(), params, jnp.asarray(0), params)
        net, params, x, y = small()
        with pytest.raises(ValueError, match="expected quadratic after linear"):
            fn.fit(
                net, fn.quadratic, params, (x, jax.nn.one_hot(y, 3)), key=KEY, epochs=1, batch_size=6, progress=False,
                optimizer=fn.natural_gradient(),
            )  # fmt: skip


class TestErrors:
    def test_a_cost_that_is_not_matched(self):
        net, params, x, y = small()
        targets = jax.nn.one_hot(y, 3)
        wanted = r"expected quadratic after linear, the pair of which H = ∂²C/∂z∂z is known, got the activation softmax"
        for f, more in ((fn.ggnvp, (params,)), (fn.ggn_diagonal, ()), (fn.kfac_factors, ())):
            with pytest.raises(ValueError, match=f"{f.__name__}: {wanted}"):
                f(net, fn.quadratic, params, x, targets, *more)
        cell, x_of_steps = fn.RNN(3), normal(0, (1, 2, 3))
        of_cell = params_of(cell, (2, 3))
        with pytest.raises(
            ValueError, match=r"expected quadratic after linear, .* got a last layer without an activation"
        ):
            fn.ggnvp(cell, fn.quadratic, of_cell, x_of_steps, x_of_steps, of_cell)
        own = fn.Cost("own", fn.quadratic.terms, fn.quadratic.gradient)
        with pytest.raises(
            ValueError, match="ggnvp: expected a cost with a matched activation, got own, which has none"
        ):
            fn.ggnvp(net, own, params, x, targets, params)
        dense = fn.Dense(3, fn.tanh)
        with pytest.raises(ValueError, match="log_likelihood: expected outputs in"):
            fn.ggnvp(dense, fn.log_likelihood, params_of(dense, (5,)), x, y, params_of(dense, (5,)))

    def test_a_vector_that_is_not_like_the_parameters(self):
        net, params, x, y = small()
        for f in (fn.hvp, fn.ggnvp):
            with pytest.raises(
                ValueError, match=rf"{f.__name__}: v: expected \[1\]\['b'\] of shape \(3,\), as in params, got None"
            ):
                f(net, fn.log_likelihood, params, x, y, (params[0], {"w": params[1]["w"]}))
        with pytest.raises(ValueError, match=r"hvp: v: expected a pytree like params, got one array of shape \(\)"):
            fn.hvp(net, fn.log_likelihood, params, x, y, 3.0)

    def test_draws_need_a_key_and_a_number(self):
        given = *small()[:1], fn.log_likelihood, *small()[1:]
        for f in (fn.ggn_diagonal, fn.kfac_factors):
            with pytest.raises(ValueError, match=f"{f.__name__}: expected a key to draw 5 samples with, got None"):
                f(*given, samples=5)
            with pytest.raises(
                ValueError, match=f"{f.__name__}: expected samples to be an integer of at least 1, got 0"
            ):
                f(*given, samples=0, key=KEY)
        with pytest.raises(ValueError, match="hutchinson_diagonal: expected a key to draw 5 samples with, got None"):
            fn.hutchinson_diagonal(*given, samples=5, key=None)
        with pytest.raises(
            ValueError, match="hutchinson_diagonal: expected samples to be an integer of at least 1, got None"
        ):
            fn.hutchinson_diagonal(*given, samples=None, key=KEY)

    def test_the_spectrums_arguments(self):
        given = *small()[:1], fn.log_likelihood, *small()[1:]
        with pytest.raises(ValueError, match="spectrum: expected a key to draw start vectors with, got None"):
            fn.spectrum(*given, key=None)
        with pytest.raises(ValueError, match="spectrum: expected of to be 'hessian' or 'ggn', got 'fisher'"):
            fn.spectrum(*given, key=KEY, of="fisher")
        for name in ("steps", "starts"):
            with pytest.raises(ValueError, match=f"spectrum: expected {name} to be an integer of at least 1, got 0"):
                fn.spectrum(*given, key=KEY, **{name: 0})
        with pytest.raises(ValueError, match=r"spectrum: expected a network with parameters, got none in Flatten\(\)"):
            fn.spectrum(fn.Flatten(), fn.quadratic, {}, normal(0, (2, 3)), normal(1, (2, 3)), key=KEY)

    @pytest.mark.thorough
    def test_the_keys_of_a_batch_draw_what_its_key_draws(self):
        net, params, x, y = small()
        keys = fn.ExampleKeys(KEY, jnp.arange(len(x)))
        for f in (functools.partial(fn.hutchinson_diagonal, samples=2), functools.partial(fn.spectrum, steps=3)):
            ours, theirs = (f(net, fn.log_likelihood, params, x, y, key=key) for key in (keys, KEY))
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


class TestWhatItCosts:
    @pytest.mark.thorough
    def test_temporaries_and_operations(self):
        """A tenth of what each example's Jacobian of the outputs takes, and three gradients for a product."""
        net = fn.Network(fn.Conv(8, 5, fn.tanh), fn.MaxPool(2), fn.Flatten(), fn.Dense(10, fn.softmax))
        params, y = params_of(net, (14, 14, 1), jnp.float32), jnp.arange(256) % 10
        x = normal(0, (256, 14, 14, 1), jnp.float32)

        def by_jacobians(params):
            def of_example(x):
                z_of = lambda params: weighted_input(net, params, x[None])[1][0]  # noqa: E731
                a, jacobian = jax.nn.softmax(z_of(params)), jax.jacrev(z_of)(params)
                h = jnp.diag(a) - jnp.outer(a, a)
                return jax.tree.map(lambda j: jnp.sum(j * jnp.tensordot(h, j, 1), axis=0), jacobian)

            return jax.tree.map(lambda rows: jnp.mean(rows, axis=0), jax.vmap(of_example)(x))

        programs = {
            "diagonal": lambda p: fn.ggn_diagonal(net, fn.log_likelihood, p, x, y),
            "by Jacobians": by_jacobians,
            "product": lambda p: fn.hvp(net, fn.log_likelihood, p, x, y, p),
            "gradient": lambda p: fn.value_and_grad(net, fn.log_likelihood)(p, x, y)[1],
        }
        assert_close(programs["diagonal"](params), by_jacobians(params), 1e-5)
        compiled = {name: jax.jit(f).lower(params).compile() for name, f in programs.items()}
        memory = {name: f.memory_analysis().temp_size_in_bytes for name, f in compiled.items()}
        assert memory["diagonal"] <= memory["by Jacobians"] / 10
        operations = {name: compiled[name].cost_analysis()["flops"] for name in ("product", "gradient")}
        assert operations["product"] <= 3 * operations["gradient"]
