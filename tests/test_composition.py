"""Composition: own wirings and joins, branches, ties, repetitions and recomputation; what the generic tests don't show."""

import collections
import copy
import functools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.backpropagation import _value_and_grad
from fnnet.chunks import chunk_size
from fnnet.layers._composite import output_place, walk
from fnnet.programs import program

from .cases import assert_agree, thorough

KEY = jax.random.key(3)


def drawn(net, shape, m=5, seed=0):
    """Parameters with biases that are not zero, and inputs."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jax.device_put(0.5 * rng.standard_normal(leaf.shape)),
        jax.eval_shape(lambda: net.init(jax.random.key(0), shape)),
    )
    return params, jax.device_put(rng.standard_normal((m, *shape)))


def operations(f, *args):
    """How often each operation stands in the program of f."""
    return collections.Counter(re.findall(r"= ([\w.]+)", jax.jit(f).lower(*args).as_text()))


def mixed(t, h, a):
    return t * h + (1 - t) * a


def unmixed(da, t, h, a):
    return (h - a) * da, t * da, (1 - t) * da


highway = fn.Join("highway", mixed, unmixed)


@fn.layer
class Turned(fn.Composite):
    """Its second part runs first."""

    outer: fn.Layer
    inner: fn.Layer

    last = 0

    @property
    def layers(self):
        return self.outer, self.inner

    def wire(self, run, a_in):
        return run(0, run(1, a_in)), None

    def unwire(self, back, da_out, extra):
        return back(1, back(0, da_out))


@fn.layer
class Gated(fn.Composite):
    """a = h ⊙ t, where h goes on to the gate as well: t = gate(h)."""

    layers: tuple

    def wire(self, run, a_in):
        h = run(0, a_in)
        t = run(1, h)
        return h * t, (h, t)

    def unwire(self, back, da_out, extra):
        h, t = extra
        through = None if da_out is None else h * da_out
        past = None if da_out is None else t * da_out
        behind = back(1, through)
        return back(0, None if da_out is None else past + behind)


OWN = {
    "a highway": fn.Network(
        fn.Parallel(fn.Dense(4, fn.sigmoid), fn.Dense(4, fn.tanh), fn.Identity(), join=highway), fn.Dense(3, fn.softmax)
    ),
    "another order": Turned(fn.Dense(3, fn.softmax), fn.Dense(5, fn.tanh)),
    "a value used twice": fn.Network(Gated([fn.Dense(5, fn.tanh), fn.Dense(5, fn.sigmoid)]), fn.Dense(3, fn.softmax)),
    "all within each other": fn.Recompute(
        Turned(
            fn.Dense(3, fn.softmax),
            fn.Repeat(Gated([fn.Dense(4, fn.silu), Turned(fn.Dropout(0.2), fn.Dense(4, fn.tanh))]), 2),
        )
    ),
}


@pytest.mark.parametrize(
    "name", ["a highway", "another order", "a value used twice", *thorough("all within each other")]
)
def test_own_wirings_against_autodiff(name):
    net = OWN[name]
    params, x = drawn(net, (4,))
    y = jnp.arange(5) % 3

    @jax.jit
    def both(params, x):
        about = {"key": KEY, "penalty": fn.L2(2.0)}
        kept = {"penalty": fn.L2(2.0), "micro_batch": None}
        bp = fn.backprop(net, fn.log_likelihood, params, x, y, **about)

        def probed(probe):
            a, cache = net.forward(params, x, key=KEY, train=True, probe=probe)
            return 5 * fn.log_likelihood(a, y, output=net.output(params, cache))

        errors = jax.grad(probed)(jax.tree.map(jnp.zeros_like, bp.errors))
        reference = jax.grad(fn.objective(net, fn.log_likelihood, penalty=fn.L2(2.0)))(params, x, y, key=KEY)
        composed = fn.value_and_grad(net, fn.log_likelihood, **kept)(params, x, y, key=KEY)[1]
        return (bp.errors, bp.gradients, composed), (errors, reference, reference)

    assert_agree(*both(params, x), 1e-12)


@pytest.mark.parametrize(
    "name", ["a value used twice", *thorough("a highway", "another order", "all within each other")]
)
def test_own_wirings_in_the_audit(name):
    net = OWN[name]
    params, x = drawn(net, (4,))
    report = fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(5) % 3, key=KEY)
    assert report.ok, str(report)
    assert {f"{'.'.join(map(str, placed.place))} {type(placed.layer).__name__}" for placed in walk(net, params)} < {
        row.layer for row in report.rows
    }


@fn.layer
class Named(fn.Composite):
    """Two layers in a row, with a name each."""

    first: fn.Layer
    second: fn.Layer

    last = -1

    @property
    def layers(self):
        return self.first, self.second

    wire, unwire = fn.Network.wire, fn.Network.unwire

    def parts(self, params):
        return (self.first, params["first"]), (self.second, params["second"])

    def joined(self, of_parts):
        return dict(zip(("first", "second"), of_parts, strict=True))


def test_parameters_of_another_structure():
    """Drawn, moved and trained as those of the chain."""
    named, chain = Named(fn.BatchNorm(), fn.Dense(3, fn.softmax)), fn.Network(fn.BatchNorm(), fn.Dense(3, fn.softmax))
    params, (_, x), y = named.init(KEY, (4,)), drawn(chain, (4,)), jnp.arange(5) % 3
    fitted = []
    for net, start in ((named, params), (chain, chain.init(KEY, (4,)))):
        about = {"key": KEY, "epochs": 2, "batch_size": 5, "optimizer": fn.sgd(0.5)}
        fitted.append(fn.fit(net, fn.log_likelihood, start, (x, y), **about)[0])
    assert_agree(tuple(fitted[0].values()), fitted[1], 1e-15)
    assert float(jnp.max(jnp.abs(fitted[0]["first"]["mean"]))) > 0


def test_a_matched_cost_enters_where_last_says():
    net = OWN["another order"]
    params, x = drawn(net, (4,))
    a, cache = net.forward(params, x)
    assert net.output(params, cache)[0] is fn.softmax
    assert_agree(
        fn.backprop(net, fn.log_likelihood, params, x, jnp.arange(5) % 3).errors[0],
        a - jnp.eye(3)[jnp.arange(5) % 3],
        1e-14,
    )
    assert fn.Network(fn.Dense(2, fn.tanh), net).in_loop()[1].inner == net.inner.in_loop()
    assert Gated([net]).output(None, None) is None


class TestRepeat:
    BLOCK = fn.Residual(fn.Dense(4, fn.tanh), fn.Dropout(0.3))

    @pytest.mark.parametrize(
        ("last", "cost"),
        [(fn.softmax, fn.log_likelihood), pytest.param(fn.linear, fn.quadratic, marks=pytest.mark.thorough)],
    )
    def test_its_program_does_not_grow(self, last, cost):
        def program(n):
            net = fn.Network(fn.Repeat(self.BLOCK, n), fn.Repeat(fn.Dense(4, last), n))
            params, x = drawn(net, (4,))
            return operations(lambda p: fn.value_and_grad(net, cost)(p, x, jnp.ones((5, 4)) / 4, key=KEY), params)

        assert program(3) == program(30)

    def test_the_audit_names_each_repetition(self):
        net = fn.Repeat(fn.Network(fn.Dense(3, fn.softmax)), 2)
        params, x = drawn(net, (3,))
        report = fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(5) % 3)
        assert report.ok, str(report)
        assert {"0.0 Dense", "1.0 Dense"} < {row.layer for row in report.rows}

    @pytest.mark.thorough
    def test_it_is_the_same_layers_written_out(self):
        once, cost = self.BLOCK, fn.quadratic
        repeated, written = fn.Repeat(once, 3), fn.Network(once, once, once)
        params, x = drawn(repeated, (4,))
        unstacked = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(3))
        other = drawn(repeated, (4,), seed=5)[0]
        apart = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], other) for i in range(3))

        @functools.partial(jax.jit, static_argnums=0)
        def run(net, params, feedback):
            given, about = (params, x, x), {"key": KEY, "penalty": fn.L2(2.0)}
            cost_of_all, gradients = fn.value_and_grad(net, cost, penalty=fn.L2(2.0), micro_batch=2)(*given, key=KEY)
            bp = fn.backprop(net, cost, *given, **about)
            aligned = fn.backprop(net, cost, *given, **about, feedback=feedback)
            return (net.apply(params, x), cost_of_all, bp.cost, bp.errors, aligned.errors), (
                gradients, bp.gradients, aligned.gradients)  # fmt: skip

        ours, theirs = run(repeated, params, other), run(written, unstacked, apart)
        assert_agree(ours[0], theirs[0], 1e-14)
        stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients) for gradients in theirs[1]]
        assert_agree(list(ours[1]), stacked, 1e-13)

    def test_each_repetition_draws_its_own(self):
        net = fn.Repeat(fn.Dropout(0.5), 2)
        a, (keep, _) = net.forward({}, jnp.ones((20, 20)), key=KEY, train=True)
        first, second = keep
        assert bool(jnp.any(first != second))
        np.testing.assert_array_equal(a, jnp.where(first & second, 4.0, 0.0))
        for placed, expected in zip(walk(net, {}, KEY), keep, strict=True):
            _, (drawn_alone, _) = placed.layer.forward({}, jnp.ones((20, 20)), key=placed.key, train=True)
            np.testing.assert_array_equal(drawn_alone, expected)

    @pytest.mark.thorough
    def test_masks_and_states(self):
        net = fn.Network(fn.Repeat(fn.Residual(fn.LSTM(2)), 2), fn.Parallel(fn.GRU(2), fn.Identity()))
        params, x = drawn(net, (5, 2))
        mask = fn.length_mask([5, 3, 1, 4, 2], 5)
        whole = net.apply(params, x, mask=mask)
        first, state = net.apply_from(params, x[:, :2], mask=mask[:, :2])
        rest, _ = net.apply_from(params, x[:, 2:], state, mask=mask[:, 2:])
        np.testing.assert_allclose(jnp.concatenate([first, rest], 1), whole, atol=1e-14)
        np.testing.assert_allclose(whole[1, :3], net.apply(params, x[1:2, :3])[0], atol=1e-14)


class TestTied:
    def test_its_gradient_is_the_sum_over_the_uses(self):
        inner = fn.Network(fn.Residual(fn.Dense(4, fn.tanh)), fn.Dense(4, fn.silu), fn.Dense(4, fn.softmax))
        net = fn.Tied(inner, "0.1.0.w", "1.w", "-1.w")
        params, x = drawn(net, (4,))
        assert [sorted(part) for part in (params[0][1][0], params[1], params[2])] == [["b", "w"], ["b"], ["b"]]
        y = jnp.arange(5) % 4

        @jax.jit
        def both(params):
            tied = fn.backprop(net, fn.log_likelihood, params, x, y, penalty=fn.L2(3.0))
            loose = fn.backprop(inner, fn.log_likelihood, net.expanded(params), x, y)
            reference = jax.grad(fn.objective(net, fn.log_likelihood, penalty=fn.L2(3.0)))(params, x, y)
            return tied, loose, reference

        tied, loose, reference = both(params)
        uses = [loose.gradients[0][1][0]["w"], loose.gradients[1]["w"], loose.gradients[2]["w"]]
        w = params[0][1][0]["w"]
        assert_agree(tied.gradients[0][1][0]["w"], sum(uses) + 3.0 / 5 * w, 1e-13)
        assert_agree(tied.gradients, reference, 1e-12)
        assert_agree(tied.errors, loose.errors, 0)
        np.testing.assert_allclose(tied.cost - loose.cost, 3.0 / 10 * jnp.sum(w**2))

    @pytest.mark.parametrize(
        "around", [fn.Recompute, *thorough(lambda net: fn.Repeat(net, 2))], ids=["recomputed", "repeated"]
    )
    def test_around_what_keeps_another_cache(self, around):
        pair = fn.Network(fn.Dense(4, fn.tanh), fn.Dropout(0.3), fn.Dense(4, fn.silu))
        outside, inside = fn.Tied(around(pair), "0.w", "2.w"), around(fn.Tied(pair, "0.w", "2.w"))
        params, x = drawn(inside, (4,))

        @functools.partial(jax.jit, static_argnums=0)
        def run(net):
            about = (params, x, x), {"key": KEY}
            return [f(*about[0], **about[1]) for f in (fn.value_and_grad(net, fn.quadratic), functools.partial(
                fn.backprop, net, fn.quadratic))]  # fmt: skip

        assert_agree(run(outside), run(inside), 1e-14)

    def test_its_parameters_are_those_of_the_network(self):
        net = fn.Tied(fn.Network(fn.Embedding(6, 3), fn.Dense(3, fn.tanh), fn.Dense(6, fn.softmax)), "0.w", "2.w")
        drawn_alike = net.net.init(KEY, (4,))
        params = net.init(KEY, (4,))
        assert_agree(
            net.expanded(params), (*drawn_alike[:2], {**drawn_alike[2], "w": drawn_alike[0]["w"]}), 0, zero=True
        )
        assert net.output_shape((4,)) == (4, 6)
        assert repr(net) == ("Tied(Network(Embedding(6, 3), Dense(3, tanh), Dense(6, softmax)), '0.w', '2.w')")


@pytest.mark.parametrize(
    "net",
    [
        fn.Residual(fn.Dense(4, fn.tanh)),
        fn.Parallel(fn.Identity(), fn.Identity(), join=fn.concatenate),
        fn.Tied(fn.Network(fn.Dense(4, fn.tanh), fn.Dense(4, fn.tanh)), "0.w", "1.w"),
        fn.Repeat(fn.Residual(fn.Dense(4, fn.tanh)), 2),
        fn.Recompute(fn.LSTM(3)),
    ],
    ids=lambda net: type(net).__name__,
)
def test_copies_and_pickles_are_equal(net):
    hash(net)
    for twin in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin == net
        assert hash(twin) == hash(net)
        assert repr(twin) == repr(net)
    other = fn.Network(net, fn.Flatten())
    assert other != net


class TestRecompute:
    NET = fn.Network(fn.Dense(6, fn.tanh), fn.Dropout(0.3), fn.Residual(fn.Dense(6, fn.silu)), fn.Dense(3, fn.softmax))

    @pytest.mark.thorough
    def test_it_is_the_layer_itself(self):
        params, x = drawn(self.NET, (4,))
        given = params, x, jnp.arange(5) % 3

        @functools.partial(jax.jit, static_argnums=0)
        def run(net, feedback):
            about = {"key": KEY, "feedback": feedback}
            return (
                net.apply(params, x),
                fn.backprop(net, fn.log_likelihood, *given, **about),
                fn.value_and_grad(net, fn.log_likelihood)(*given, key=KEY),
                fn.value_and_grad(net, fn.log_likelihood, micro_batch=2)(*given, key=KEY),
            )

        feedback = drawn(self.NET, (4,), seed=7)[0]
        assert_agree(run(fn.Recompute(self.NET), feedback), run(self.NET, feedback), 1e-14)

    def test_a_matched_cost_enters_through_it(self):
        assert output_place(fn.Network(fn.Flatten(), fn.Recompute(self.NET))) == (1, 3)

    @pytest.mark.thorough
    def test_a_state_goes_through_it(self):
        net = fn.Network(fn.Recompute(fn.LSTM(3)), fn.Recompute(fn.Network(fn.Dense(3, fn.tanh), fn.GRU(2))))
        params, x = drawn(net, (6, 2))
        first, state = net.apply_from(params, x[:, :2])
        rest, _ = net.apply_from(params, x[:, 2:], state)
        np.testing.assert_allclose(jnp.concatenate([first, rest], 1), net.apply(params, x), atol=1e-14)

    @pytest.mark.thorough
    def test_its_temporaries_are_fewer(self):
        block = fn.Residual(fn.Dense(64, fn.tanh), fn.Dense(16, fn.tanh))

        def temporaries(net):
            params, x = drawn(net, (16,), m=256)
            f = jax.jit(lambda p: fn.value_and_grad(net, fn.quadratic, micro_batch=None)(p, x, x))
            return f.lower(params).compile().memory_analysis().temp_size_in_bytes

        plain, again = temporaries(fn.Repeat(block, 12)), temporaries(fn.Repeat(fn.Recompute(block), 12))
        kept = 12 * 256 * 16 * 8  # a_in of each repetition
        assert kept < again < 0.4 * plain
        assert again < kept + temporaries(fn.Repeat(block, 1)) * 1.5

    def test_its_parameters_do_not_count_as_activations(self):
        wide = fn.Network(fn.Dense(3000, fn.tanh), fn.Dense(2, fn.tanh))
        for net in (wide, fn.Recompute(wide)):
            params = jax.eval_shape(lambda net=net: net.init(KEY, (1000,)))
            x = jax.ShapeDtypeStruct((48, 1000), jnp.float64)
            size = functools.partial(chunk_size, net, key=None, mask=None, micro_batch="auto")
            assert jax.eval_shape(lambda p, x, size=size: jnp.zeros(size(p, x)), params, x).shape == (48,)


class Wired(fn.Composite):
    """Two parts of three units in any wiring."""

    layers = (fn.Dense(3, fn.tanh), fn.Dense(3, fn.sigmoid))


def wired(wire=None, unwire=None, last=-1):
    """A composite of these functions."""
    given = {"wire": wire, "unwire": unwire}
    methods = {name: lambda self, *of, f=f: f(*of) for name, f in given.items() if f is not None}
    return fn.layer(type("Wired", (Wired,), {**methods, "last": last}))()


def in_a_row(run, a):
    return run(1, run(0, a)), None


def backwards(back, da, extra):
    return back(0, back(1, da))


def trained(net, shape=(3,), cost=fn.quadratic, **given):
    params, x = drawn(net, shape)
    return fn.backprop(net, cost, params, x, jnp.zeros((5, *net.output_shape(shape))), **given)


@fn.layer
class Opaque:
    """It has no propagate."""

    def forward(self, params, a_in):
        return 2 * a_in, ()


@fn.layer
class Tripled(fn.Network):
    def forward(self, params, a_in, **given):
        a, cache = super().forward(params, a_in, **given)
        return 3 * a, cache


D, E = fn.Dense(3, fn.tanh), fn.Dense(4, fn.tanh)
DEEP = fn.Network(fn.Flatten(), fn.Network(D, fn.Network(fn.Flatten(), fn.Parallel(D, E))))
TIED = fn.Network(fn.Network(D), E, D)
NET = fn.Network(fn.Residual(D), fn.Repeat(D, 2))
PARAMS = drawn(NET, (3,))[0]
ONE, ERROR = jnp.ones((2, 3)), r"Wired\(\): expected "


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: wired().init(KEY, (3,)), r"Wired defines no wire\(run, a_in\) -> \(a_out, extra\)"),
        (lambda: trained(wired(in_a_row)), r"Wired defines no unwire\(back, da_out, extra\) -> da_in"),
        (
            lambda: wired(lambda run, a: (run(0, a), None)).init(KEY, (3,)),
            r"layer 1 Dense\(3, sigmoid\): expected one run of each part in wire, got none; run each part once in wire",
        ),
        (
            lambda: wired(lambda run, a: (run(0, a), None)).apply((PARAMS[0][1][0],) * 2, ONE),
            "layer 1 Dense.*one run of each part in wire, got n",
        ),
        (
            lambda: trained(wired(lambda run, a: (run(1, run(0, run(0, a))), None))),
            r"layer 0 Dense\(3, tanh\): expected one run of each part in wire, got two; run each part once; .*tied: fn\.Tied",
        ),
        (
            lambda: trained(wired(in_a_row, last=0)),
            ERROR + r"last = 1, since wire returns what part 1 gives, got last = 0; write it in W",
        ),
        (
            lambda: trained(wired(in_a_row, last=None)),
            ERROR + r"last = 1, since .*, got last = None; write .*: a cost enters there",
        ),
        (
            lambda: trained(wired(lambda run, a: (2 * run(1, run(0, a)), None))),
            ERROR + "last = None, since wire returns what no part gives, got last = -1; write it in Wired",
        ),
        (
            lambda: trained(wired(in_a_row, lambda back, da, extra: back(0, back(1, back(1, da))))),
            "layer 1 Dense.*expected one back of each part in unwire, got two; add up what comes back first",
        ),
        (
            lambda: trained(wired(in_a_row, lambda back, da, extra: back(1, da))),
            "layer 0 Dense.*expected one back of each part in unwire, got none; hand its error back to it",
        ),
        (
            lambda: fn.layer(type("Wrong", (Wired,), {"layers": (D, 3)}))(),
            "layer 1 3: expected a layer, got int; build a layer",
        ),
        (
            lambda: NET.apply(PARAMS[:1], ONE),
            "expected parameters with 2 entries, one per layer, got 1 entries; use what init of an eq",
        ),
        (lambda: NET.apply({}, ONE), "expected parameters with 2 entries, one per layer, got dict; use what init"),
        (
            lambda: NET.apply((({},), PARAMS[1]), ONE),
            r"layer 0 Parallel\(.*expected parameters with 2 entries.*got 1 entries",
        ),
        (
            lambda: NET.forward(PARAMS, ONE, probe=(None,) * 3),
            "expected a probe with 2 entries, one per layer, got 3 entries; .*what error o",
        ),
        (
            lambda: NET.apply_from(PARAMS, ONE, (None, (None,))),
            r"layer 1 Repeat.*a state with 2 entries, .*got 1 entries; .*apply_from or f",
        ),
        (
            lambda: NET.init(None, (3,)),
            r"key: expected one PRNG key to draw parameters with, got None; make one with jax\.random\.key",
        ),
        (
            lambda: NET.init(KEY, (3.0,)),
            r"expected an input shape of positive integers, got \(3\.0,\); give the shape of one example",
        ),
        (
            lambda: trained(fn.Network(D, fn.Network(fn.Flatten(), Opaque()))),
            r"layer 1\.1 Opaque\(\): expected ∂C/∂a_in for the layer below, got None; write its propagate",
        ),
        (
            lambda: trained(fn.Network(D, fn.Residual(Opaque()))),
            r"layer 1.*expected ∂C/∂a_in for the layer below, got None",
        ),
        (
            lambda: fn.Parallel(D),
            r"Parallel\(Dense\(3, tanh\), join=add\): expected two branches or more, got 1; as in fn\.Parallel\(",
        ),
        (
            lambda: fn.Parallel(D, D, join=jnp.add),
            r"expected a join, got .*; give fn\.add, fn\.concatenate or an fn\.Join of your own",
        ),
        (lambda: fn.Parallel(D, "a"), "layer 1 'a': expected a layer, got str; build a layer, as in"),
        (
            lambda: DEEP.init(KEY, (3,)),
            r"layer 1\.1\.1 Parallel\(Dense\(3, tanh\), Dense\(4, tanh\), join=add\): expected outputs of "
            r"one shape, to add them, got \(m, 3\) and \(m, 4\); give the last layers of the branches as many units",
        ),
        (lambda: fn.Parallel(fn.Identity(), fn.Dense(1, fn.tanh)).init(KEY, (3,)), r"got \(m, 3\) and \(m, 1\)"),
        (
            lambda: fn.Parallel(fn.Flatten(), D, join=fn.concatenate).init(KEY, (2, 3)),
            r"outputs of one shape but for the last axis, to put them side by side, got \(m, 6\) and \(m, 2, 3\)",
        ),
        (
            lambda: fn.Parallel(fn.Identity(), fn.Identity(), join=fn.concatenate).init(KEY, ()),
            r"side by side, got \(m,\) and \(m,\)",
        ),
        (
            lambda: trained(fn.Network(D, fn.Parallel(D, D, D, join=fn.Join("two", mixed, lambda da, *a: (da, da))))),
            r"layer 1 Parallel\(.*join=two\): expected errors of shapes \[\(5, 3\), .*, got \[\(5, 3\), \(5, 3\)\]; mend",
        ),
        (
            lambda: trained(fn.Parallel(D, D, join=fn.Join("one", jnp.add, lambda da, *a: (da, da[:, :1])))),
            r"got \[\(5, 3\), \(5, 1\)\]; mend the split of one: one error for each output, shaped like it",
        ),
        (
            lambda: fn.Tied(D, "0.w", "1.w"),
            r"Tied\(Dense\(3, tanh\), '0\.w', '1\.w'\): expected a network, got Dense.*; as in fn\.Tied",
        ),
        (
            lambda: fn.Tied(Tripled(D, D), "0.w", "1.w"),
            "expected a network without a forward pass of its own, got Tripled; tie the layers inside it",
        ),
        (
            lambda: fn.Tied(TIED, "2.w"),
            r"expected two places or more, an entry and a leaf, got \('2\.w',\); as in fn\.Tied",
        ),
        (lambda: fn.Tied(TIED, "2.w", "2.w"), "expected two places or more"),
        (lambda: fn.Tied(TIED, "2.w", 1), "expected two places or more"),
        (lambda: fn.Tied(TIED, "2", "1"), "expected two places or more"),
        (lambda: fn.Tied(TIED, "2.w", "-1.w").init(KEY, (3,)), r"expected places that differ, got '2\.w' twice; as in"),
        (
            lambda: fn.Tied(TIED, "0.0.w", "1.w").init(KEY, (3,)),
            r"expected \(3, 3\) as in '0\.0\.w', got \(4, 3\) in '1\.w'; tie leaves",
        ),
        (
            lambda: fn.Tied(TIED, "0.0.w", "3.w").init(KEY, (3,)),
            r"a place '3\.w', got \[0, 1, 2\] at '3'; the places are those of net\.init",
        ),
        (
            lambda: fn.Tied(TIED, "0.0.w", "-4.w").init(KEY, (3,)),
            r"expected parameters with a place '-4\.w', got \[0, 1, 2\] at '-4'",
        ),
        (
            lambda: fn.Tied(TIED, "0.0.w", "--1.w").init(KEY, (3,)),
            r"expected parameters with a place '--1\.w', got \[0, 1, 2\] at '--1'",
        ),
        (
            lambda: fn.Tied(TIED, "0.0.w", "2.v").init(KEY, (3,)),
            r"expected parameters with a place '2\.v', got \['b', 'w'\] at 'v'",
        ),
        (
            lambda: fn.Tied(TIED, "0.0.w", "2.w.0").init(KEY, (3,)),
            r"expected parameters with a place '2\.w\.0', got \[\] at '0'",
        ),
        (
            lambda: fn.Tied(TIED, "2.w", "0.0").init(KEY, (3,)),
            r"expected an array with a name at '0\.0', got dict; end each place with",
        ),
        (
            lambda: fn.Repeat(D, 0),
            r"Repeat\(Dense\(3, tanh\), 0\): expected a positive number of repetitions, got 0; give n as an integer",
        ),
        (lambda: fn.Repeat(D, 2.0), r"expected a positive number of repetitions, got 2\.0"),
        (lambda: fn.Repeat(fn.tanh, 2), r"expected a layer, got tanh; as in fn\.Repeat\(fn\.Residual"),
        (
            lambda: fn.Network(fn.Flatten(), fn.Repeat(D, 2)).init(KEY, (4,)),
            r"layer 1 Repeat\(.*expected outputs of shape \(4,\), as the inputs, got \(3,\); end with a layer of as many",
        ),
        (
            lambda: NET.apply((PARAMS[0], {"w": ONE, "b": ONE}), jnp.ones((1, 3))),
            r"layer 1\.0 Dense.*expected parameters with a leaf 'w' of shape \(3, any\), got \(3,\)",
        ),
        (
            lambda: fn.Repeat(D, 3).apply(PARAMS[1], ONE),
            r"a first axis of 3 repetitions, got \(2, 3\); use the parameters that init of",
        ),
        (
            lambda: fn.Repeat(fn.Flatten(), 2).apply({}, jnp.ones((2, 3, 1))),
            r"expected outputs of shape \(2, 3, 1\), as the inputs, got \(2, 3\); give inputs of the shape for which",
        ),
        (
            lambda: trained(fn.Network(D, fn.Repeat(Opaque(), 2))),
            r"layer 1\.0 Opaque\(\): expected ∂C/∂a_in for the layer below, got None;.*cannot be repeated",
        ),
        (
            lambda: trained(fn.Repeat(fn.Residual(fn.Dropout(0.5)), 2)),
            r"layer 0\.1\.0 Dropout\(0\.5\): expected a key while training, got key=None",
        ),
        (
            lambda: fn.Recompute(fn.tanh),
            r"tanh: expected a layer to recompute, got Activation; as in fn\.Recompute\(fn\.Network",
        ),
        (
            lambda: fn.Recompute(fn.Network(D, fn.Residual(E))).init(KEY, (3,)),
            r"layer 1 Parallel\(.*got \(m, 3\) and \(m, 4\)",
        ),
    ],
)
def test_bad_input_is_a_clear_error(build, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        build()


def test_parts_are_counted_from_the_end_as_well():
    net = wired(lambda run, a: (run(-1, run(-2, a)), None), lambda back, da, extra: back(-2, back(-1, da)))
    params, x = drawn(net, (3,))
    plain = fn.Network(*net.layers)
    y = jnp.zeros((5, 3))
    assert_agree(fn.backprop(net, fn.quadratic, params, x, y), fn.backprop(plain, fn.quadratic, params, x, y), 0)


def test_integers_are_floats_beside_floats():
    net = fn.Network(fn.Residual(D), fn.Residual(D))
    params, _ = drawn(net, (3,))
    whole = np.random.default_rng(0).integers(0, 3, (5, 3), np.uint8)
    both = [fn.backprop(net, fn.quadratic, params, x, jnp.zeros((5, 3))) for x in (whole, whole.astype(float))]
    assert_agree(*both, 0)
    assert fn.Parallel(fn.Identity(), fn.Identity()).apply(({}, {}), whole).dtype == jnp.uint8


ALL = fn.Tied(
    fn.Network(
        fn.Dense(4, fn.tanh),
        fn.Residual(fn.Repeat(fn.Recompute(fn.Residual(fn.Dense(4, fn.silu), fn.Dropout(0.2))), 2)),
        fn.Parallel(fn.Dense(4, fn.tanh), fn.Identity(), join=fn.concatenate),
        fn.Dense(3, fn.softmax),
    ),
    "0.w",
    "2.0.w",
)


class TestAllOfThem:
    @pytest.mark.thorough
    def test_gradients_in_every_way(self):
        params, x = drawn(ALL, (4,), m=7)
        y = jnp.arange(7) % 3

        @jax.jit
        def run(params):
            manual, chunks, plain = (
                functools.partial(fn.value_and_grad(net, fn.log_likelihood, micro_batch=size), x=x, y=y, key=KEY)
                for net, size in ((ALL, None), (ALL, 3), (ALL.in_loop(), None))
            )
            of_two = jax.vmap(manual)(jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params))
            autodiff = jax.value_and_grad(fn.objective(ALL, fn.log_likelihood))
            twice = [autodiff(p, x, y, key=KEY) for p in (params, jax.tree.map(lambda p: 2 * p, params))]
            return (manual(params), chunks(params), plain(params), of_two), twice

        (*ours, of_two), (reference, doubled) = run(params)
        for found in ours:
            assert_agree(found, reference, 1e-12)
        assert_agree(of_two, jax.tree.map(lambda *leaves: jnp.stack(leaves), reference, doubled), 1e-12)

    def test_an_equal_one_compiles_nothing(self):
        params, x = drawn(ALL, (4,))
        given = params, x, jnp.arange(5) % 3
        fn.value_and_grad(ALL, fn.log_likelihood)(*given, key=KEY)
        twin = pickle.loads(pickle.dumps(ALL))
        about = {"micro_batch": "auto", "positions": None, "carry": False, "over": None}
        run = program(_value_and_grad, ALL, fn.log_likelihood, **about)
        before = run._cache_size()
        fn.value_and_grad(twin, fn.log_likelihood)(*given, key=jax.random.key(9))
        assert before == 1 == program(_value_and_grad, twin, fn.log_likelihood, **about)._cache_size()

    def test_saved_and_loaded(self, tmp_path):
        params, _ = drawn(ALL, (4,))
        fn.save(tmp_path / "net", params)
        assert_agree(fn.load(tmp_path / "net"), params, 0, zero=True)
        like = jax.eval_shape(lambda: ALL.init(KEY, (4,)))
        assert_agree(fn.load(tmp_path / "net", like=like), params, 0, zero=True)

    @pytest.mark.thorough
    def test_it_learns(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((60, 4))
        y = np.argmax(x[:, :3], axis=1)
        about = {"epochs": 30, "batch_size": 10, "penalty": fn.L2(0.01)}
        params = ALL.init(jax.random.key(0), (4,))
        _, history = fn.fit(
            ALL, fn.log_likelihood, params, (x, y), key=KEY, optimizer=fn.adam(0.02), progress=False, **about
        )
        assert history.cost[-1] < 0.5 * history.cost[0]

    @pytest.mark.thorough
    def test_a_sweep_of_it_is_its_runs(self):
        _, x = drawn(ALL, (4,), m=12)
        data, about = (x, jnp.arange(12) % 3), {"epochs": 2, "batch_size": 4, "progress": False}
        optimizers = [fn.sgd(0.1), fn.sgd(0.5)]
        swept = fn.sweep(ALL, fn.log_likelihood, data, keys=KEY[None], optimizers=optimizers, **about)
        init_key, key = jax.random.split(KEY)
        alone, _ = fn.fit(
            ALL, fn.log_likelihood, ALL.init(init_key, (4,)), data, key=key, optimizer=optimizers[1], **about
        )
        assert_agree(jax.tree.map(lambda leaf: leaf[1, 0, 0], swept.params), alone, 1e-10)
