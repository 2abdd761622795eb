"""Boltzmann machines against enumeration, autodiff, scikit-learn and the statistics they promise."""

import functools
import itertools
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import fnnet as fn
from fnnet import rbm

from .cases import thorough

KINDS = ("bernoulli", "gaussian")
KEY = jax.random.key(5)


@functools.cache
def machine(n_v=6, n_h=4, scale=1.0, seed=0, dtype=float):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"w": (n_h, n_v), "b": (n_v,), "c": (n_h,)}
    draws = {name: scale * jax.random.normal(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=True)}
    return jax.tree.map(lambda leaf: leaf.astype(dtype), draws)


def swapped(params):
    return {"w": params["w"].T, "b": params["c"], "c": params["b"]}


def states(n):
    return jnp.array(list(itertools.product([0.0, 1.0], repeat=n)))


def batch(n_v=6, m=7, visible="bernoulli"):
    if visible == "gaussian":
        return jax.random.normal(KEY, (m, n_v))
    return rbm.draw(KEY, jnp.full((m, n_v), 0.5))


def assert_close(a, b, tolerance=1e-10):
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    for own, reference in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        largest = float(jnp.max(jnp.abs(reference)))
        assert largest > 0
        assert float(jnp.max(jnp.abs(own - reference))) <= tolerance * largest


@functools.cache
def joint():
    """A machine of 5 visible and 4 hidden units, and p(v, h) of all its states by the definition."""
    params, v, h = machine(5, 4), states(5), states(4)
    e = -(v @ params["b"])[:, None] - (h @ params["c"])[None] - jnp.einsum("yj,ji,xi->xy", h, params["w"], v)
    return params, v, h, jax.nn.softmax(-e.ravel()).reshape(e.shape), jax.nn.logsumexp(-e)


class TestEquations:
    def test_against_the_definition(self):
        params, v, h, p, log_z = joint()
        pairs = jnp.repeat(v, len(h), 0), jnp.tile(h, (len(v), 1))
        assert_close(jnp.exp(-rbm.energy(params, *pairs) - log_z).reshape(p.shape), p)
        assert_close(rbm.log_probability(params, v, log_z), jnp.log(p.sum(1)))
        assert_close(rbm.hidden_probabilities(params, v), (p / p.sum(1, keepdims=True)) @ h)
        assert_close(rbm.visible_means(params, h), (p / p.sum(0)).T @ v)
        assert_close(rbm.log_partition(params), log_z)
        assert_close(rbm.hidden_inputs(params, v), rbm.visible_inputs(swapped(params), v))
        assert_close(rbm.reconstruct(params, v), rbm.visible_means(params, rbm.hidden_probabilities(params, v)))

    @pytest.mark.thorough
    def test_gaussian_visible_units(self):
        """F sums e^{−E} over h; v given h has mean b + h w and variance 1, since E + ½‖v − b − h w‖² does not hold v."""
        params, v = machine(), batch(visible="gaussian")
        energies = jnp.stack(
            [rbm.energy(params, v, jnp.broadcast_to(h, (7, 4)), visible="gaussian") for h in states(4)]
        )
        assert_close(rbm.free_energy(params, v, visible="gaussian"), -jax.nn.logsumexp(-energies, axis=0))
        h = jnp.broadcast_to(states(4)[6], (7, 4))
        mean = rbm.visible_means(params, h, visible="gaussian")
        rest = rbm.energy(params, v, h, visible="gaussian") - jnp.sum((v - mean) ** 2, axis=-1) / 2
        assert_close(rest, jnp.full(7, rest[0]))
        drawn = rbm.sample_visible(params, KEY, jnp.broadcast_to(h[0], (50_000, 4)), visible="gaussian")
        np.testing.assert_allclose(drawn.mean(0), mean[0], atol=5 / 50_000**0.5)
        seen = rbm.sample_hidden(params, KEY, jnp.broadcast_to(v[0], (50_000, 6))).mean(0)
        np.testing.assert_allclose(seen, rbm.hidden_probabilities(params, v)[0], atol=5 * 0.5 / 50_000**0.5)
        error = rbm.reconstruction_error(params, v, visible="gaussian")
        np.testing.assert_allclose(error, np.mean(np.sum((v - rbm.reconstruct(params, v, visible="gaussian")) ** 2, 1)))
        np.testing.assert_allclose(drawn.var(0), 1, atol=5 * (2 / 50_000) ** 0.5)

    @pytest.mark.thorough
    def test_against_scikit_learn(self):
        from sklearn.neural_network import BernoulliRBM  # slow to import

        params, v = machine(30, 12), batch(30)
        model = BernoulliRBM(12)
        model.components_, model.intercept_visible_, model.intercept_hidden_ = (
            np.asarray(params[n]) for n in ("w", "b", "c")
        )
        assert_close(rbm.free_energy(params, v), jnp.asarray(model._free_energy(np.asarray(v))))
        assert_close(rbm.hidden_probabilities(params, v), jnp.asarray(model.transform(np.asarray(v))))

    def test_pseudo_likelihood_is_the_conditionals(self):
        """Its mean over the drawn unit is Σ_i ln p(v_i | the others)."""
        params, v, _, p, _ = joint()
        log_p = dict(zip(map(tuple, np.asarray(v)), np.log(p.sum(1)), strict=True))
        x = np.asarray(v[13])
        flipped = [np.where(np.arange(5) == i, 1 - x, x) for i in range(5)]
        exact = sum(-np.logaddexp(0, log_p[tuple(other)] - log_p[tuple(x)]) for other in flipped)
        drawn = rbm.pseudo_likelihood(params, KEY, jnp.broadcast_to(v[13], (20_000, 5)))
        assert abs(float(drawn.mean()) - exact) < 5 * float(drawn.std()) / 20_000**0.5

    def test_data_biases_fit_a_machine_without_weights(self):
        x = jnp.array([[0.0, 1, 0.25], [0, 1, 0.75], [0, 1, 0.2]])
        params = rbm.init(KEY, 3, 2, data=x, std=0.0)
        np.testing.assert_allclose(jax.nn.sigmoid(params["b"]), [0.01, 0.99, 0.4], rtol=1e-12)

    @pytest.mark.thorough
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, *thorough(jnp.float16, jnp.float32)])
    @pytest.mark.parametrize("visible", ["bernoulli", *thorough("gaussian")])
    def test_dtypes(self, dtype, visible):
        wide = machine()
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), wide)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        v = batch(visible=visible).astype(dtype)
        eps = float(jnp.finfo(dtype).eps)
        free = rbm.free_energy(params, v, visible=visible)
        assert free.dtype == jnp.float32
        assert_close(free.astype(float), rbm.free_energy(wide, v.astype(float), visible=visible), 1e-5)
        contrast = rbm.contrastive_divergence(params, KEY, v, k=2, visible=visible)
        chex.assert_trees_all_equal_dtypes(contrast.gradients, params)
        positive = rbm.phase(wide, v.astype(float), visible=visible)
        negative = rbm.phase(wide, contrast.v.astype(float), visible=visible)
        exact = jax.tree.map(jnp.subtract, positive, negative)
        for own, reference in (
            (rbm.phase(params, v, visible=visible), positive),
            (contrast.gradients, exact),
            (
                rbm.likelihood_gradient(params, v, visible=visible),
                rbm.likelihood_gradient(wide, v.astype(float), visible=visible),
            ),
        ):
            assert_close(jax.tree.map(lambda g: g.astype(float), own), reference, max(2 * eps, 1e-5))
        log_z = rbm.log_partition(params, visible=visible)
        np.testing.assert_allclose(log_z, rbm.log_partition(wide, visible=visible), rtol=1e-5)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, *thorough(jnp.float16)])
    def test_draws_in_half_precision(self, dtype):
        p = jnp.asarray(0.9, dtype)
        assert bool(jnp.all(rbm.draw(KEY, jnp.ones(1_000_000, dtype)) == 1))
        drawn = rbm.draw(KEY, jnp.full(1_000_000, p)).astype(float)
        assert abs(float(drawn.mean()) - float(p)) < 5 * 0.3 / 1000

    @pytest.mark.parametrize("dtype", [bool, np.int64, *thorough(np.uint8)])
    def test_whole_numbers_are_data_too(self, dtype):
        params, v = machine(), batch()
        assert_close(rbm.free_energy(params, v.astype(dtype)), rbm.free_energy(params, v))
        a, b = (rbm.contrastive_divergence(params, KEY, x).gradients for x in (v.astype(dtype), v))
        assert_close(a, b, 0)

    @pytest.mark.thorough
    def test_single_examples_and_vmap(self):
        params, v = machine(), batch()
        assert_close(jax.vmap(rbm.free_energy, (None, 0))(params, v), rbm.free_energy(params, v))
        keys, many = jax.random.split(KEY, 3), jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), params)
        together = jax.vmap(functools.partial(rbm.contrastive_divergence, k=3), (0, 0, None))(many, keys, v)
        one = rbm.contrastive_divergence(jax.tree.map(lambda leaf: leaf[1], many), keys[1], v, k=3)
        assert_close(jax.tree.map(lambda leaf: leaf[1], together), one)


class TestPhases:
    @pytest.mark.parametrize("visible", KINDS)
    @pytest.mark.parametrize(("k", "chains"), [(1, None), (4, None), (2, 9)])
    def test_contrastive_divergence_against_autodiff(self, visible, k, chains):
        params, v = machine(), batch(visible=visible)
        start = None if chains is None else rbm.draw(KEY, jnp.full((chains, 4), 0.5))
        gradients, v_k, h = rbm.contrastive_divergence(params, KEY, v, start, k=k, visible=visible)
        assert v_k.shape == (chains or 7, 6)
        assert h.shape == (chains or 7, 4)

        def contrast(params):
            free = functools.partial(rbm.free_energy, visible=visible)
            return jnp.mean(free(params, v)) - jnp.mean(free(params, jax.lax.stop_gradient(v_k)))

        assert_close(gradients, jax.jit(jax.grad(contrast))(params))

    @pytest.mark.parametrize("visible", KINDS)
    def test_the_audit_passes_and_finds_a_planted_fault(self, visible):
        params, v = machine(), batch(visible=visible)
        mean_free_energy = lambda p: jnp.mean(rbm.free_energy(p, v, visible=visible))  # noqa: E731
        assert fn.check_gradient(mean_free_energy, lambda p: rbm.phase(p, v, visible=visible), params).ok
        wrong = lambda p: {**rbm.phase(p, v, visible=visible), "c": -rbm.hidden_probabilities(p, v)[0]}  # noqa: E731
        report = fn.check_gradient(mean_free_energy, wrong, params)
        assert [row.leaf for row in report.rows if row.verdict == "fail"] == ["['c']"]

    @pytest.mark.parametrize("visible", KINDS)
    @pytest.mark.parametrize("size", [(6, 4), *thorough((4, 6), (3, 13))])
    def test_likelihood_gradient_against_autodiff(self, visible, size):
        n_v, n_h = size
        params, v = machine(n_v, n_h, 0.5), batch(n_v, visible=visible)

        def cost(params):
            log_z = rbm.log_partition(params, visible=visible)
            return -jnp.mean(rbm.log_probability(params, v, log_z, visible=visible))

        assert_close(rbm.likelihood_gradient(params, v, visible=visible), jax.jit(jax.grad(cost))(params))

    def test_sparsity_against_autodiff(self):
        params, v = machine(), batch()
        sparsity = rbm.Sparsity(0.1, 3.0)
        grads = sparsity.gradient(params, v)
        assert not grads.pop("b").any()
        assert_close(grads, {n: g for n, g in jax.grad(sparsity.value)(params, v).items() if n != "b"})

    def test_the_same_under_jit_and_no_second_compilation(self):
        params, v = machine(), batch()
        jitted = jax.jit(rbm.contrastive_divergence)
        assert_close(jitted(params, KEY, v, k=3), rbm.contrastive_divergence(params, KEY, v, k=3))
        compiled = jitted._cache_size(), rbm.contrast.contrast._cache_size()
        for k in (1, 5):
            assert_close(jitted(params, KEY, 1 - v, k=k), rbm.contrastive_divergence(params, KEY, 1 - v, k=k))
        own, other = (rbm.contrastive_divergence(params, KEY, v, k=k) for k in (2, np.uint8(2)))
        assert_close(own, other, 0)
        assert (jitted._cache_size(), rbm.contrast.contrast._cache_size()) == compiled


def transition(params, v, h):
    """The matrix of one Gibbs step between the states of v."""
    up, down = rbm.hidden_probabilities(params, v), rbm.visible_means(params, h)
    to_h = jnp.prod(jnp.where(h[None] == 1, up[:, None], 1 - up[:, None]), axis=-1)
    to_v = jnp.prod(jnp.where(v[None] == 1, down[:, None], 1 - down[:, None]), axis=-1)
    return to_h @ to_v


class TestStatistics:
    def expected(self, k):
        """The expectation of CD-k's gradient by w, exactly, for data that is the states 3, 7 and 18."""
        params, v, h, p, _ = joint()
        start = jnp.zeros(len(v)).at[jnp.array([3, 7, 18])].set(1 / 3)
        share = p.sum(1) if k is None else start @ jnp.linalg.matrix_power(transition(params, v, h), k)
        return jnp.einsum("x,xj,xi->ji", share - start, rbm.hidden_probabilities(params, v), v)

    @pytest.mark.thorough
    def test_the_bias_of_contrastive_divergence_shrinks(self):
        """Towards the likelihood's gradient, by the second eigenvalue of the Gibbs step."""
        params, v, _, _, _ = joint()
        exact = rbm.likelihood_gradient(params, v[jnp.array([3, 7, 18])])["w"]
        assert_close(self.expected(None), exact)
        bias = [float(jnp.linalg.norm(self.expected(k) - exact)) for k in (1, 2, 5, 10, 25, 50)]
        assert all(after < before / 1.2 for before, after in itertools.pairwise(bias)), bias
        assert bias[-1] < 0.01 * bias[0]

    @pytest.mark.thorough
    @pytest.mark.parametrize(("k", "other"), [(1, 2), (2, 1), (3, 1)])
    def test_sampled_contrastive_divergence_has_that_bias(self, k, other):
        """Each entry within 4.5 standard errors: all 20 hold in all but 1 of 7,000 runs. Another k's bias is not met."""
        params, v, _, _, _ = joint()
        data = jnp.repeat(v[jnp.array([3, 7, 18])], 25_000, axis=0)
        contrast = rbm.contrastive_divergence(params, KEY, data, k=k)
        entries = rbm.hidden_probabilities(params, contrast.v)[:, :, None] * contrast.v[:, None]
        error = jnp.std(entries, axis=0) / len(data) ** 0.5
        distance = lambda k: float(jnp.max(jnp.abs(contrast.gradients["w"] - self.expected(k)) / error))  # noqa: E731
        assert distance(k) < 4.5
        assert distance(other) > 4.5

    @pytest.mark.parametrize("fault", [False, *thorough(True)])
    @pytest.mark.parametrize(
        ("start", "k"), [("the distribution", 30), pytest.param("zeros", 200, marks=pytest.mark.thorough)]
    )
    def test_gibbs_sampling_has_the_right_stationary_distribution(self, start, k, fault):
        """Chi-square over all 32 states at 1 in 1,000; a machine with one bias 0.1 off is told apart."""
        params, v, _, p, _ = joint()
        used = {**params, "b": params["b"].at[2].add(0.1)} if fault else params
        drawn = np.random.default_rng(0).choice(32, 40_000, p=np.asarray(p.sum(1)))
        ends = rbm.gibbs(used, KEY, jnp.zeros((40_000, 5)) if start == "zeros" else v[drawn], k=k)
        counts = np.bincount(np.asarray(ends @ jnp.array([16.0, 8, 4, 2, 1])).astype(int), minlength=32)
        tail = scipy.stats.chisquare(counts, 40_000 * np.asarray(p.sum(1))).pvalue
        assert (tail < 1e-3) == fault, tail

    @pytest.mark.thorough
    def test_persistent_chains_reach_it_as_well(self):
        params, v, _, p, _ = joint()
        step = jax.jit(lambda key, h: rbm.contrastive_divergence(params, key, v[:1], h)[1:])
        h = jnp.zeros((20_000, 4))
        for key in jax.random.split(KEY, 150):
            ends, h = step(key, h)
        counts = np.bincount(np.asarray(ends @ jnp.array([16.0, 8, 4, 2, 1])).astype(int), minlength=32)
        assert scipy.stats.chisquare(counts, 20_000 * np.asarray(p.sum(1))).pvalue > 1e-3

    @pytest.mark.thorough
    @pytest.mark.usefixtures("optimised")
    @pytest.mark.parametrize("visible", ["bernoulli", *thorough("gaussian")])
    @pytest.mark.parametrize("size", [(8, 6, 100), *thorough((20, 10, 300), (8, 14, 300))])
    def test_annealed_importance_sampling_keeps_its_word(self, visible, size):
        """Within 3 of its own standard errors of enumeration in at least 95 of 100 runs."""
        n_v, n_h, betas = size
        params = machine(n_v, n_h, 0.5 if visible == "bernoulli" else 0.2)
        base = rbm.data_biases(batch(n_v, 50)) if visible == "bernoulli" else 0.3 * params["b"]
        run = functools.partial(rbm.annealed_importance_sampling, params, betas=betas, base=base, visible=visible)
        estimates = jax.jit(jax.vmap(run))(jax.random.split(KEY, 100))
        exact = rbm.log_partition(params, visible=visible)
        sigmas = jnp.abs(estimates.log_partition - exact) / estimates.standard_error
        assert int(jnp.sum(sigmas < 3)) >= 95
        assert int(jnp.sum(sigmas < 1)) <= 85  # the interval is not merely wide
        assert float(jnp.mean(estimates.standard_error)) < 0.1

    @pytest.mark.thorough
    def test_annealing_follows_the_given_sequence(self):
        params = machine(20, 10, 0.5)
        one_jump, evenly = (
            rbm.annealed_importance_sampling(params, KEY, betas=betas, chains=500) for betas in (1, 200)
        )
        assert evenly.standard_error < one_jump.standard_error / 5
        same = rbm.annealed_importance_sampling(params, KEY, betas=np.linspace(0, 1, 201), chains=500)
        assert_close(same, evenly)


def bars(n=3):
    """All 2^n patterns of n full rows, and their transposes: bars and stripes."""
    rows = np.repeat(np.asarray(states(n)).reshape(-1, n, 1), n, axis=2)
    return jnp.asarray(np.concatenate([rows, rows.transpose(0, 2, 1)]).reshape(-1, n * n))


def log_likelihood(params, x, visible="bernoulli"):
    log_z = rbm.log_partition(params, visible=visible)
    return float(jnp.mean(rbm.log_probability(params, x, log_z, visible=visible)))


TRAINING = {"key": KEY, "batch_size": 4, "optimizer": fn.sgd(0.1), "progress": False}


class TestFit:
    @pytest.mark.parametrize(
        "change",
        thorough({}, {"persistent": True, "k": 2}, {"k": lambda epoch: 1 + epoch // 100}),
        ids=["CD-1", "PCD-2", "CD with increasing k"],
    )
    def test_it_learns_bars_and_stripes(self, change):
        """The best is −2.59 nats (14 patterns, two of them twice as likely); coins have −6.24."""
        x, start = bars(), rbm.init(KEY, 9, 12, std=0.3)
        assert log_likelihood(start, x) < -6.2
        settings = {**TRAINING, "optimizer": fn.sgd(fn.CosineDecay(0.2, 2000)), **change}
        params, history = rbm.fit(start, x, epochs=500, **settings)
        assert log_likelihood(params, x) > -3.5
        assert history.reconstruction_error.shape == history.pseudo_likelihood.shape == (500,)
        assert history.free_energy_gap is None
        assert history.pseudo_likelihood[-1] > history.pseudo_likelihood[0] + 2

    @pytest.mark.thorough
    def test_gaussian_units_learn_two_clusters(self):
        x = jax.random.normal(KEY, (200, 3)) + jnp.where(jnp.arange(200)[:, None] % 2 == 0, 3.0, -3.0)
        params, history = rbm.fit(
            rbm.init(KEY, 3, 4), x, epochs=60, visible="gaussian", **{**TRAINING, "optimizer": fn.sgd(0.01)}
        )
        best = -1.5 * np.log(2 * np.pi * np.e) - np.log(2)
        assert log_likelihood(params, x, "gaussian") > best - 0.3
        assert history.pseudo_likelihood is None

    @pytest.mark.thorough
    def test_a_run_resumed_from_a_file_is_the_same_run(self, tmp_path):
        x = jax.random.uniform(KEY, (30, 9))
        settings = {
            **TRAINING,
            "optimizer": fn.sgd(0.1, momentum=0.5),
            "persistent": True,
            "k": lambda epoch: 1 + epoch,
            "penalty": fn.L2(0.1),
            "sparsity": rbm.Sparsity(0.2, 0.5),
            "validation": x[:10],
        }
        start = rbm.init(KEY, 9, 5)
        whole = rbm.fit(start, x, epochs=5, **settings)
        _, half = rbm.fit(start, x, epochs=2, **settings)
        fn.save(tmp_path / "half.npz", half.state)
        state = fn.load(tmp_path / "half.npz", like=half.state)
        resumed = rbm.fit(start, x, epochs=5, **{**settings, "resume": state, "key": None})
        chex.assert_trees_all_equal(whole[0], resumed[0])
        chex.assert_trees_all_equal(whole[1][:3], resumed[1][:3])
        assert whole[1].free_energy_gap.shape == (5,)

    @pytest.mark.thorough
    def test_an_interrupted_run_gives_what_it_has(self):
        def k(epoch):
            if epoch == 3:
                raise KeyboardInterrupt
            return 1

        _, history = rbm.fit(rbm.init(KEY, 9, 5), bars(), epochs=9, k=k, **TRAINING)
        assert int(history.state.epoch) == len(history.reconstruction_error) == 3

    @pytest.mark.thorough
    def test_epochs_are_their_steps(self):
        """The scan, the smaller last mini-batch, k by epoch and each gradient that is added, against a plain loop."""
        x, start = jax.random.uniform(KEY, (10, 9)), rbm.init(KEY, 9, 5)
        penalty, sparsity = fn.L2(0.3), rbm.Sparsity(0.2, 0.5)
        k = lambda epoch: 1 + 2 * epoch  # noqa: E731
        fitted, _ = rbm.fit(start, x, epochs=2, penalty=penalty, sparsity=sparsity, k=k, **TRAINING)
        params = start
        for epoch in range(2):
            shuffle_key, step_key = jax.random.split(jax.random.fold_in(KEY, epoch + 1))
            order = jax.random.permutation(shuffle_key, 10)
            for i in range(3):
                v = x[order[4 * i : 4 * i + 4]]
                parts = (
                    rbm.contrastive_divergence(params, jax.random.fold_in(step_key, i), v, k=k(epoch)).gradients,
                    penalty.gradient(params, 10),
                    sparsity.gradient(params, v),
                )
                params = jax.tree.map(lambda p, *g: p - 0.1 * sum(g), params, *parts)
        assert_close(fitted, params)

    @pytest.mark.thorough
    def test_large_data_is_monitored_in_part(self, monkeypatch):
        x = jax.random.uniform(KEY, (30, 9))
        params, whole = rbm.fit(rbm.init(KEY, 9, 5), x, epochs=1, validation=x, **TRAINING)
        assert whole.reconstruction_error[0] == pytest.approx(float(rbm.reconstruction_error(params, x)))
        assert abs(whole.free_energy_gap[0]) < 1e-12
        monkeypatch.setattr(rbm.training, "MONITORED", 10)
        same, part = rbm.fit(rbm.init(KEY, 9, 5), x, epochs=1, validation=x, **TRAINING)
        chex.assert_trees_all_equal(same, params)
        assert part.reconstruction_error[0] != whole.reconstruction_error[0]
        assert abs(part.free_energy_gap[0]) > 1e-6

    @pytest.mark.thorough
    def test_weight_decay_sparsity_and_any_optimizer(self):
        x, start = bars(), rbm.init(KEY, 9, 12)
        plain, _ = rbm.fit(start, x, epochs=60, **TRAINING)
        decayed, _ = rbm.fit(start, x, epochs=60, penalty=fn.L2(2.0), **TRAINING)
        assert jnp.sum(decayed["w"] ** 2) < 0.5 * jnp.sum(plain["w"] ** 2)
        sparse, _ = rbm.fit(start, x, epochs=60, sparsity=rbm.Sparsity(0.1, 5.0), **TRAINING)
        activity = [float(jnp.mean(rbm.hidden_probabilities(p, x))) for p in (plain, sparse)]
        assert abs(activity[1] - 0.1) < 0.5 * abs(activity[0] - 0.1)
        given = {**TRAINING, "optimizer": optax.sgd(0.1)}
        assert_close(rbm.fit(start, x, epochs=3, **given)[0], rbm.fit(start, x, epochs=3, **TRAINING)[0])

    @pytest.mark.thorough
    def test_the_gap_shows_overfitting(self):
        """Twelve random patterns are learned by heart."""
        x = rbm.draw(KEY, jnp.full((24, 12), 0.5))
        _, history = rbm.fit(rbm.init(KEY, 12, 30), x[:12], epochs=150, validation=x[12:], **TRAINING)
        assert history.free_energy_gap[-1] > history.free_energy_gap[0] + 2

    @pytest.mark.parametrize(
        ("visible", "rate", "message"),
        [
            ("bernoulli", 1e3, "times worse than parameters of 0"),
            ("gaussian", 10.0, "times worse than parameters of 0"),
            ("gaussian", np.inf, "a parameter is not finite"),
        ],
    )
    def test_divergence_is_said(self, visible, rate, message):
        start, x = rbm.init(KEY, 6, 4), batch(m=40, visible=visible)
        said = rf"rbm.fit: training diverged in epoch 1: .*{message}.*; lower the learning rate"
        with pytest.raises(fn.Diverged, match=said) as caught:
            rbm.fit(start, x, epochs=5, visible=visible, **{**TRAINING, "optimizer": fn.sgd(rate)})
        chex.assert_trees_all_equal(caught.value.params, start)
        assert caught.value.epoch == 1
        assert caught.value.layer is None
        assert len(caught.value.history.reconstruction_error) == 0

    @pytest.mark.thorough
    def test_digits_at_an_absurd_learning_rate(self, digits):
        """Every hidden unit saturates, but all numbers stay finite."""
        x = digits[0][0].reshape(-1, 784)
        with pytest.raises(fn.Diverged, match="times worse than parameters of 0"):
            rbm.fit(rbm.init(KEY, 784, 50, data=x), x, epochs=3, **{**TRAINING, "optimizer": fn.sgd(100.0)})

    @pytest.mark.parametrize(
        ("x", "std", "visible", "rate"),
        [
            (jax.random.normal(KEY, (100, 50)), 0.5, "gaussian", 1e-4),
            (0.1 * jax.random.normal(KEY, (100, 50)), 0.1, "gaussian", 1e-4),
            (rbm.draw(KEY, jnp.full((100, 50), 0.5)), 2.0, "bernoulli", 1e-2),
            (rbm.draw(KEY, jnp.full((100, 50), 0.5)), 0.0, "bernoulli", 1e-9),
            (jnp.zeros((100, 50)), 0.01, "gaussian", 1e-3),
        ],
        ids=["large weights", "small data", "large weights, bernoulli", "hardly a step", "nothing but zeros"],
    )
    def test_a_bad_start_is_not_divergence(self, x, std, visible, rate):
        start = rbm.init(KEY, 50, 100, std=std)
        settings = {**TRAINING, "batch_size": 20, "optimizer": fn.sgd(rate)}
        _, history = rbm.fit(start, x, epochs=5, visible=visible, **settings)
        assert len(history.reconstruction_error) == 5

    @pytest.mark.thorough
    def test_keys_are_used_once(self):
        with jax.debug_key_reuse(True):
            start = rbm.init(jax.random.key(0), 9, 5)
            rbm.fit(start, bars(), epochs=2, persistent=True, validation=bars(), **TRAINING)

    @pytest.mark.thorough
    def test_data_of_another_precision(self):
        for visible in KINDS:
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), machine())
            fitted, _ = rbm.fit(params, batch(visible=visible), epochs=1, visible=visible, **TRAINING)
            chex.assert_trees_all_equal_dtypes(fitted, params)


X = np.full((8, 6), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: rbm.fit(p, X * 4, epochs=1, **TRAINING), r"expected data from 0 to 1 .* from 2 to 2; scale"),
        (lambda p: rbm.fit(p, X - 1, epochs=1, **TRAINING), r"for Bernoulli visible units, got values from -0.5"),
        (lambda p: rbm.fit(p, X * np.nan, epochs=1, **TRAINING), r"for Bernoulli visible units, got values from nan"),
        (lambda p: rbm.fit(p, X / 0.0, epochs=1, visible="gaussian", **TRAINING), r"rbm.fit: expected finite data"),
        (lambda p: rbm.fit(p, X, epochs=1, validation=X * 3, **TRAINING), r"expected validation from 0 to 1"),
        (lambda p: rbm.fit(p, X, epochs=1, k=0, **TRAINING), r"rbm.fit: expected k to be an integer of at least 1, got 0"),
        (lambda p: rbm.fit(p, X, epochs=1, k=lambda e: 0.5, **TRAINING), r"expected k to be an integer .*, got 0.5"),
        (lambda p: rbm.fit(p, X, epochs=True, **TRAINING), r"rbm.fit: expected epochs to be an integer .*, got True"),
        (lambda p: rbm.fit(p, X, epochs=1, k=True, **TRAINING), r"rbm.fit: expected k to be an integer .*, got True"),
        (lambda p: rbm.fit(p, X, epochs=1, every=0, **TRAINING), r"rbm.fit: expected every to be an integer of at least 1"),
        (lambda p: rbm.fit(p, X, epochs=1, checkpoint=1, **TRAINING), r"rbm.fit: expected checkpoint= the path of a folder"),
        (lambda p: rbm.fit(p, X, epochs=-1, **TRAINING), r"expected epochs to be an integer of at least 0, got -1"),
        (lambda p: rbm.fit(p, X, epochs=1, **{**TRAINING, "batch_size": 0}), r"expected batch_size to be an integer"),
        (lambda p: rbm.fit(p, X, epochs=1, **{**TRAINING, "key": None}), r"rbm.fit: expected a key"),
        (lambda p: rbm.fit(p, X, epochs=1, **{**TRAINING, "optimizer": 0.1}), r"rbm.fit: expected an optimizer"),
        (lambda p: rbm.fit(p, X, epochs=1, penalty=0.1, **TRAINING), r"penalty: expected an object with value"),
        (lambda p: rbm.fit(p, X, epochs=1, sparsity=0.1, **TRAINING), r"expected sparsity=rbm.Sparsity\(target, cost\)"),
        (lambda p: rbm.fit(p, X, epochs=1, resume=3, **TRAINING), r"rbm.fit: expected resume=.* or a path, got int"),
        (lambda p: rbm.fit(p, X, epochs=1, visible="real", **TRAINING), r"visible='bernoulli' or 'gaussian', got 'real'"),
        (lambda p: rbm.fit(p, X[:0], epochs=1, **TRAINING), r"expected a batch \(m, n_v\) of at least one example"),
        (lambda p: rbm.fit(p, X[:, :5], epochs=1, **TRAINING), r"expected data with the machine's 6 visible units"),
        (lambda p: rbm.contrastive_divergence(p, KEY, X * 4), r"contrastive_divergence: expected v from 0 to 1"),
        (lambda p: rbm.contrastive_divergence(p, KEY, X, k=0), r"expected k to be an integer of at least 1, got 0"),
        (lambda p: rbm.contrastive_divergence(p, KEY, X, jnp.ones((3, 5))), r"expected h with the machine's 4 hidden units"),
        (lambda p: rbm.gibbs(p, KEY, X, k=1.5), r"rbm.gibbs: expected k to be an integer"),
        (lambda p: rbm.free_energy(p, jnp.ones((2, 28, 28))), r"6 visible units on the last axis, .*; flatten images"),
        (lambda p: rbm.energy(p, X, jnp.ones((8, 3))), r"expected h with the machine's 4 hidden units"),
        (lambda p: rbm.free_energy(p, X, visible="relu"), r"expected visible='bernoulli' or 'gaussian'"),
        (lambda p: rbm.phase(p, jnp.ones(6)), r"expected a batch \(m, n_v\)"),
        (lambda p: rbm.free_energy({"w": p["w"]}, X), r"expected parameters \{w .*\}, got \{'w': 'shape \(4, 6\)'\}"),
        (lambda p: rbm.free_energy([p], X), r"expected parameters .*, got list"),
        (lambda p: rbm.free_energy({**p, "c": p["b"]}, X), r"expected parameters .*'c': 'shape \(6,\)'.*make them with"),
        (lambda p: rbm.log_partition(machine(30, 25)), r"at most 20 hidden or visible units .*, got 25 hidden and 30"),
        (lambda p: rbm.log_partition(machine(6, 25), visible="gaussian"), r"at most 20 hidden units to enumerate"),
        (lambda p: rbm.likelihood_gradient(machine(30, 25), jnp.ones((1, 30))), r"annealed_importance_sampling"),
        (lambda p: rbm.annealed_importance_sampling(p, KEY, chains=1), r"expected chains to be an integer of at least 2"),
        (lambda p: rbm.annealed_importance_sampling(p, KEY, betas=0), r"expected betas to be an integer of at least 1"),
        (lambda p: rbm.annealed_importance_sampling(p, KEY, betas=[0, 0.5]), r"betas that increase from 0 to 1"),
        (lambda p: rbm.annealed_importance_sampling(p, KEY, betas=[0, 0.7, 0.5, 1]), r"betas that increase from 0 to 1"),
        (lambda p: rbm.annealed_importance_sampling(p, KEY, base=jnp.ones(3)), r"base biases of shape \(6,\), got \(3,\)"),
        (lambda p: rbm.init(KEY, 0, 4), r"rbm.init: expected n_visible to be an integer of at least 1"),
        (lambda p: rbm.init(KEY, 6, 2.5), r"rbm.init: expected n_hidden to be an integer"),
        (lambda p: rbm.init(None, 6, 2), r"rbm.init: expected a key"),
        (lambda p: rbm.init(KEY, 5, 2, data=X), r"expected data \(m, 5\) for n_visible=5, got 6 columns"),
        (lambda p: rbm.data_biases(X[:0]), r"of at least one example"),
        (lambda p: rbm.data_biases(X * 255), r"rbm.data_biases: expected data from 0 to 1 .* to 127.5"),
        (lambda p: rbm.init(KEY, 6, 2, data=X - 3), r"expected data from 0 to 1"),
        (lambda p: rbm.phase(p, X.tolist()), r"expected v with the machine's 6 visible units .*, got list"),
        (lambda p: rbm.free_energy({**p, "w": [[1.0]]}, X), r"expected parameters .*'w': 'list'"),
        (lambda p: rbm.log_partition({"w": p["w"]}), r"expected parameters"),
        (lambda p: rbm.annealed_importance_sampling([p], KEY), r"expected parameters .*, got list"),
        (lambda p: rbm.log_probability(p, X, rbm.annealed_importance_sampling(p, KEY)), r"give its .log_partition"),
        (lambda p: rbm.annealed_importance_sampling(p, None), r"rbm.annealed_importance_sampling: expected a key"),
        (lambda p: jax.jit(lambda key: rbm.annealed_importance_sampling(p, key, betas=[0, 0.5]))(KEY), r"from 0 to 1"),
        (lambda p: rbm.gibbs(p, 3, X), r"key: expected one PRNG key"),
        (lambda p: rbm.contrastive_divergence(p, None, X), r"rbm.contrastive_divergence: expected a key"),
        (lambda p: rbm.gibbs(p, KEY, X, k="a"), r"expected k to be an integer of at least 1, got 'a'"),
        (lambda p: rbm.Sparsity(0.1, 1.0).gradient(p, X[:0]), r"of at least one example"),
        (lambda p: rbm.Sparsity(1.5, 1.0), r"Sparsity: expected a target from 0 to 1"),
        (lambda p: rbm.Sparsity(0.5, -1.0), r"Sparsity: expected a cost ≥ 0"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message):
        call(machine())


def test_data_that_a_compiled_function_closes_over_is_checked():
    params, good, bad = rbm.init(KEY, 4, 2), jnp.full((3, 4), 0.5), jnp.full((3, 4), 2.0)
    jax.eval_shape(lambda key: rbm.contrastive_divergence(params, key, good), KEY)
    with pytest.raises(ValueError, match="expected v from 0 to 1"):
        jax.eval_shape(lambda key: rbm.contrastive_divergence(params, key, bad), KEY)


def test_a_state_of_another_run_is_refused():
    _, history = rbm.fit(machine(), X, epochs=1, **TRAINING)
    with pytest.raises(
        ValueError, match=r"rbm.fit: expected resume= a state of a run with the same .* resume with the same"
    ):
        rbm.fit(machine(), X, epochs=2, **{**TRAINING, "resume": history.state, "persistent": True})


def test_every_name_is_tested():
    here = Path(__file__).read_text()
    assert [name for name in rbm.__all__ if name[0].islower() and not re.search(rf"rbm\.{name}\b", here)] == []
