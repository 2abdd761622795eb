"""Long runs: checkpoints, what resumes from them, what is refused, and kills at random moments."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet import checkpoints, dbn, rbm, training

from .cases import thorough
from .checks import assert_same

KEY = jax.random.key(3)
X = jax.random.uniform(jax.random.key(1), (20, 5))
Y = jnp.argmax(X[:, :3], axis=1)
NET = fn.Network(fn.Dense(4, fn.sigmoid), fn.Dropout(0.2), fn.Dense(3, fn.softmax))
TRAINING = {"batch_size": 6, "optimizer": fn.sgd(0.05, momentum=0.5), "progress": False}


def fit(net=NET, cost=fn.log_likelihood, data=(X, Y), params=None, **changes):
    given = {"key": KEY, "epochs": 5, "validation": (X[:7], Y[:7]), **TRAINING, **changes}
    return fn.fit(net, cost, net.init(jax.random.key(0), (5,)) if params is None else params, data, **given)


def stopping_early(**changes):
    return fit(early_stopping=fn.EarlyStopping(20, "validation_cost"), optimizer=fn.adam(0.01), **changes)


def watched(**changes):
    return fit(watch=lambda params: {"sum": jnp.sum(params[0]["w"]), "b": params[2]["b"]}, **changes)


def sweep(**changes):
    """Two groups of two networks and a half one."""
    optimizers = [fn.sgd(0.1), fn.sgd(0.2), fn.sgd(0.3)]
    given = {
        **TRAINING,
        "optimizers": optimizers,
        "epochs": 3,
        "at_once": 2,
        "keys": jax.random.split(KEY, 1),
        **changes,
    }
    del given["optimizer"]
    return fn.sweep(NET, fn.log_likelihood, (X, Y), **given)


def rbm_fit(**changes):
    params = rbm.init(jax.random.key(0), 5, 4)
    return rbm.fit(
        params, X, **{"key": KEY, "epochs": 5, "persistent": True, "validation": X[:7], **TRAINING, **changes}
    )


def pretrain(**changes):
    return dbn.pretrain(X, (4, 3, 2), **{"key": KEY, "epochs": 3, "validation": X[:7], **TRAINING, **changes})


RUNS = {
    "fit": fit,
    "early stopping": stopping_early,
    "watch": watched,
    "sweep": sweep,
    "rbm.fit": rbm_fit,
    "dbn.pretrain": pretrain,
}


@contextlib.contextmanager
def signalled(at, number=signal.SIGTERM):
    """The signal comes while the monitors after an epoch are computed, the ``at``-th time."""
    original, calls = training._monitor, []

    def monitor(*args, **given):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*args, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_monitor", monitor)
        yield


class TestResuming:
    @pytest.mark.parametrize(
        ("kind", "every"),
        [
            ("fit", 1),
            *(
                pytest.param(kind, every, marks=pytest.mark.thorough)
                for kind in RUNS
                for every in (1, 2)
                if (kind, every) != ("fit", 1) and (every == 1 or kind in ("fit", "sweep"))
            ),
        ],
    )
    def test_a_run_that_dies_and_is_started_again_is_the_run_bit_for_bit(self, kind, every, tmp_path, monkeypatch):
        """It dies in a save, at each checkpoint in turn, until one start gets through."""
        run, folder, saves = RUNS[kind], tmp_path / "run", []

        def dying(path, state):
            saves.append(path)
            if len(saves) % 3 == 0:
                raise RuntimeError("killed")
            fn.save(path, state)

        whole = run()
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, "save", dying)
            for _ in range(20):
                # The last attempt to save, on the way out, is not to succeed either.
                with contextlib.suppress(RuntimeError), pytest.MonkeyPatch.context() as once:
                    once.setattr(checkpoints.Keeper, "save", killed_for_good(checkpoints.Keeper.save))
                    result = run(checkpoint=folder, every=every, resume=folder)
                    break
            else:
                raise AssertionError("never got through")
        assert len(saves) > 3
        assert_same(result, whole)
        assert_same(run(checkpoint=folder, every=every, resume=str(folder)), whole)

    def test_the_newest_three_are_kept(self, tmp_path):
        fit(checkpoint=tmp_path / "a" / "b")
        assert sorted(f.name for f in (tmp_path / "a" / "b").iterdir()) == [
            f"checkpoint-0000000{i}.npz" for i in (3, 4, 5)
        ]
        fit(checkpoint=tmp_path / "c", every=2, epochs=5)
        assert [f.name[-5] for f in sorted((tmp_path / "c").iterdir())] == ["2", "4", "5"]

    def test_more_epochs_another_rate_and_no_key(self, tmp_path):
        _, half = fit(epochs=2, checkpoint=tmp_path)
        whole, _ = fit()
        for resume in (half.state, tmp_path, tmp_path / "checkpoint-00000002.npz"):
            assert_same(fit(resume=resume, key=None)[0], whole)
        fit(resume=tmp_path, optimizer=fn.sgd(0.1, momentum=0.9))
        fit(resume=half.state, checkpoint=tmp_path, epochs=3)
        assert len(fit(resume=tmp_path, checkpoint=tmp_path, epochs=4)[1].cost) == 4

    def test_a_damaged_checkpoint_falls_back_to_the_one_before(self, tmp_path):
        fit(checkpoint=tmp_path, epochs=4)
        newest = tmp_path / "checkpoint-00000004.npz"
        content = newest.read_bytes()
        for damaged in (b"", content[: len(content) // 2], content[:900] + b"\0\0\0\0" + content[904:]):
            newest.write_bytes(damaged)
            with pytest.warns(
                UserWarning, match=r"fit: .*4\.npz is damaged, so the run goes on from checkpoint-00000003"
            ):
                assert_same(fit(resume=tmp_path), fit())
        for file in tmp_path.iterdir():
            file.write_bytes(b"PK")
        with pytest.raises(
            ValueError, match=r"fit: expected a checkpoint to resume from in .*, got 3 damaged; give the"
        ):
            fit(resume=tmp_path, checkpoint=tmp_path)

    def test_a_path_without_checkpoints(self, tmp_path):
        for name in ("missing", ""):
            with pytest.raises(
                ValueError, match=r"fit: expected a checkpoint to resume from in .*, got none; give the"
            ):
                fit(resume=tmp_path / name)
            with pytest.raises(ValueError, match=r"dbn\.pretrain: expected a folder with machine-0, machine-1"):
                pretrain(resume=tmp_path / name, checkpoint=tmp_path / "other")
        with pytest.raises(ValueError, match="fit: expected a key for shuffling and dropout, got None"):
            fit(resume=tmp_path, checkpoint=tmp_path, key=None)
        with pytest.raises(ValueError, match=r"rbm\.fit: expected a key to draw with, got None"):
            rbm_fit(resume=tmp_path, checkpoint=tmp_path, key=None)

    @pytest.mark.parametrize("kind", ["fit", "rbm.fit", *thorough("early stopping", "sweep", "dbn.pretrain")])
    def test_a_folder_of_another_run_is_refused(self, kind, tmp_path):
        RUNS[kind](checkpoint=tmp_path)
        with pytest.raises(
            ValueError, match=r"expected checkpoint= a folder without a run of its own, got .* go on from"
        ):
            RUNS[kind](checkpoint=tmp_path)

    def test_nothing_is_written_behind_a_later_checkpoint(self, tmp_path):
        _, half = fit(epochs=2)
        fit(checkpoint=tmp_path)
        for resume in (half.state, tmp_path / "checkpoint-00000004.npz"):
            with pytest.raises(ValueError, match=r"with checkpoints up to epoch 5; go on from them"):
                fit(resume=resume, checkpoint=tmp_path)

    @pytest.mark.thorough
    def test_another_number_of_machines(self, tmp_path):
        pretrain(checkpoint=tmp_path)
        with pytest.raises(
            ValueError, match=r"dbn.pretrain: expected resume= a run with the sizes \(4, 3\), got 3 mach"
        ):
            dbn.pretrain(X, (4, 3), key=KEY, epochs=3, resume=tmp_path, **TRAINING)


def killed_for_good(save):
    """Keeper.save that does not try again what failed."""

    def once(self):
        try:
            save(self)
        except RuntimeError:
            self._unsaved = None
            raise

    return once


class TestOfTheSameRun:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"data": (X.at[0, 0].add(1e-7), Y)}, "data"),
            ({"data": (X[::-1], Y[::-1])}, "data"),
            ({"data": (X, Y, {"weights": jnp.ones(20)})}, "data"),
            ({"data": (X[:9], Y[:9]), "batch_size": 3}, "data, batch_size"),
            ({"validation": (X[:8], Y[:8])}, "validation data"),
            ({"cost": fn.cross_entropy, "data": (X, jax.nn.one_hot(Y, 3))}, "data, cost"),
            ({"net": fn.Network(fn.Dense(4, fn.tanh), fn.Dropout(0.2), fn.Dense(3, fn.softmax))}, "network"),
            ({"batch_size": 5}, "batch_size"),
            ({"penalty": fn.L2(1.0)}, "penalty"),
            (
                {"gradient": lambda *args, **given: fn.value_and_grad(NET, fn.log_likelihood)(*args, **given)},
                "gradient",
            ),
        ],
    )
    def test_what_differs_is_named(self, changes, named, tmp_path):
        _, history = fit(epochs=1, checkpoint=tmp_path)
        message = (
            rf"fit: expected resume= a state of the same run, got one with another {named}; resume with the same arg"
        )
        for resume in (history.state, tmp_path):
            with pytest.raises(ValueError, match=message):
                fit(resume=resume, **changes)

    @pytest.mark.parametrize(
        ("run", "changes", "named"),
        [
            (rbm_fit, {"sparsity": rbm.Sparsity(0.1, 0.1)}, "sparsity"),
            (sweep, {"keys": jax.random.split(KEY, 2)[1:]}, "keys"),
            *(
                pytest.param(*given, marks=pytest.mark.thorough)
                for given in (
                    (rbm_fit, {"validation": X[:8]}, "validation data"),
                    (rbm_fit, {"penalty": fn.L2(1.0)}, "penalty"),
                    (pretrain, {"validation": X[:8]}, "validation data"),
                    (sweep, {"optimizers": [fn.sgd(0.1), fn.sgd(0.2), fn.sgd(0.4)]}, "optimizers"),
                    (sweep, {"penalties": [fn.L2(1.0)]}, "penalties"),
                )
            ),
        ],
    )
    def test_of_machines_and_sweeps(self, run, changes, named, tmp_path):
        run(checkpoint=tmp_path)
        with pytest.raises(ValueError, match=rf"got one with another {named}; resume with the same arguments"):
            run(resume=tmp_path, **changes)

    def test_early_stopping_by_another_monitor(self):
        _, history = fit(epochs=1, early_stopping=fn.EarlyStopping(3, "validation_cost"))
        with pytest.raises(ValueError, match="with another early_stopping monitor; resume"):
            fit(resume=history.state, early_stopping=fn.EarlyStopping(3))
        fit(resume=history.state, early_stopping=fn.EarlyStopping(5, "validation_cost"))

    def test_a_state_of_other_shapes_in_a_file(self, tmp_path):
        fit(checkpoint=tmp_path, epochs=1)
        with pytest.raises(
            ValueError, match=r"fit: expected .* to hold a run with the same network, .*: load: expected"
        ):
            fit(resume=tmp_path, optimizer=fn.adam())

    def test_a_state_without_fingerprint_is_taken_as_it_is(self):
        _, history = fit(epochs=2)
        resumed, _ = fit(resume=history.state._replace(fingerprint=None))
        assert_same(resumed, fit()[0])

    def test_states_are_pytrees_still(self):
        state = fit(epochs=1)[1].state
        assert state.fingerprint.dtype == jnp.uint32
        chex.assert_trees_all_equal(jax.jit(lambda s: s)(state).fingerprint, state.fingerprint)

    def test_checksums_by_hand(self):
        """MurmurHash3's finaliser in plain integers."""

        def mixed(h):
            h = ((h ^ h >> 16) * 0x85EBCA6B) % 2**32
            h = ((h ^ h >> 13) * 0xC2B2AE35) % 2**32
            return h ^ h >> 16

        values = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5
        expected = sum(mixed(int(bits) ^ mixed(i)) for i, bits in enumerate(values.view(np.uint32).ravel())) % 2**32
        assert int(checkpoints.checksum(jnp.asarray(values))) == expected

    @pytest.mark.parametrize(
        "dtype", ["bool", "int4", "uint8", "int32", "int64", "float8_e4m3fn", "bfloat16", "float16", "float32", "float64",
                  "complex64"]
    )  # fmt: skip
    def test_checksums_see_every_entry_and_its_place(self, dtype):
        a = jnp.asarray([[0, 1, 1], [0, 0, 1]]).astype(dtype)
        others = [a.at[1, 2].set(jnp.zeros((), dtype)), a[::-1], a[:, ::-1]]
        assert len({int(checkpoints.checksum(b)) for b in (a, *others)}) == 4
        assert int(jax.jit(checkpoints.checksum)(a)) == int(checkpoints.checksum(a))

    def test_the_same_in_every_process_and_version(self):
        own = checkpoints.fingerprint(
            {"data": (jnp.arange(6.0, dtype=jnp.float32), jnp.arange(3, dtype=jnp.int32)), "validation data": None},
            net=fn.Dense(3, fn.softmax), cost=fn.log_likelihood, batch_size=10, window=None, gradient=len,
        )  # fmt: skip
        assert np.asarray(own).tolist() == [
            1950024486,
            223132457,
            1590707672,
            2017432486,
            2707236321,
            3751981041,
            1608160753,
        ]


class TestSignals:
    @pytest.fixture(autouse=True)
    def undisturbed(self):
        """SIGTERM's handler as it was."""
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        yield
        signal.signal(signal.SIGTERM, before)

    def test_sigterm_saves_and_returns_what_is_done(self, tmp_path):
        with signalled(at=3):
            _, history = fit(checkpoint=tmp_path, every=100)
        assert len(history.cost) == 2
        assert [f.name for f in tmp_path.iterdir()] == ["checkpoint-00000002.npz"]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert_same(fit(checkpoint=tmp_path, resume=tmp_path), fit())

    def test_the_handler_of_before_is_called_and_put_back(self, tmp_path):
        seen = []
        handler = lambda number, frame: seen.append((number, sorted(tmp_path.iterdir())))  # noqa: E731
        signal.signal(signal.SIGTERM, handler)
        with signalled(at=3):
            fit(checkpoint=tmp_path, every=100)
        assert seen == [(signal.SIGTERM, [tmp_path / "checkpoint-00000002.npz"])]
        assert signal.getsignal(signal.SIGTERM) is handler
        signal.signal(signal.SIGTERM, lambda *given: sys.exit(7))
        with signalled(at=3), pytest.raises(SystemExit, match="7"):
            fit(checkpoint=tmp_path, resume=tmp_path)

    def test_where_it_is_ignored_it_stays_ignored(self, tmp_path):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with signalled(at=3):
            _, history = fit(checkpoint=tmp_path)
        assert len(history.cost) == 5

    @pytest.mark.thorough
    def test_it_is_put_back_after_an_error(self, tmp_path):
        with pytest.raises(fn.Diverged):
            fit(checkpoint=tmp_path, optimizer=fn.sgd(jnp.inf))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def test_no_handler_without_a_checkpoint_or_in_another_thread(self, tmp_path, monkeypatch):
        monkeypatch.setattr(signal, "signal", lambda *given: pytest.fail("a handler was set"))
        fit(epochs=1)
        results = []
        thread = threading.Thread(target=lambda: results.append(fit(checkpoint=tmp_path)))
        thread.start()
        thread.join()
        monkeypatch.undo()
        assert_same(results[0], fit())
        assert len(list(tmp_path.iterdir())) == 3

    def test_ctrl_c_saves_too(self, tmp_path):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with signalled(at=5, number=signal.SIGINT):
                _, history = fit(checkpoint=tmp_path, every=100)
        finally:
            signal.signal(signal.SIGINT, before)
        assert [int(f.stem[11:]) for f in tmp_path.iterdir()] == [len(history.cost)] == [2]

    @pytest.mark.thorough
    def test_machines_and_stacks(self, tmp_path):
        def k(epoch):
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return 1

        _, history = rbm_fit(checkpoint=tmp_path / "rbm", k=k)
        assert int(history.state.epoch) == 3
        assert_same(rbm_fit(checkpoint=tmp_path / "rbm", resume=tmp_path / "rbm")[0], rbm_fit()[0])
        stack, _ = pretrain(checkpoint=tmp_path / "dbn", k=k)
        assert len(stack) == 1
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert_same(pretrain(checkpoint=tmp_path / "dbn", resume=tmp_path / "dbn"), pretrain())

    @pytest.mark.thorough
    def test_half_a_sweep_is_none(self, tmp_path, monkeypatch):
        original = checkpoints.Keeper.__call__

        def keep(self, state):
            if int(state.epoch) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, state)

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints.Keeper, "__call__", keep)
            with pytest.raises(KeyboardInterrupt, match="sweep: stopped by SIGTERM; resume="):
                sweep(checkpoint=tmp_path, every=100)
        assert [f.stem[-1] for f in tmp_path.iterdir()] == ["4"]
        assert_same(sweep(checkpoint=tmp_path, resume=tmp_path), sweep())


LONGER = [("fit", 10, 5), ("batches", 2, 3), ("sweep", 2, 3), ("rbm", 2, 3), ("dbn", 2, 3)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    ("kind", "runs", "kills"),
    [
        pytest.param("fit", 1, 3, marks=pytest.mark.thorough),
        *(pytest.param(*given, marks=pytest.mark.slow) for given in LONGER),
    ],
)
def test_killed_at_random_moments(kind, runs, kills, tmp_path):
    command = [sys.executable, "-m", "tests.kills", kind, str(runs), str(kills), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)
    assert figures["equal"] == runs
    assert figures["killed"] > kills * runs // 2
