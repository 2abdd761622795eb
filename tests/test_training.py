"""fit and what surrounds it: monitors, stopping, divergence, resuming, optimisers, penalties, plots."""

import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet import training
from fnnet.programs import _program_of_run
from fnnet.progress import reporter
from fnnet.training import Best

from .cases import assert_agree, cast, thorough

KEY = jax.random.key(3)


def problem(n=53, dropout=False):
    """A small classification problem: (net, params, (x, y))."""
    thinning = (fn.Dropout(0.2),) if dropout else ()
    net = fn.Network(fn.Dense(8, fn.sigmoid), *thinning, fn.Dense(3, fn.softmax))
    x = jax.random.normal(jax.random.key(1), (n, 5))
    return net, net.init(jax.random.key(0), (5,)), (x, jnp.argmax(x[:, :3], axis=1))


def run(epochs=3, n=53, dropout=False, **changes):
    net, params, data = problem(n, dropout)
    given = {"key": KEY, "epochs": epochs, "batch_size": 10, "optimizer": fn.sgd(0.5), "progress": False, **changes}
    return fn.fit(net, fn.log_likelihood, params, data, **given)


class TestWhatARunCostsBesideItsEpochs:
    @pytest.fixture
    def compiled(self, caplog):
        """The names of the programs that are compiled, or read from a cache of them."""
        with jax.log_compiles(True):
            yield lambda: [r.getMessage().split()[1] for r in caplog.records if r.getMessage().startswith("Compiling ")]

    @pytest.mark.parametrize(("validated", "programs"), [(False, 4), (True, 5)])
    def test_a_first_run_compiles_an_epoch_and_its_monitors_and_little_else_and_an_equal_one_nothing(
        self, compiled, validated, programs
    ):
        def fit():
            net = fn.Network(fn.Dense(5 + validated, fn.sigmoid), fn.Dense(3, fn.softmax))
            validation = (x[:17], y[:17]) if validated else None
            given = {"key": KEY, "epochs": 2, "batch_size": 10, "optimizer": fn.sgd(0.5), "progress": False}
            return fn.fit(net, fn.log_likelihood, params, (x, y), validation=validation, **given)

        rng, width = np.random.default_rng(0), 5 + validated
        x, y = rng.standard_normal((41, 6)), rng.integers(0, 3, 41)
        shapes = ({"w": (width, 6), "b": (width,)}, {"w": (3, width), "b": (3,)})
        params = jax.tree.map(
            np.ones, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple) and isinstance(leaf[0], int)
        )
        fit()
        assert compiled() == ["jit(_of_leaves)"] * programs
        fit()
        assert len(compiled()) == programs

    @pytest.mark.thorough
    def test_an_epoch_fetches_its_monitors_at_once_and_sends_nothing(self, monkeypatch):
        calls = {"device_get": 0, "device_put": 0}

        def counted(name, original):
            def f(*args, **given):
                calls[name] += 1
                return original(*args, **given)

            monkeypatch.setattr(jax, name, f)

        counted("device_get", jax.device_get)
        counted("device_put", jax.device_put)
        of_runs = []
        for epochs in (2, 5, 9):
            calls |= dict.fromkeys(calls, 0)
            run(epochs=epochs)
            of_runs.append((calls["device_get"], calls["device_put"]))
        assert np.diff(of_runs, axis=0).tolist() == [[3, 0], [4, 0]]

    def test_the_monitors_of_many_epochs_are_appended_in_place(self):
        records = training.Records({"cost": np.zeros(0), "watched": {"a": np.zeros((0, 2))}})
        seen, moved = [], set()
        for i in range(100):
            seen.append(records.with_one_more({"cost": i, "watched": {"a": [i, -i]}}))
            moved.add(seen[-1]["cost"].__array_interface__["data"][0])
        assert len(moved) <= 8
        for i, record in enumerate(seen):
            np.testing.assert_array_equal(record["cost"], np.arange(i + 1))
            np.testing.assert_array_equal(record["watched"]["a"], np.outer(np.arange(i + 1), [1, -1]))

    def test_two_runs_that_go_on_from_one_state_keep_to_themselves(self):
        half = run(epochs=4)[1]
        before = half.state.records["cost"].copy()
        one, two = (run(epochs=6, resume=half.state)[1] for _ in range(2))
        other = run(epochs=5, resume=half.state)[1]
        np.testing.assert_array_equal(one.cost, two.cost)
        np.testing.assert_array_equal(one.cost[:5], other.cost)
        np.testing.assert_array_equal(half.state.records["cost"], before)


class TestFit:
    @pytest.mark.thorough
    def test_it_is_stochastic_gradient_descent_by_hand(self):
        net, params, (x, y) = problem()
        x, y, params = jax.tree.map(np.asarray, (x, y, params))
        trained, history = run(epochs=2, penalty=fn.L2(0.5))
        gradient = jax.jit(jax.grad(fn.objective(net, fn.log_likelihood, penalty=fn.L2(0.5), n_examples=53)))
        seen = []
        for epoch in range(2):
            shuffle_key, step_key = jax.random.split(jax.random.fold_in(KEY, epoch))
            order = np.asarray(jax.random.permutation(shuffle_key, 53))
            for i, rows in enumerate(np.split(order, range(10, 53, 10))):
                seen.append(rows)
                grads = gradient(params, x[rows], y[rows], key=jax.random.fold_in(step_key, i))
                params = jax.tree.map(lambda p, g: p - 0.5 * np.asarray(g), params, grads)
        assert [len(rows) for rows in seen[:6]] == [10] * 5 + [3]
        assert sorted(np.concatenate(seen[:6])) == list(range(53))
        assert_agree(trained, params, 1e-10)
        np.testing.assert_allclose(
            history.cost[-1], fn.objective(net, fn.log_likelihood, penalty=fn.L2(0.5))(params, x, y)
        )
        np.testing.assert_allclose(history.accuracy[-1], np.mean(np.argmax(net.apply(params, x), 1) == y))

    @pytest.mark.thorough
    def test_digits_are_learnt(self, digits):
        (x, y), (x_test, y_test) = digits
        net = fn.Network(fn.Flatten(), fn.Dense(30, fn.sigmoid), fn.Dense(10, fn.softmax))
        params = net.init(jax.random.key(0), (28, 28, 1))
        params, history = fn.fit(
            net, fn.log_likelihood, cast(params, jnp.float32), (x, y), key=KEY, epochs=30, batch_size=10,
            optimizer=fn.sgd(0.3), validation=(x_test, y_test), progress=False,
        )  # fmt: skip
        assert history.accuracy[-1] > 0.98
        assert history.validation_accuracy[-1] > 0.7
        assert history.cost.shape == history.validation_cost.shape == (30,)

    @pytest.mark.parametrize(
        ("n", "batch_size"),
        [(11, 10), *(pytest.param(*given, marks=pytest.mark.thorough) for given in [(7, 10), (10, 10), (3, 1)])],
    )
    def test_any_batch_size_loses_no_example(self, n, batch_size):
        counted = []

        def gradient(params, x, y, *, key, weights):
            jax.debug.callback(lambda rows: counted.extend(np.asarray(rows).tolist()), x[:, 0])
            return jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)

        net, params, (x, y) = problem(n)
        fn.fit(net, fn.log_likelihood, params, (x, y), key=KEY, epochs=1, batch_size=batch_size, optimizer=fn.sgd(0.1),
               gradient=gradient, progress=False, monitor_training=False)  # fmt: skip
        jax.effects_barrier()
        assert sorted(counted) == sorted(x[:, 0].tolist())

    def test_an_epoch_compiles_once_and_numbers_are_traced(self):
        run(optimizer=fn.sgd(0.5, momentum=0.5), penalty=fn.L2(1.0))
        before = _program_of_run.cache_info().misses
        run(optimizer=fn.sgd(0.1, momentum=0.9), penalty=fn.L2(2.0))
        assert _program_of_run.cache_info().misses == before

    @pytest.mark.thorough
    def test_weights_and_masks_travel_with_the_examples(self):
        net, params, (x, y) = problem(40)
        weights = jnp.where(jnp.arange(40) < 30, 1.0, 0.0)
        poisoned = y.at[30:].set((y[30:] + 1) % 3)
        given = {"key": KEY, "epochs": 2, "batch_size": 8, "optimizer": fn.sgd(0.5), "progress": False}
        one, history = fn.fit(net, fn.log_likelihood, params, (x, y, {"weights": weights}), **given)
        other, _ = fn.fit(net, fn.log_likelihood, params, (x, poisoned, {"weights": weights, "mask": None}), **given)
        chex.assert_trees_all_equal(one, other)
        np.testing.assert_allclose(
            history.accuracy[-1], np.mean(np.argmax(net.apply(one, x[:30]), 1) == y[:30]), rtol=1e-6
        )

    def test_feedback_alignment_by_an_own_gradient(self):
        net, _, _ = problem()
        back = net.init(jax.random.key(9), (5,))

        def gradient(params, x, y, *, key, weights):
            bp = fn.backprop(net, fn.log_likelihood, params, x, y, key=key, weights=weights, feedback=back)
            return bp.cost, bp.gradients

        _, history = run(epochs=20, gradient=gradient)
        assert history.cost[-1] < 0.6 * history.cost[0]

    def test_targets_that_name_no_classes_have_no_accuracy(self):
        net = fn.Network(fn.Dense(2, fn.linear))
        params = net.init(jax.random.key(0), (3,))
        x = jax.random.normal(KEY, (12, 3))
        _, history = fn.fit(net, fn.quadratic, params, (x, x[:, :2]), key=KEY, epochs=3, batch_size=4, optimizer=fn.sgd(0.2),
                            progress=False)  # fmt: skip
        assert np.isnan(history.accuracy).all()
        assert history.cost[-1] < history.cost[0]
        assert history.validation_cost is None

    def test_a_large_data_set_is_monitored_in_chunks(self):
        net, params, (x, y) = problem(20_001)
        value, share = fn.evaluate(net, fn.log_likelihood, params, (x, y), penalty=fn.L2(2.0))
        np.testing.assert_allclose(
            value, fn.objective(net, fn.log_likelihood, penalty=fn.L2(2.0))(params, x, y), rtol=1e-12
        )
        np.testing.assert_allclose(share, fn.accuracy(net.apply(params, x), y), rtol=1e-6)

    def test_without_monitoring_the_cost_is_the_mean_over_the_mini_batches(self):
        _, history = run(monitor_training=False)
        assert history.accuracy is None
        assert history.cost.shape == (3,)
        assert history.cost[2] < history.cost[0]

    def test_progress_lines(self, capsys):
        run(epochs=2, progress=True)
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
        assert 0 < lines[0].index("cost") < lines[0].index("accuracy")
        run(epochs=2)
        assert capsys.readouterr().err == ""

    def test_progress_lines_stand_in_columns(self, capsys):
        with reporter(True, 100, 0) as report:
            for epoch, cost in ((9, 0.5), (10, 1.23456e-5), (100, 12345.678)):
                report(epoch, {"cost": cost, "validation_cost": 2 * cost, "networks": 7, "unknown": float("nan")})
        lines = capsys.readouterr().err.splitlines()
        assert len({tuple(map(line.index, ("/100:", " cost", "validation", "networks", "("))) for line in lines}) == 1
        assert lines[1].startswith("epoch  10/100: cost 1.235e-05  validation cost 2.469e-05  networks 7         (")

    def test_a_history_is_printed_as_a_table(self):
        def printed(n, **state):
            params, *rest = "no arrays", None, KEY, n, None, {}, None
            cost = np.geomspace(1, 0.01, n)
            return f"{fn.History(cost, cost / 2, None, None, fn.TrainingState(params, *rest)._replace(**state))}".split(
                "\n"
            )

        assert printed(1) == ["epoch   cost  accuracy", "    1  1.000    0.5000", "1 epoch"]
        lines = printed(100, step=7, best=Best(41, 0.5, "no arrays"))
        assert [int(line.split()[0]) for line in lines[1:-1]] == [1, 10, 19, 28, 37, 46, 55, 64, 73, 82, 91, 100]
        assert len({len(line) for line in lines[:-1]}) == 1
        assert lines[-1] == "100 epochs, 7 mini-batches of the next, the best of them 41"
        assert printed(0) == ["epoch  cost  accuracy", "0 epochs"]

    def test_a_history_without_numbers_is_printed_by_field(self):
        state = fn.TrainingState({}, None, KEY, 1, None, {}, None)
        history = fn.History(np.ones(2), np.ones(2), None, None, state)
        printed = []
        jax.eval_shape(lambda cost: printed.append(repr(history._replace(cost=cost))), history.cost)
        printed += [repr(history._replace(cost=np.ones((3, 2)))), repr(history._replace(state=None))]
        assert all(text.startswith("History(cost=") for text in printed)

    def test_a_progress_bar_on_a_terminal(self, monkeypatch, capsys):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        run(epochs=2, progress=True)
        assert "2/2" in capsys.readouterr().err

    @pytest.mark.thorough
    def test_optax_drops_in(self):
        optax = pytest.importorskip("optax")
        ours, _ = run(optimizer=fn.adam(1e-2))
        with jax.numpy_dtype_promotion("standard"):  # optax promotes
            theirs, _ = run(optimizer=optax.adam(1e-2))
            _, history = run(optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)))
        assert_agree(ours, theirs, 1e-10)
        assert history.cost[-1] < history.cost[0]


class TestEarlyStopping:
    def test_it_keeps_the_best_parameters(self):
        net, params, (x, y) = problem(30)
        held_out = x[:20], (y[:20] + jnp.arange(20)) % 3
        params, history = fn.fit(net, fn.log_likelihood, params, (x, y), key=KEY, epochs=200, batch_size=10,
                                 optimizer=fn.sgd(2.0), validation=held_out, progress=False,
                                 early_stopping=fn.EarlyStopping(5, monitor="validation_cost"))  # fmt: skip
        best = int(np.argmin(history.validation_cost))
        assert len(history.cost) == best + 1 + 5 < 200
        assert fn.evaluate(net, fn.log_likelihood, params, held_out)[0] == pytest.approx(history.validation_cost[best])

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: fn.EarlyStopping(0), "EarlyStopping: expected a patience of at least 1 epoch, got 0"),
            (lambda: fn.EarlyStopping(True), "EarlyStopping: expected a patience of at least 1 epoch, got True"),
            (lambda: fn.EarlyStopping(3, "accuracy"), "EarlyStopping: expected monitor 'validation_accuracy' or"),
            (lambda: run(early_stopping=fn.EarlyStopping(3)), r"fit: expected validation=\(x, y\) with early_stopping"),
        ],
    )
    def test_bad_input(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()


class TestDiverged:
    def test_it_names_the_layer_and_carries_the_last_good_epoch(self):
        net = fn.Network(fn.Dense(4, fn.relu), fn.Dense(3, fn.relu), fn.Dense(1, fn.linear))
        params = net.init(jax.random.key(0), (2,))
        x = jnp.ones((20, 2))
        schedule = lambda step: jnp.where(step < 8, 1e-3, 1e200)  # noqa: E731
        with pytest.raises(
            fn.Diverged, match=r"diverged in epoch 3, mini-batch \d+: .* first in layer \d Dense.*lower the"
        ) as caught:
            fn.fit(net, fn.quadratic, params, (x, 5 * jnp.ones((20, 1))), key=KEY, epochs=5, batch_size=5,
                   optimizer=fn.sgd(schedule), progress=False)  # fmt: skip
        error = caught.value
        assert error.epoch == 3
        assert error.history.cost.shape == (2,)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(error.params))
        value, _ = fn.evaluate(net, fn.quadratic, error.params, (x, 5 * jnp.ones((20, 1))))
        assert value == pytest.approx(error.history.cost[-1])

    def test_data_that_is_not_finite(self):
        net, params, (x, y) = problem()
        with pytest.raises(fn.Diverged, match=r"epoch 1, .* first in the input data"):
            fn.fit(net, fn.log_likelihood, params, (x.at[3, 2].set(jnp.nan), y), key=KEY, epochs=2, batch_size=10,
                   optimizer=fn.sgd(0.1), progress=False)  # fmt: skip

    @pytest.mark.parametrize("dtype", [np.uint8, *thorough(np.float64)])
    def test_images_from_0_to_255_are_named_as_the_likely_cause(self, dtype):
        net = fn.Network(fn.Dense(3, fn.linear))
        x = np.random.default_rng(0).integers(0, 256, (60, 30)).astype(dtype)
        message = rf"the inputs, {np.dtype(dtype)} from 0 to 255, are large: scale them .*, as in x / 255, or lower the"
        with pytest.raises(fn.Diverged, match=message):
            fn.fit(net, fn.quadratic, net.init(KEY, (30,)), (x, jnp.eye(3)[np.arange(60) % 3]), key=KEY, epochs=9,
                   batch_size=5, optimizer=fn.sgd(0.5), progress=False)  # fmt: skip

    @pytest.mark.thorough
    def test_indices_are_not(self):
        net = fn.Network(fn.Embedding(300, 4), fn.Flatten(), fn.Dense(1, fn.linear))
        x = np.arange(300).reshape(30, 10)
        with pytest.raises(fn.Diverged, match="lower the learning rate or scale the inputs"):
            fn.fit(net, fn.quadratic, net.init(KEY, (10,)), (x, np.ones((30, 1))), key=KEY, epochs=9, batch_size=5,
                   optimizer=fn.sgd(1e200), progress=False)  # fmt: skip


class TestResume:
    @pytest.mark.parametrize(
        "optimizer", [*thorough(fn.sgd(0.3, momentum=0.9)), fn.adam(fn.StepDecay(1e-2, 0.5, 7))], ids=["sgd", "adam"]
    )
    def test_bit_for_bit(self, optimizer, tmp_path):
        data = problem(dropout=True)[2]
        given = {"dropout": True, "optimizer": optimizer, "validation": data, "early_stopping": fn.EarlyStopping(50)}
        whole, history = run(epochs=6, **given)
        _, half = run(epochs=2, **given)
        chex.assert_trees_all_equal(run(epochs=6, resume=half.state, **given), (whole, history))
        fn.save(tmp_path / "state.npz", half.state)
        _, blank = run(epochs=0, **given)
        state = fn.load(tmp_path / "state.npz", blank.state)
        chex.assert_trees_all_equal(run(epochs=6, resume=state, **given), (whole, history))

    def test_a_state_of_another_run_is_refused(self):
        for other, message in (
            ({"monitor_training": False}, r"got one whose \.records\['accuracy'\] is None"),
            ({"optimizer": fn.adam()}, r"got one whose \.optimizer\..* resume with the same arguments"),
        ):
            state = run(epochs=1, **other)[1].state
            with pytest.raises(ValueError, match=message):
                run(resume=state)

    def test_ctrl_c_returns_what_is_done(self):
        calls = []
        original = training._monitor

        def interrupt_in_epoch_3(*args, **kwargs):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return original(*args, **kwargs)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and & ignore it
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training, "_monitor", interrupt_in_epoch_3)
                _, history = run(epochs=9)
        finally:
            signal.signal(signal.SIGINT, before)
        assert len(history.cost) == 2
        whole, _ = run(epochs=9)
        resumed, _ = run(epochs=9, resume=history.state)
        chex.assert_trees_all_equal(resumed, whole)


def watch(params):
    """A pytree of an array, a number and a Python number."""
    return {"b": params[1]["b"], "norm": jnp.linalg.norm(params[0]["w"]), "one": 1}


class TestWatch:
    def test_what_it_gives_after_each_epoch_is_recorded(self):
        _, history = run(epochs=4, watch=watch)
        assert {name: values.shape for name, values in history.watched.items()} == {
            "b": (4, 3),
            "norm": (4,),
            "one": (4,),
        }
        for epochs in (1, 4):
            chex.assert_trees_all_close(
                jax.tree.map(lambda record, i=epochs - 1: record[i], history.watched), watch(run(epochs=epochs)[0])
            )

    def test_it_changes_nothing_else(self):
        (plain, before), (trained, history) = run(validation=problem()[2]), run(validation=problem()[2], watch=watch)
        chex.assert_trees_all_equal(trained, plain)
        chex.assert_trees_all_equal(history[:4], before[:4])
        assert before.watched is None

    def test_no_epochs_give_empty_records_of_its_structure(self):
        _, history = run(epochs=0, watch=watch)
        assert {name: v.shape for name, v in history.watched.items()} == {"b": (0, 3), "norm": (0,), "one": (0,)}

    def test_it_is_compiled_once(self):
        traced = []

        def counting(params):
            traced.append(1)
            return jnp.sum(params[0]["w"])

        for epochs in (2, 5):
            run(epochs=epochs, watch=counting)
        assert len(traced) <= 2  # its shapes, and the call

    def test_resumed_bit_for_bit(self, tmp_path):
        given = {"watch": watch, "validation": problem()[2], "early_stopping": fn.EarlyStopping(50)}
        whole = run(epochs=5, **given)
        half = run(epochs=2, checkpoint=tmp_path, **given)[1]
        for resume in (half.state, tmp_path):
            chex.assert_trees_all_equal(run(epochs=5, resume=resume, **given), whole)

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (
                None,
                r"same network, optimizer, monitors, watch and early stopping, got one whose \.records\['watched'\]",
            ),
            (lambda params: 1.0, r"got one whose \.records\['watched'\]"),
            (lambda params: {**watch(params), "b": params[0]["b"]}, r"\['b'\] is \(\(3,\), .*has \(\(8,\)"),
            (lambda params: {**watch(params), "one": 1.0}, r"\['one'\] is \(\(\), 'int.*has \(\(\), 'float"),
        ],
        ids=["none", "structure", "shape", "dtype"],
    )
    def test_a_state_of_another_watch_is_refused(self, other, message, tmp_path):
        state = run(epochs=1, watch=watch, checkpoint=tmp_path)[1].state
        with pytest.raises(ValueError, match=message):
            run(watch=other, resume=state)
        with pytest.raises(ValueError, match=r"fit: expected .* watch and early stopping.*watched"):
            run(watch=other, resume=tmp_path)

    @pytest.mark.thorough
    def test_a_run_that_diverges_carries_it(self):
        seen = []

        def watched(params):
            jax.debug.callback(lambda b: seen.append(b), params[1]["b"])
            return params[1]["b"]

        with pytest.raises(fn.Diverged) as caught:
            run(epochs=9, watch=watched, optimizer=fn.sgd(lambda step: jnp.where(step < 12, 0.5, jnp.nan)))
        assert caught.value.history.watched.shape == (2, 3)
        np.testing.assert_array_equal(caught.value.history.watched[-1], caught.value.params[1]["b"])
        assert len(seen) == 2

    def test_ctrl_c_while_it_runs_leaves_the_epochs_before(self):
        calls, original = [], training._watched

        def interrupt_in_epoch_3(*args):
            calls.append(1)
            if len(calls) == 4:  # the first one asks for its shapes
                os.kill(os.getpid(), signal.SIGINT)
            return original(*args)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and & ignore it
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training, "_watched", interrupt_in_epoch_3)
                _, history = run(epochs=9, watch=watch)
        finally:
            signal.signal(signal.SIGINT, before)
        assert len(history.cost) == len(history.watched["norm"]) == 2
        chex.assert_trees_all_equal(run(epochs=9, watch=watch, resume=history.state), run(epochs=9, watch=watch))

    def test_early_stopping_keeps_all_epochs(self):
        _, history = run(
            epochs=50, watch=watch, validation=problem()[2], early_stopping=fn.EarlyStopping(1), optimizer=fn.sgd(20.0)
        )
        assert len(history.watched["norm"]) == len(history.cost) < 50

    def test_what_it_raises_is_raised(self):
        def failing(params):
            raise RuntimeError("of the watch")

        with pytest.raises(RuntimeError, match="of the watch"):
            run(watch=failing)


class UnhashableGradient:
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __call__(self, params, x, y, *, key, weights):
        return jnp.zeros(()), params


class Unregistered:
    """A penalty that JAX does not know as a pytree."""

    def value(self, params, n_examples):
        return 0.0

    def gradient(self, params, n_examples):
        return params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": None}, "fit: expected a key for shuffling and dropout, got None; make one"),
        ({"key": 0}, "key: expected one PRNG key, got int 0"),
        ({"epochs": -1}, "fit: expected epochs to be an integer of at least 0, got -1"),
        ({"batch_size": 0}, "fit: expected batch_size to be an integer of at least 1, got 0"),
        ({"optimizer": 0.5}, r"fit: expected an optimizer with init and update, such as fn\.sgd\(0\.5\), got float"),
        ({"validation": 3}, r"validation: expected \(x, y\) or .* got int"),
        (
            {"validation": (np.ones((2, 5)), np.array([0, 9]))},
            "log_likelihood: expected labels from 0 to 2, got 9 at example 1",
        ),
        (
            {"validation": (np.ones((2, 5)), np.array([0, 1]), {"masks": 1})},
            r"validation: expected the keys 'mask' and 'weights'",
        ),
        (
            {"validation": (np.ones((2, 5)), np.array([0, 1]), {"weights": np.ones(3)})},
            "expected weights for 2 examples, got shape",
        ),
        (
            {"penalty": 0.5},
            r"penalty: expected an object with value and gradient, got float; use fn\.L2\(5\.0\), or register",
        ),
        (
            {"penalty": Unregistered()},
            r"penalty: expected a pytree, got Unregistered, which JAX does not know; use fn\.L2",
        ),
        ({"validation": (np.ones((2, 5)), np.array([0, 1]), np.ones(2))}, "validation: expected .* for the third"),
        ({"resume": 3}, r"fit: expected resume=history\.state or a path, got int"),
        ({"resume": "nowhere"}, r"fit: expected a checkpoint to resume from in nowhere, got none; give the folder"),
        ({"epochs": True}, "fit: expected epochs to be an integer of at least 0, got True"),
        ({"batch_size": True}, "fit: expected batch_size to be an integer of at least 1, got True"),
        ({"batch_size": 2.0}, "fit: expected batch_size to be an integer of at least 1, got 2.0"),
        ({"every": 0}, "fit: expected every to be an integer of at least 1, got 0"),
        ({"every": True}, "fit: expected every to be an integer of at least 1, got True"),
        ({"window": True}, "fit: expected window to be an integer of at least 1, got True"),
        ({"micro_batch": True}, "micro_batch: expected a positive integer, 'auto' or None, got True"),
        ({"checkpoint": 3}, r"fit: expected checkpoint= the path of a folder, got int; such as 'runs/first'"),
        ({"checkpoint": __file__}, "fit: expected checkpoint= a folder, got the file .*; give a path of its own"),
        ({"early_stopping": 5}, r"fit: expected early_stopping=fn\.EarlyStopping\(patience\), got 5"),
        ({"gradient": 0.5}, r"fit: expected gradient= a hashable function .* -> \(cost, gradients\), got float"),
        ({"gradient": UnhashableGradient()}, "fit: expected gradient= a hashable function .*, got UnhashableGradient"),
        ({"micro_batch": 0}, "micro_batch: expected a positive integer"),
        ({"watch": 0.5}, "fit: expected watch= a hashable function params -> numbers or arrays, got float"),
        ({"watch": UnhashableGradient()}, "fit: expected watch= a hashable function .*, got UnhashableGradient"),
        ({"watch": lambda params: None}, "fit: expected watch= to return numbers or arrays, got None; return what is"),
        ({"watch": lambda params: (1, "a")}, "fit: expected watch= to return numbers or arrays, got int, str; return"),
        ({"watch": lambda params: KEY}, "fit: expected watch= to return numbers or arrays, got .*; return"),
    ],
)
def test_bad_input_is_a_clear_error(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


class TestOptimizers:
    def steps(self, optimizer, n=25):
        params = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([0.5])}
        state = optimizer.init(params)

        @jax.jit
        def step(i, params, state):
            grads = jax.tree.map(lambda p: jnp.sin(3 * p + i), params)
            updates, state = optimizer.update(grads, state, params)
            return fn.apply_updates(params, updates), state

        for i in range(n):
            params, state = step(i, params, state)
        return params

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (lambda: fn.sgd(0.1), lambda o: o.sgd(0.1)),
            (lambda: fn.sgd(0.1, momentum=0.9), lambda o: o.sgd(0.1, momentum=0.9)),
            (lambda: fn.sgd(0.1, 0.9, nesterov=True), lambda o: o.sgd(0.1, momentum=0.9, nesterov=True)),
            (lambda: fn.adam(0.05), lambda o: o.adam(0.05)),
            (lambda: fn.adam(0.05, 0.8, 0.9, 1e-3), lambda o: o.adam(0.05, 0.8, 0.9, 1e-3)),
            (lambda: fn.sgd(fn.ExponentialDecay(0.1, 0.5, 10)), lambda o: o.sgd(o.exponential_decay(0.1, 10, 0.5))),
            (
                lambda: fn.sgd(fn.StepDecay(0.1, 0.5, 10)),
                lambda o: o.sgd(o.exponential_decay(0.1, 10, 0.5, staircase=True)),
            ),
            (lambda: fn.sgd(fn.CosineDecay(0.1, 20)), lambda o: o.sgd(o.cosine_decay_schedule(0.1, 20))),
            (lambda: fn.sgd(lambda step: 0.1 / (1 + step)), lambda o: o.sgd(lambda step: 0.1 / (1 + step))),
        ],
    )
    def test_against_optax(self, ours, theirs):
        optax = pytest.importorskip("optax")
        with jax.numpy_dtype_promotion("standard"):  # optax promotes, and computes its schedules in float32
            schedule = callable(ours().learning_rate)
            assert_agree(self.steps(ours()), self.steps(theirs(optax)), 1e-6 if schedule else 1e-10)

    def test_schedules_by_hand(self):
        steps = np.arange(40)
        for schedule, expected in (
            (fn.StepDecay(0.1, 0.5, 10), 0.1 * 0.5 ** (steps // 10)),
            (fn.ExponentialDecay(0.1, 0.5, 10), 0.1 * 0.5 ** (steps / 10)),
            (fn.CosineDecay(0.1, 20, 0.01), 0.01 + 0.045 * (1 + np.cos(np.pi * np.minimum(steps / 20, 1)))),
        ):
            np.testing.assert_allclose([schedule(step) for step in steps], expected, rtol=1e-12)

    def test_numbers_are_leaves_and_can_be_vmapped(self):
        assert len(jax.tree.leaves(fn.sgd(0.1, 0.9))) == 2
        assert len(jax.tree.leaves(fn.adam(fn.StepDecay(0.1, 0.5, 10)))) == 6
        rates = jnp.array([0.01, 0.1])
        together = jax.vmap(lambda eta: self.steps(fn.sgd(eta)))(rates)
        for i, eta in enumerate(rates):
            assert_agree(jax.tree.map(lambda leaf, i=i: leaf[i], together), self.steps(fn.sgd(eta)), 1e-12)

    def test_a_step_is_never_late(self):
        """Compiled, XLA multiplies by 1/every where one divides by it, and 41 · (1/41) is below 1 in float32."""
        steps = np.unique([*range(200), *range(2**24 - 60, 2**24 + 60), 2**31 - 1])
        sizes = [*range(1, 100), 1000, 2**24 - 1, np.int8(100), np.float32(41), 2.5]
        schedules = [fn.StepDecay(1.0, 0.5, every) for every in sizes]
        expected = np.array([0.5 ** (steps // float(every)) for every in sizes])
        with jax.enable_x64(False):
            closed = jax.jit(lambda k: jnp.stack([schedule(k) for schedule in schedules]))
            given = jax.jit(lambda k, schedules: jnp.stack([schedule(k) for schedule in schedules]))
            for values in (closed(jnp.asarray(steps)), given(jnp.asarray(steps), schedules)):
                np.testing.assert_allclose(values, expected, rtol=2e-6, atol=1e-37)
            for every in (41, 61):
                late = [float(fn.StepDecay(1.0, 0.5, every)(step)) for step in (every - 1, every, every + 1)]
                assert late == [1, 0.5, 0.5]

    def test_a_schedule_of_no_steps_is_an_error(self):
        for build, name in (
            (lambda: fn.StepDecay(1.0, 0.5, 0), "StepDecay: expected every"),
            (lambda: fn.ExponentialDecay(1.0, 0.5, -1), "ExponentialDecay: expected every"),
            (lambda: fn.CosineDecay(1.0, 0), "CosineDecay: expected steps"),
        ):
            with pytest.raises(ValueError, match=f"{name} > 0, got .*; it is a number of steps"):
                build()

    def test_warmup(self):
        schedule = fn.CosineDecay(1.0, 100, warmup=4)
        np.testing.assert_allclose([schedule(i) for i in range(4)], [0.2, 0.4, 0.6, 0.8], rtol=0.01)

    @pytest.mark.parametrize("dtype", ["bfloat16", *thorough("float32", "float16")])
    def test_parameters_keep_their_dtype(self, dtype):
        params = {"w": jnp.ones(3, dtype)}
        for optimizer in (fn.sgd(0.1, momentum=0.9), fn.adam(0.1)):
            updates, _ = optimizer.update(params, optimizer.init(params), params)
            assert fn.apply_updates(params, updates)["w"].dtype == dtype

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: fn.sgd(-1), "sgd: expected learning_rate ≥ 0, got -1"),
            (lambda: fn.sgd(None), "sgd: expected learning_rate to be one number, got None; gradient descent goes"),
            (lambda: fn.sgd("0.1"), "sgd: expected learning_rate to be one number, got '0.1'"),
            (lambda: fn.sgd(True), "sgd: expected learning_rate to be one number, got True"),
            (lambda: fn.sgd(1j), "sgd: expected learning_rate to be one number, got 1j"),
            (lambda: fn.sgd([0.1]), r"sgd: expected learning_rate to be one number, got \[0.1\]"),
            (lambda: fn.sgd(np.ones(2)), r"learning_rate to be one number, got an array of float64 and shape \(2,\)"),
            (lambda: fn.sgd(jnp.ones(2)), r"learning_rate to be one number, got an array of float64 and shape \(2,\)"),
            (lambda: fn.sgd(jnp.array(True)), r"learning_rate to be one number, got an array of bool and shape \(\)"),
            (lambda: fn.sgd(float("nan")), "sgd: expected learning_rate ≥ 0, got nan"),
            (lambda: fn.sgd(np.float32("nan")), "sgd: expected learning_rate ≥ 0, got nan"),
            (lambda: fn.sgd(jnp.array(-0.1)), "sgd: expected learning_rate ≥ 0, got -0.1"),
            (lambda: fn.sgd(0.1, momentum="0.9"), "sgd: expected momentum to be one number, got '0.9'; give a number"),
            (lambda: fn.adam(None), "adam: expected learning_rate to be one number, got None"),
            (lambda: fn.adam(b1=None), "adam: expected b1 to be one number, got None"),
            (lambda: fn.adam(eps=np.array(-1.0)), r"adam: expected eps ≥ 0, got -1\.0"),
            (lambda: fn.sgd(fn.StepDecay("0.1", 0.5, 3)), "StepDecay: expected initial to be one number, got '0.1'"),
            (lambda: fn.adam(fn.CosineDecay(0.1, -5)), "CosineDecay: expected steps > 0, got -5"),
            (lambda: fn.adam(fn.ExponentialDecay(0.1, float("nan"), 5)), "ExponentialDecay: expected factor ≥ 0"),
            (lambda: fn.clip(True), "clip: expected limit to be one number, got True"),
            (lambda: fn.sgd(0.1, -0.5), "sgd: expected momentum ≥ 0"),
            (lambda: fn.sgd(0.1, nesterov=True), "sgd: expected a momentum with nesterov=True, got 0"),
            (lambda: fn.adam(eps=-1.0), "adam: expected eps ≥ 0"),
            (lambda: fn.L2(-1.0), "L2: expected λ ≥ 0, got -1.0"),
            (lambda: fn.L1(float("nan")), "L1: expected λ ≥ 0, got nan"),
        ],
    )
    def test_bad_input(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()


class TestPenalties:
    PARAMS = (
        {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([7.0])},
        {},
        ({"w_x": jnp.array([3.0]), "b_h": jnp.array([1.0])},),
    )

    def test_values_by_hand(self):
        assert float(fn.L2(5.0).value(self.PARAMS, 10)) == pytest.approx(5 / 20 * (1 + 4 + 9))
        assert float(fn.L1(5.0).value(self.PARAMS, 10)) == pytest.approx(5 / 10 * (1 + 2 + 3))

    @pytest.mark.parametrize("penalty", [fn.L1(0.7), fn.L2(0.7)], ids=["L1", "L2"])
    def test_gradients_against_autodiff(self, penalty):
        reference = jax.grad(lambda p: penalty.value(p, 3))(self.PARAMS)
        assert_agree(penalty.gradient(self.PARAMS, 3), reference, 1e-12, zero=True)
        assert float(reference[2][0]["b_h"][0]) == 0

    def test_lambda_is_a_leaf(self):
        assert jax.tree.leaves(fn.L2(5.0)) == [5.0]
        values = jax.vmap(lambda lam: fn.L2(lam).value(self.PARAMS, 1))(jnp.array([1.0, 2.0]))
        np.testing.assert_allclose(values, [7.0, 14.0])


class TestPlots:
    def test_learning_curves_and_digits(self, digits, tmp_path):
        plots = pytest.importorskip("fnnet.plots")
        _, history = run(validation=problem()[2])
        for of, label in (("cost", "cost C"), ("accuracy", "accuracy (%)")):
            ax = plots.learning_curves(history, of=of)
            assert (ax.get_xlabel(), ax.get_ylabel(), len(ax.lines)) == ("epoch", label, 3)
        (x, y), _ = digits
        ax = plots.digits(x[:10], y[:10], (y[:10] + (np.arange(10) == 3)) % 10)
        assert ax.get_title() == "Predicted classes: 9 of 10 right"
        assert sum(", is " in text.get_text() for text in ax.texts) == 1
        ax.figure.savefig(tmp_path / "digits.png")
        with pytest.raises(ValueError, match="learning_curves: expected of='cost' or of='accuracy', got 'error'"):
            plots.learning_curves(history, of="error")
        with pytest.raises(ValueError, match=r"digits: expected images \(m, H, W, 1\) or \(m, H, W\), got \(784,\)"):
            plots.digits(np.ones(784))
