"""Stacks of Boltzmann machines: greedy training, what they unroll into, and what they generate."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import fnnet as fn
from fnnet import dbn, rbm

from .cases import thorough
from .test_rbm import assert_close, machine

KEY = jax.random.key(7)
X = jax.random.uniform(KEY, (20, 8))
TRAINING = {"key": KEY, "epochs": 3, "batch_size": 6, "optimizer": fn.sgd(0.1), "progress": False}
UNTRAINED = {**TRAINING, "epochs": 0}


@pytest.fixture(scope="module")
def stack():
    return machine(8, 5), machine(5, 6, seed=1), machine(6, 3, seed=2)


class TestPretraining:
    @pytest.mark.thorough
    def test_each_machine_learns_the_one_below(self):
        stack, histories = dbn.pretrain(X, (5, 4), **TRAINING)
        v = X
        for i, n in enumerate((5, 4)):
            init_key, fit_key = jax.random.split(jax.random.fold_in(KEY, i))
            start = rbm.init(init_key, v.shape[1], n, data=v)
            alone, _ = rbm.fit(start, v, **{**TRAINING, "key": fit_key})
            chex.assert_trees_all_equal(stack[i], alone)
            v = rbm.hidden_probabilities(alone, v)
        assert_close(dbn.up(stack, X), v)
        assert [len(h.reconstruction_error) for h in histories] == [3, 3]

    @pytest.mark.thorough
    def test_real_data_and_held_out_data(self):
        stack, histories = dbn.pretrain(
            X - 3, (5, 4), visible="gaussian", validation=X[:4] - 3, **{**TRAINING, "optimizer": fn.sgd(0.001)}
        )
        assert histories[0].pseudo_likelihood is None
        assert histories[1].pseudo_likelihood.shape == histories[1].free_energy_gap.shape == (3,)
        assert dbn.up(stack, X - 3).shape == (20, 4)

    @pytest.mark.thorough
    def test_a_resumed_stack_is_the_same_stack(self, tmp_path):
        """Interrupted in the second machine, saved, loaded and resumed."""
        calls = []

        def k(epoch):
            calls.append(epoch)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return 1

        whole, _ = dbn.pretrain(X, [5, 4, 3], **TRAINING)
        part, histories = dbn.pretrain(X, [5, 4, 3], k=k, **TRAINING)
        assert len(part) == 2
        assert [int(history.state.epoch) for history in histories] == [3, 2]
        fn.save(tmp_path / "stack.npz", histories)
        histories = fn.load(tmp_path / "stack.npz", like=histories)
        resumed, _ = dbn.pretrain(X, [5, 4, 3], resume=histories, **TRAINING)
        chex.assert_trees_all_equal(resumed, whole)

    @pytest.mark.thorough
    @pytest.mark.parametrize("name", ["init", "hidden_probabilities"])
    def test_an_interruption_between_two_machines(self, name, monkeypatch):
        """Nothing is lost, and nothing is trained after it."""
        whole, _ = dbn.pretrain(X, (5, 4), **TRAINING)
        original, calls = getattr(rbm, name), []

        def interrupted(*args, **given):
            calls.append(args)
            if len(calls) == {"init": 2, "hidden_probabilities": 1}[name]:
                raise KeyboardInterrupt
            return original(*args, **given)

        with monkeypatch.context() as patched:
            patched.setattr(dbn.rbm, name, interrupted)
            part, histories = dbn.pretrain(X, (5, 4), **{**TRAINING, "key": KEY})
        assert len(part) == len(histories) <= 1
        resumed, _ = dbn.pretrain(X, (5, 4), resume=histories, **TRAINING)
        chex.assert_trees_all_equal(resumed, whole)

    def test_divergence_names_the_machine_and_keeps_the_others(self):
        def update(grads, step, params):
            leap = jnp.inf if params["w"].shape == (4, 5) else 0.0
            return jax.tree.map(lambda g: jnp.where(step == 1, leap, -0.1) * g, grads), step + 1

        optimizer = types.SimpleNamespace(init=lambda params: 0, update=update)
        settings = {**TRAINING, "batch_size": 20, "epochs": 2, "optimizer": optimizer}
        with pytest.raises(
            fn.Diverged, match=r"dbn.pretrain: machine 1: rbm.fit: training diverged in epoch 2"
        ) as caught:
            dbn.pretrain(X, (5, 4, 3), **settings)
        assert [int(history.state.epoch) for history in caught.value.history] == [2, 1]
        chex.assert_trees_all_equal(caught.value.params, tuple(h.state.params for h in caught.value.history))

    def test_a_stack_is_saved_as_any_parameters_are(self, stack, tmp_path):
        fn.save(tmp_path / "stack.npz", stack)
        chex.assert_trees_all_equal(fn.load(tmp_path / "stack.npz"), stack)


class TestUnrolling:
    @pytest.mark.thorough
    def test_a_network_computes_what_the_stack_does(self, stack):
        net, params = dbn.to_network(stack, KEY, fn.Dense(4, fn.softmax))
        chex.assert_trees_all_equal_shapes_and_dtypes(params, net.init(KEY, (8,)))
        assert_close(net[:3].apply(params[:3], X), dbn.up(stack, X))
        y = jnp.arange(20) % 4
        assert fn.compare_gradients(net, fn.log_likelihood, params, X, y).ok
        settings = {"key": KEY, "epochs": 20, "batch_size": 5, "optimizer": fn.adam(0.02), "progress": False}
        tuned, history = fn.fit(net, fn.log_likelihood, params, (X, y), **settings)
        assert history.cost[-1] < 0.8 * fn.evaluate(net, fn.log_likelihood, params, (X, y))[0]
        chex.assert_trees_all_equal_shapes_and_dtypes(tuned, params)

    @pytest.mark.thorough
    @pytest.mark.parametrize("visible", ["bernoulli", *thorough("gaussian")])
    def test_an_autoencoder_goes_up_and_down(self, stack, visible):
        net, params = dbn.to_autoencoder(stack, visible=visible)
        assert len(net) == 6
        assert_close(net[:3].apply(params[:3], X), dbn.up(stack, X))
        down = dbn.up(stack, X)
        for i in (2, 1, 0):
            down = rbm.visible_means(stack[i], down, visible=visible if i == 0 else "bernoulli")
        assert_close(net.apply(params, X), down)
        cost = fn.quadratic if visible == "gaussian" else fn.cross_entropy
        assert fn.compare_gradients(net, cost, params, X, X).ok
        assert_close(
            dbn.to_autoencoder(stack[:1], visible=visible)[0].apply(
                dbn.to_autoencoder(stack[:1], visible=visible)[1], X
            ),
            rbm.reconstruct(stack[0], X, visible=visible),
        )

    def test_codes_without_bounds(self, stack):
        net, params = dbn.to_autoencoder(stack, code=fn.linear)
        assert_close(net[:3].apply(params[:3], X), rbm.hidden_inputs(stack[2], dbn.up(stack[:2], X)))


class TestGeneration:
    @pytest.mark.thorough
    def test_one_machine_generates_its_own_distribution(self):
        """The top machine of a stack of one: the mean of what is drawn is E[v], by enumeration."""
        params = machine(5, 3)
        many = jnp.zeros((20_000, 5))
        made = dbn.generate((params,), KEY, many, k=50)
        states = jnp.array([[i >> j & 1 for j in range(5)] for i in range(32)], float)
        share = jnp.exp(rbm.log_probability(params, states, rbm.log_partition(params)))
        np.testing.assert_allclose(made.mean(0), share @ states, atol=5 * 0.5 / 20_000**0.5)

    @pytest.mark.thorough
    def test_the_machines_below_are_drawn_from_above(self):
        """Two machines: v's mean is Σ_h p(h) E[v | h] with p(h) from the top machine, not from the bottom one."""
        below, top = machine(5, 4), machine(4, 3, seed=3)
        made = dbn.generate((below, top), KEY, jnp.zeros((20_000, 5)), k=50)
        states = jnp.array([[i >> j & 1 for j in range(4)] for i in range(16)], float)
        share = jnp.exp(rbm.log_probability(top, states, rbm.log_partition(top)))
        expected = share @ rbm.visible_means(below, states)
        assert float(jnp.max(jnp.abs(made.mean(0) - expected))) < 5 * 0.5 / 20_000**0.5
        wrong = jnp.exp(-rbm.free_energy({"w": below["w"].T, "b": below["c"], "c": below["b"]}, states))
        wrong = (wrong / wrong.sum()) @ rbm.visible_means(below, states)
        assert float(jnp.max(jnp.abs(made.mean(0) - wrong))) > 5 * 0.5 / 20_000**0.5

    @pytest.mark.thorough
    def test_k_steps_are_k_steps(self):
        """From a given start, by enumeration of the top machine's hidden units and of what they are drawn into."""
        below, top = machine(5, 4), machine(4, 3, seed=3)
        h = jnp.array([[i >> j & 1 for j in range(3)] for i in range(8)], float)
        s = jnp.array([[i >> j & 1 for j in range(4)] for i in range(16)], float)
        down = jnp.prod(jnp.where(s == 1, (p := rbm.visible_means(top, h)[:, None]), 1 - p), axis=-1)
        up = lambda v: jnp.prod(jnp.where(h == 1, (p := rbm.hidden_probabilities(top, v)[:, None]), 1 - p), -1)  # noqa: E731
        one = up(dbn.up((below,), jnp.ones((1, 5)))) @ down
        for k, share in ((1, one), (2, one @ (up(s) @ down))):
            made = dbn.generate((below, top), KEY, jnp.ones((40_000, 5)), k=k)
            expected = (share @ rbm.visible_means(below, s))[0]
            np.testing.assert_allclose(made.mean(0), expected, atol=5 * 0.5 / 40_000**0.5)
        alone = dbn.generate((below,), KEY, jnp.ones((40_000, 5)), k=1).mean(0)
        expected = dbn.up((below,), jnp.ones((1, 5)))  # each hidden unit is drawn by itself
        h = jnp.array([[i >> j & 1 for j in range(4)] for i in range(16)], float)
        share = jnp.prod(jnp.where(h == 1, expected, 1 - expected), axis=-1)
        np.testing.assert_allclose(alone, share @ rbm.visible_means(below, h), atol=5 * 0.5 / 40_000**0.5)

    def test_real_data(self, stack):
        made = dbn.generate(stack, KEY, X, k=2, visible="gaussian")
        assert made.shape == X.shape
        assert (made < 0).any()


def trained_on(before, sizes):
    dbn.pretrain(X, sizes, resume=dbn.pretrain(X, before, **UNTRAINED)[1], **UNTRAINED)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: dbn.up((s[0], s[2]), X), r"dbn: expected machine 1 with 5 visible units, .* machine 0, got 6"),
        (lambda s: dbn.to_network((s[1], s[0]), KEY, fn.Dense(2, fn.softmax)), r"machine 1 with 6 visible units"),
        (lambda s: dbn.to_autoencoder((s[0], s[0])), r"train it on dbn.up of the machines below"),
        (lambda s: dbn.generate((s[0], s[2]), KEY, X, k=1), r"expected machine 1"),
        (lambda s: dbn.to_autoencoder(s, visible="gausian"), r"expected visible='bernoulli' or 'gaussian', got 'gausian'"),
        (lambda s: dbn.pretrain(X, (5,), **{**TRAINING, "key": None}), r"dbn.pretrain: expected a key"),
        (lambda s: dbn.pretrain(X.reshape(-1, 2, 4), (5,), **TRAINING), r"flatten images"),
        (lambda s: dbn.pretrain(X, (5,), resume=3, **TRAINING), r"resume= the histories of an earlier call, got int"),
        (lambda s: dbn.generate(s, KEY, X, k=0), r"expected k to be an integer of at least 1"),
        (lambda s: dbn.up((), X), r"a tuple of at least one machine \{w, b, c\}, got an empty one"),
        (lambda s: dbn.up(s[0], X), r"expected a stack, .*, got dict"),
        (lambda s: dbn.up((s[0], X), X), r"dbn: machine 1: expected parameters \{w"),
        (lambda s: dbn.up(s, X[:, :3]), r"expected v with the machine's 8 visible units"),
        (lambda s: dbn.pretrain(X, (), **TRAINING), r"dbn.pretrain: expected sizes, .*, got \(\)"),
        (lambda s: dbn.pretrain(X, 5, **TRAINING), r"dbn.pretrain: expected sizes, .*, got 5"),
        (lambda s: dbn.pretrain(X, (5, 0), **UNTRAINED), r"n_hidden to be an integer of at least 1, got 0"),
        (lambda s: dbn.pretrain(X * 9, (5,), **TRAINING), r"expected data from 0 to 1"),
        (lambda s: trained_on((5, 4), (5,)), r"got machines of \(5, 4\) hidden units; resume with"),
        (lambda s: trained_on((5,), (6,)), r"resume with the same arguments"),
    ],
)  # fmt: skip
def test_bad_input(call, message, stack):
    with pytest.raises(ValueError, match=message):
        call(stack)


@pytest.mark.thorough
def test_the_pretrained_start_is_better_than_a_random_one(digits):
    """100 labels, all else equal; the full measurement is examples/belief_network.py."""
    (images, labels), (test_images, test_labels) = digits
    x, test = (jnp.asarray(part.reshape(-1, 784), float) for part in (images, test_images))
    stack, _ = dbn.pretrain(x, (100,), **{**TRAINING, "epochs": 30, "batch_size": 20, "optimizer": fn.sgd(0.1)})
    net, pretrained = dbn.to_network(stack, KEY, fn.Dense(10, fn.softmax))
    settings = {"key": KEY, "epochs": 60, "batch_size": 10, "optimizer": fn.sgd(0.1), "progress": False}
    right = []
    for params in (pretrained, net.init(KEY, (784,))):
        params, _ = fn.fit(net, fn.log_likelihood, params, (x[:100], labels[:100]), **settings)
        right.append(fn.evaluate(net, fn.log_likelihood, params, (test, test_labels))[1])
    assert right[0] > right[1]


@pytest.mark.thorough
def test_samples_of_the_machine_are_not_its_means():
    """generate draws hidden units: equal starts give samples whose counts pass chi-square."""
    params = machine(4, 3)
    made = dbn.generate((params,), KEY, jnp.zeros((4000, 4)), k=60)
    hidden = jnp.array([[i >> j & 1 for j in range(3)] for i in range(8)], float)
    which = np.argmin(np.abs(np.asarray(made)[:, None] - np.asarray(rbm.visible_means(params, hidden))).sum(-1), axis=1)
    swapped = {"w": params["w"].T, "b": params["c"], "c": params["b"]}
    share = np.asarray(jnp.exp(-rbm.free_energy(swapped, hidden) - rbm.log_partition(params)))
    assert scipy.stats.chisquare(np.bincount(which, minlength=8), 4000 * share / share.sum()).pvalue > 1e-3
