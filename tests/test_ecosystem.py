"""What fnnet meets in other people's code: optax's whole protocol, gradients of another precision, guards against transfers,
and processes that fit again and again."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnnet as fn
from fnnet import dbn, rbm
from fnnet.optimizers import updated

from .cases import assert_agree, thorough

KEY = jax.random.key(2)
X = jax.random.normal(jax.random.key(1), (24, 5))
Y = jnp.arange(24) % 3
NET = fn.Dense(3, fn.softmax)
PARAMS = NET.init(jax.random.key(0), (5,))
SETTINGS = {"key": KEY, "epochs": 3, "batch_size": 8, "progress": False}


def fit(optimizer, **changes):
    given = {**SETTINGS, "optimizer": optimizer, **changes}
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        return fn.fit(NET, fn.log_likelihood, PARAMS, (X, Y), **given)


class TestOptax:
    @pytest.mark.parametrize(
        "build",
        [
            lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)),
            lambda: optax.polyak_sgd(0.1),
            lambda: optax.chain(optax.sgd(0.5), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)),
            lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
            *thorough(
                lambda: optax.contrib.momo(0.1),
                lambda: optax.contrib.momo_adam(0.1),
                lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
                lambda: optax.contrib.schedule_free_sgd(0.1),
                lambda: optax.apply_if_finite(optax.polyak_sgd(0.1), 2),
                lambda: optax.MultiSteps(optax.sgd(0.1), 2),
                lambda: optax.inject_hyperparams(optax.adam)(0.01),
                lambda: optax.contrib.prodigy(0.1),
            ),
        ],
    )  # fmt: skip
    def test_transformations_get_what_they_ask_for(self, build):
        params, history = fit(build(), penalty=fn.L2(0.1))
        assert history.cost[-1] < fn.evaluate(NET, fn.log_likelihood, PARAMS, (X, Y), penalty=fn.L2(0.1))[0]
        _, half = fit(build_same := build(), penalty=fn.L2(0.1), epochs=1)
        resumed, _ = fit(build_same, penalty=fn.L2(0.1), resume=half.state)
        for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize(
        "build",
        [*thorough(optax.lbfgs), lambda: fn.chain(fn.clip_by_global_norm(10.0), optax.lbfgs())],
        ids=["alone", "chained"],
    )
    def test_lbfgs_on_the_whole_batch(self, build):
        """A quasi-Newton method: further after three steps than gradient descent after ten."""
        _, history = fit(build(), batch_size=24, epochs=10)
        _, descent = fit(fn.sgd(0.5), batch_size=24, epochs=10)
        start = fn.evaluate(NET, fn.log_likelihood, PARAMS, (X, Y))[0]
        assert np.all(np.diff([start, *history.cost]) <= 0)
        assert history.cost[2] < descent.cost[-1]

    @pytest.mark.thorough
    def test_in_a_sweep(self):
        with jax.numpy_dtype_promotion("standard"):
            given = {"epochs": 2, "batch_size": 8, "progress": False, "keys": jax.random.split(KEY, 2)}
            for optimizer in (optax.lbfgs(), optax.polyak_sgd(0.1)):
                swept = fn.sweep(NET, fn.log_likelihood, (X, Y), optimizers=[optimizer], **given)
                assert np.isfinite(swept.cost).all()

    @pytest.mark.thorough
    def test_value_and_functions_by_hand(self):
        """The objective with its penalty, dropout's masks of the step in it, and its hand-written gradient as derivative."""
        seen = {}

        def update(grads, state, params, *, value, grad, value_fn, grad_fn):
            seen.update(value=value, grads=grads, grad=grad, again=value_fn(params), own=grad_fn(params, 0))
            seen["derivative"] = jax.grad(lambda p: 3 * value_fn(p))(params)
            jax.debug.callback(lambda found: results.append(found), dict(seen))
            return jax.tree.map(jnp.zeros_like, grads), state

        results, net = [], fn.Network(fn.Dropout(0.3), NET)
        optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
        params = net.init(KEY, (5,))
        fn.fit(net, fn.log_likelihood, params, (X, Y), key=KEY, epochs=1, batch_size=24, optimizer=optimizer,
               penalty=fn.L2(2.0), progress=False)  # fmt: skip
        jax.effects_barrier()
        shuffle_key, step_key = jax.random.split(jax.random.fold_in(KEY, 0))
        rows = jax.random.permutation(shuffle_key, 24)
        objective = fn.objective(net, fn.log_likelihood, penalty=fn.L2(2.0))
        value, grads = jax.value_and_grad(objective)(params, X[rows], Y[rows], key=jax.random.fold_in(step_key, 0))
        (found,) = results
        for name in ("value", "again"):
            np.testing.assert_allclose(found[name], value, rtol=1e-12)
        for name in ("grads", "grad", "own"):
            assert_agree(found[name], grads, 1e-10)
        assert_agree(found["derivative"], jax.tree.map(lambda g: 3 * g, grads), 1e-10)

    def test_an_own_gradient_is_the_derivative(self):
        """Feedback of one's own: a line search along it needs its value only."""

        def gradient(params, x, y, *, key, weights):
            value, grads = fn.value_and_grad(NET, fn.log_likelihood)(params, x, y)
            return value, jax.tree.map(jnp.sign, grads)

        _, history = fit(optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5)), gradient=gradient)
        assert history.cost[-1] < history.cost[0]

    @pytest.mark.thorough
    def test_windows(self):
        net = fn.Network(fn.RNN(4), fn.Dense(2, fn.linear))
        x = jax.random.normal(KEY, (6, 8, 3))
        with jax.numpy_dtype_promotion("standard"):
            _, history = fn.fit(net, fn.quadratic, net.init(KEY, (8, 3)), (x, x[..., :2]), key=KEY, epochs=3, batch_size=3,
                                window=4, optimizer=optax.polyak_sgd(0.05), progress=False)  # fmt: skip
        assert history.cost[-1] < history.cost[0]

    def test_what_cannot_be_given_is_said(self):
        def update(grads, state, params, *, hessian, **others):
            return grads, state

        optimizer = optax.chain(optax.GradientTransformationExtraArgs(lambda params: (), update), optax.sgd(0.1))
        with pytest.raises(ValueError, match=r"fit: expected an optimizer whose update needs no more than .*'hessian'"):
            fit(optimizer)
        machine = rbm.init(KEY, 5, 3)
        with pytest.raises(
            ValueError, match=r"rbm\.fit: expected an optimizer whose .* grads, state, params, got .*'value'"
        ):
            rbm.fit(machine, jax.nn.sigmoid(X), optimizer=optax.polyak_sgd(0.1), **SETTINGS)

    def test_other_type_errors_are_left_alone(self):
        def update(grads, state, params):
            raise TypeError("mine")

        with pytest.raises(TypeError, match="mine"):
            fit(optax.GradientTransformation(lambda params: (), update))


DTYPES = ["bfloat16", "float16", "float32", "float64"]
OPTIMIZERS = {
    "sgd": lambda: fn.sgd(0.1),
    "momentum": lambda: fn.sgd(0.1, momentum=0.9),
    "nesterov": lambda: fn.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: fn.adam(0.01),
    "chain": lambda: fn.chain(fn.clip(1.0), fn.clip_by_global_norm(1.0), fn.sgd(0.1, momentum=0.9)),
    "optax momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "optax adam": lambda: optax.adam(0.01),
}


class TestPrecision:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    @pytest.mark.parametrize("gradient_dtype", [DTYPES[-1], *thorough(*DTYPES[:-1])])
    @pytest.mark.parametrize("dtype", [DTYPES[0], *thorough(*DTYPES[1:])])
    def test_parameters_and_state_keep_their_dtypes(self, dtype, gradient_dtype, name):
        optimizer = OPTIMIZERS[name]()
        params = {"w": jnp.array([1.0, -2.0], dtype), "b": jnp.array([0.5], dtype)}
        start = optimizer.init(params)

        def step(carry, i):
            params, state = carry
            grads = jax.tree.map(lambda p: jnp.sin(3 * p.astype(jnp.float64) + i).astype(gradient_dtype), params)
            updates, state = updated("fit", optimizer, grads, state, params)
            return (fn.apply_updates(params, updates), state), None

        with jax.numpy_dtype_promotion("standard" if name.startswith("optax") else "strict"):
            (after, state), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(5.0)))((params, start))
        for ours, before in ((after, params), (state, start)):
            assert jax.tree.map(lambda a: a.dtype, ours) == jax.tree.map(lambda a: a.dtype, before)
        exact = self.in_float64(optimizer, name)
        bound = 20 * max(float(jnp.finfo(d).eps) for d in (dtype, gradient_dtype))
        for key in params:
            np.testing.assert_allclose(after[key].astype(float), exact[key], rtol=bound, atol=bound)

    def in_float64(self, optimizer, name):
        params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
        state = optimizer.init(params)
        with jax.numpy_dtype_promotion("standard" if name.startswith("optax") else "strict"):
            for i in range(5):
                updates, state = optimizer.update(
                    jax.tree.map(lambda p, i=i: jnp.sin(3 * p + i), params), state, params
                )
                params = fn.apply_updates(params, updates)
        return params

    @pytest.mark.parametrize("name", ["momentum", "adam", *thorough("sgd", "nesterov")])
    def test_a_gradient_function_of_wider_precision(self, name):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)

        def gradient(params, x, y, *, key, weights):
            value, grads = fn.value_and_grad(NET, fn.log_likelihood)(params, x, y)
            return value, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

        given = {**SETTINGS, "optimizer": OPTIMIZERS[name](), "gradient": gradient, "penalty": fn.L2(0.1)}
        trained, _ = fn.fit(NET, fn.log_likelihood, params, (X.astype(jnp.bfloat16), Y), **given)
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(trained))


NETS = {
    "dense": (fn.Network(fn.Dense(4, fn.sigmoid), fn.Dropout(0.2), NET), np.ones((9, 5))),
    "conv": (fn.Network(fn.Conv(2, 3, fn.relu), fn.MaxPool(2), fn.Flatten(), NET), np.ones((9, 6, 6, 1))),
    "recurrent": (fn.Network(fn.LSTM(3), fn.LastStep(), NET), np.ones((9, 4, 2))),
    "embedding": (fn.Network(fn.Embedding(7, 3), fn.GRU(3), fn.LastStep(), NET), np.ones((9, 4), int)),
}


class TestTransfers:
    """NumPy data and Python numbers everywhere: they are put on the device explicitly."""

    @pytest.mark.thorough
    @pytest.mark.parametrize("name", ["dense", *thorough("conv", "recurrent", "embedding")])
    def test_networks(self, name):
        net, x = NETS[name]
        y, key, rows = np.arange(9) % 3, jax.random.key(5), jax.device_put(np.arange(9) % 3)
        given = {
            "key": key,
            "epochs": 2,
            "batch_size": 4,
            "penalty": fn.L2(0.1),
            "validation": (x, y),
            "progress": False,
        }
        with jax.transfer_guard("disallow"):
            params = net.init(key, x.shape[1:])
            fn.accuracy(net.apply(params, x), rows)
            fn.backprop(net, fn.log_likelihood, params, x, y, key=key, penalty=fn.L2(0.1), n_examples=9)
            fn.value_and_grad(net, fn.log_likelihood, penalty=fn.L2(0.1))(params, x, y, key=key)
            fn.objective(net, fn.log_likelihood, penalty=fn.L2(0.1))(params, x, y, key=key)
            fn.evaluate(net, fn.log_likelihood, params, (x, y), penalty=fn.L2(0.1))
            for optimizer in (fn.sgd(0.1, momentum=0.9), fn.chain(fn.clip(1.0), fn.adam(fn.CosineDecay(0.1, 9)))):
                stop = fn.EarlyStopping(5)
                fn.fit(net, fn.log_likelihood, params, (x, y), optimizer=optimizer, early_stopping=stop, **given)

    @pytest.mark.thorough
    def test_a_sweep_an_audit_and_checkpoints(self, tmp_path):
        (net, x), keys = NETS["dense"], jax.random.split(KEY, 2)
        y, params = np.arange(9) % 3, net.init(KEY, (5,))
        given = {"epochs": 2, "batch_size": 4, "progress": False, "checkpoint": tmp_path, "resume": tmp_path}
        with jax.transfer_guard("disallow"):
            assert fn.compare_gradients(net, fn.log_likelihood, params, x, y, key=KEY).ok
            for _ in range(2):
                fn.sweep(net, fn.log_likelihood, (x, y), keys=keys, optimizers=[fn.sgd(0.1), fn.sgd(0.2)],
                         penalties=[fn.L2(0.0), fn.L2(1.0)], validation=(x, y), **given)  # fmt: skip

    @pytest.mark.thorough
    def test_a_run_that_diverges(self):
        with jax.transfer_guard("disallow"), pytest.raises(fn.Diverged):
            fit(fn.sgd(float("inf")))

    @pytest.mark.thorough
    def test_machines(self, tmp_path):
        x = np.random.default_rng(0).random((9, 5))
        given = {"key": KEY, "epochs": 2, "batch_size": 4, "optimizer": fn.sgd(0.1), "validation": x, "progress": False}
        with jax.transfer_guard("disallow"):
            for visible in ("bernoulli", "gaussian"):
                machine = rbm.init(KEY, 5, 3, data=x)
                rbm.fit(machine, x, visible=visible, persistent=True, penalty=fn.L2(1.0), **given)
                rbm.annealed_importance_sampling(machine, KEY, chains=3, betas=4, visible=visible)
            rbm.contrastive_divergence(machine, KEY, x, k=2)
            rbm.gibbs(machine, KEY, x, k=2)
            for _ in range(2):
                stack, _ = dbn.pretrain(x, (4, 3), checkpoint=tmp_path, resume=tmp_path, **given)
            dbn.generate(stack, KEY, jax.device_put(x), k=2)


class TestMemory:
    """A process that fits with ever fresh functions forgets the programs of the old ones."""

    def held(self, build, run, n=40):
        references = []
        for i in range(n):
            own = build(i)
            references.append(weakref.ref(own))
            run(own)
        del own
        gc.collect()
        return sum(reference() is not None for reference in references)

    @pytest.mark.thorough
    def test_fresh_gradients(self):
        def build(i):
            return lambda params, x, y, *, key, weights: (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))

        run = lambda gradient: fit(fn.sgd(0.1), gradient=gradient, epochs=1, monitor_training=False)  # noqa: E731
        assert self.held(build, run) <= 32

    @pytest.mark.thorough
    def test_fresh_schedules(self):
        run = lambda schedule: fit(fn.sgd(schedule), epochs=1, monitor_training=False)  # noqa: E731
        assert self.held(lambda i: lambda step: 0.1 / (1 + step), run) <= 32
