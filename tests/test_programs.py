"""Calls from a Python loop: which programs are kept, what is checked at each call, what bad data is told."""

import copy
import gc
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet import given as checks
from fnnet.backpropagation import _backprop, _value_and_grad
from fnnet.programs import KEPT, program

NET = fn.Network(fn.Dense(4, fn.sigmoid), fn.Dense(3, fn.softmax))


@pytest.fixture(scope="module")
def given():
    """Parameters, inputs and labels."""
    return NET.init(jax.random.key(0), (5,)), jnp.ones((6, 5)), jnp.arange(6) % 3


class TestPrograms:
    def test_equal_arguments_give_one_program(self):
        equal = fn.Network(fn.Dense(4, fn.sigmoid), fn.Dense(3, fn.softmax))
        assert program(_backprop, NET, fn.quadratic) is program(_backprop, equal, fn.quadratic)
        assert program(_backprop, NET, fn.quadratic) is not program(_backprop, NET, fn.cross_entropy)

    def test_what_nobody_uses_is_freed(self):
        def function(scale, x):
            return scale * x

        held = program(function, 2.0)
        freed = weakref.ref(program(function, 3.0))
        assert (held(jnp.ones(2)) == 2).all()
        assert (freed()(jnp.ones(2)) == 3).all()
        for i in range(KEPT):
            program(function, i, fresh=True)
        gc.collect()
        assert freed() is None
        assert (held(jnp.ones(2)) == 2).all()

    def test_a_function_holds_its_program(self, given):
        f = fn.value_and_grad(NET, fn.log_likelihood)
        f(*given)
        own = program(
            _value_and_grad, NET, fn.log_likelihood, micro_batch="auto", positions=None, carry=False, over=None
        )
        for i in range(KEPT):
            program(_value_and_grad, fn.Dense(1 + i, fn.linear), fn.quadratic)
        f(*given)
        assert own._cache_size() == 1


class TestTargetsAreFetchedOnce:
    @pytest.fixture
    def fetched(self, monkeypatch):
        seen, check, look = [], checks.check_targets, checks.Seen.look
        monkeypatch.setattr(checks, "check_targets", lambda *given: seen.append(given[2][-1]) or check(*given))
        monkeypatch.setattr(checks.Seen, "look", lambda self, *given: seen.append(self.shape[-1]) or look(self, *given))
        return seen

    def test_for_each_array_and_network(self, given, fetched):
        params, x, y = given[0], given[1], jnp.array([2, 1, 0, 0, 1, 2])
        f, g = fn.value_and_grad(NET, fn.log_likelihood), fn.objective(NET, fn.log_likelihood)
        for _ in range(3):
            f(params, x, y)
            g(params, x, y)
        assert fetched == [3]
        f(params, x, y + 0)
        assert fetched == [3, 3]
        narrow = fn.Network(fn.Dense(4, fn.sigmoid), fn.Dense(2, fn.softmax))
        with pytest.raises(ValueError, match="expected labels from 0 to 1, got 2 at example 0"):
            fn.value_and_grad(narrow, fn.log_likelihood)(narrow.init(jax.random.key(0), (5,)), x, y)

    def test_and_a_wrong_label_is_an_error_in_a_later_call_too(self, given):
        params, x, y = given[0], given[1], jnp.array([2, 1, 0, 0, 1, 2])
        f, g = fn.value_and_grad(NET, fn.log_likelihood), fn.objective(NET, fn.log_likelihood)
        calls = (f, g, lambda *given: fn.backprop(NET, fn.log_likelihood, *given))
        for wrong, got in ((y.at[3].set(3), "3 at example 3"), (y.at[1].set(-1), "-1 at example 1")):
            for call in calls:
                call(params, x, y + 0)
                with pytest.raises(ValueError, match=f"expected labels from 0 to 2, got {got}"):
                    call(params, x, wrong)
                with jax.debug_nans(True), pytest.raises(ValueError, match=f"expected labels from 0 to 2, got {got}"):
                    call(params, x, wrong)

    def test_what_is_known_of_batches_is_bounded(self, given):
        f = fn.objective(fn.Dense(3, fn.softmax), fn.log_likelihood)
        params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
        for m in range(1, checks.KEPT + 9):
            check = (fn.Dense(3, fn.softmax), fn.log_likelihood, params, np.ones((m, 2)), np.zeros(m, int), None)
            checks.check_batch(*check)
        assert 0 < len(checks.SEEN) <= checks.KEPT
        assert jnp.isfinite(f(params, jnp.ones((2, 2)), jnp.zeros(2, int)))

    def test_with_weights_too_where_all_are_right(self, given, fetched):
        params, x, y = given[0], given[1], jnp.array([1, 1, 0, 0, 1, 2])
        f = fn.value_and_grad(NET, fn.log_likelihood)
        for weights in (jnp.ones(6), jnp.zeros(6)):
            f(params, x, y, weights=weights)
        assert fetched == [3]
        ignored = jnp.array([-100, 1, 0, 0, 1, 2])
        f(params, x, ignored, weights=jnp.arange(6.0))
        with pytest.raises(ValueError, match="expected labels from 0 to 2, got -100 at example 0"):
            f(params, x, ignored, weights=jnp.ones(6))

    def test_for_a_layer_as_wide_as_its_parameters(self):
        @fn.layer
        class Free(fn.Layer):
            def forward(self, params, a_in):
                return a_in @ params["w"].T, a_in

            def gradients(self, params, cache, delta):
                return {"w": delta.T @ cache / len(delta)}

        x, y = jnp.ones((4, 2)), jnp.array([0, 1, 2, 4])
        f = fn.value_and_grad(Free(), fn.quadratic)
        with pytest.raises(ValueError, match="expected labels from 0 to 2, got 4 at example 3"):
            f({"w": jnp.ones((3, 2))}, x, y)
        assert jnp.isfinite(f({"w": jnp.ones((5, 2))}, x, y)[0])

    def test_numpy_labels_may_change_and_are_read_each_time(self, given):
        params, x = given[:2]
        y, f = np.arange(6) % 3, fn.value_and_grad(NET, fn.log_likelihood)
        f(params, x, y)
        y[4] = 3
        with pytest.raises(ValueError, match="expected labels from 0 to 2, got 3 at example 4"):
            f(params, x, y)


class TestHash:
    def test_is_remembered_but_not_copied_or_pickled(self):
        assert hash(NET) == hash(fn.Network(*NET.layers))
        for twin in (pickle.loads(pickle.dumps(NET)), copy.copy(NET), copy.deepcopy(NET)):
            assert "_hash" not in twin.__dict__
            assert (twin, hash(twin)) == (NET, hash(NET))

    def test_of_a_twin_for_the_loop_is_its_own(self):
        hash(NET)
        assert hash(NET.in_loop()) == hash(fn.Network(*(layer.in_loop() for layer in NET)))


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (np.array([["a"] * 5] * 6), "an array of <U1"),
        (np.array([[None] * 5] * 6), "an array of object"),
        ([[1.0] * 5, [1.0] * 4], "list"),
        ("image.png", "str"),
        ({"image": 1}, "dict"),
        ([[2**70] * 5] * 6, "list"),
    ],
)
def test_data_that_are_no_numbers(given, x, got):
    params, _, y = given
    for call in (
        lambda: NET.apply(params, x),
        lambda: fn.value_and_grad(NET, fn.log_likelihood)(params, x, y),
        lambda: fn.backprop(NET, fn.log_likelihood, params, x, y),
    ):
        with pytest.raises(ValueError, match=f"x: expected an array of numbers .*, got {got}; give rows of one length"):
            call()


def test_parameters_in_the_place_of_data(given):
    params, x, y = given
    told = "x: expected an array of numbers .*, got a network's parameters; params come before x"
    for call in (
        lambda: NET.apply(x, params),
        lambda: fn.hvp(NET, fn.log_likelihood, params, params, x, y),
        lambda: fn.backprop(NET, fn.log_likelihood, x, params, y),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_big_endian_data_are_what_they_were(given):
    params, _, y = given
    x = np.random.default_rng(0).standard_normal((6, 5))
    np.testing.assert_array_equal(NET.apply(params, x.astype(">f8")), NET.apply(params, x))
    cost = fn.objective(NET, fn.log_likelihood)
    assert cost(params, x, np.asarray(y, ">i4")) == cost(params, x, y)
