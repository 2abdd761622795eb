"""Every layer of the table: its equations against autodiff, dtypes, jit, vmap, no second compilation, clear errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.layers._dense import weight_gradient
from fnnet.layers._layer import run_forward

from .cases import (
    ACTIVATIONS,
    BY_CLASS,
    COSTS,
    FEW,
    FORWARD_ONLY,
    LAYERS,
    TOLERANCE,
    assert_agree,
    equal_layer,
    largest,
    normal,
    thorough,
)

KEY = jax.random.key(7)


@functools.partial(jax.jit, static_argnums=0)
def equations(layer, params, a_in):
    """What a layer's equations return and what autodiff says, by name."""
    given = {"key": KEY, "train": True}
    a_out, cache = run_forward(layer, params, a_in, **given)
    da_out = jnp.asarray(np.random.default_rng(2).standard_normal(a_out.shape), a_out.dtype)
    delta = layer.error(params, cache, da_out)
    probe = jax.tree.map(jnp.zeros_like, delta)
    tokens = jnp.issubdtype(a_in.dtype, jnp.integer)
    _, pull_back = jax.vjp(lambda p, a, q: run_forward(layer, p, a, probe=q, **given)[0], params, a_in, probe)
    d_params, da_in, d_probe = pull_back(da_out)
    da_in = None if tokens else da_in
    mean = jax.tree.map(lambda g: (g / a_in.shape[0]).astype(g.dtype), d_params)
    da_back, grads_back = layer.backward(params, cache, da_out)
    return {
        "error": (delta, d_probe),
        "propagate": (layer.propagate(params, cache, d_probe), da_in),
        "gradients": (layer.gradients(params, cache, d_probe), mean),
        "backward": ((da_back, grads_back), (da_in, mean)),
    }


def check_equations(case, m, dtype):
    found = equations(case.layer, case.params(dtype), case.inputs(m, dtype))
    for name, (manual, autodiff) in found.items():
        assert_agree(manual, autodiff, case.loose.get(dtype, TOLERANCE[dtype]), zero=name in case.zero)


@pytest.mark.parametrize("m", [4, *thorough(1, 33)])
@pytest.mark.parametrize("case", LAYERS, ids=repr)
def test_equations_against_autodiff_in_float64(case, m):
    check_equations(case, m, "float64")


@pytest.mark.parametrize("dtype", ["float32", *thorough("float16", "bfloat16")])
@pytest.mark.parametrize("case", FEW, ids=repr)
def test_equations_against_autodiff_in_other_dtypes(case, dtype):
    check_equations(case, 4, dtype)


def one_by_one(run):
    return lambda x: jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(run, x))


@pytest.mark.parametrize(
    "form", [lambda run: jax.jit(jax.vmap(run)), *thorough(jax.vmap, one_by_one)], ids=["jit of vmap", "vmap", "plain"]
)
@pytest.mark.parametrize("case", FEW, ids=repr)
def test_under_jit_and_vmap(case, form):
    layer, params = case.layer, case.params(float)
    x = case.inputs(6, float).reshape(2, 3, *case.shape)

    def run(x):
        a_out, cache = run_forward(layer, params, x, key=KEY, train=True)
        return a_out, layer.backward(params, cache, jnp.cos(jnp.arange(a_out.size * 1.0)).reshape(a_out.shape))

    assert_agree(form(run)(x), one_by_one(jax.jit(run))(x), 1e-12, zero="backward" in case.zero)


@pytest.mark.parametrize("case", LAYERS, ids=repr)
def test_a_layer_is_static_by_value(case):
    copy = equal_layer(case)
    assert copy is not case.layer
    assert copy == case.layer
    assert hash(copy) == hash(case.layer)
    assert jax.tree.leaves(case.layer) == []
    rank = len(case.layer.output_shape(case.shape))
    assert jax.jit(lambda layer: jnp.zeros((1,) * len(layer.output_shape(case.shape)))).eval_shape(copy).ndim == rank


@pytest.mark.parametrize("case", BY_CLASS, ids=repr)
def test_output_shape_and_dtypes(case):
    for dtype in ("float64", "float32", "bfloat16"):
        a = jax.eval_shape(case.layer.apply, case.params(dtype), case.inputs(2, dtype))
        assert a.shape == (2, *case.layer.output_shape(case.shape))
        assert a.dtype == dtype
    for leaf in jax.tree.leaves(jax.eval_shape(lambda: case.layer.init(KEY, case.shape))):
        assert leaf.dtype == jnp.float64


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_an_empty_batch_has_gradients_of_the_same_shapes(case):
    params = case.params(float)

    def run(x):
        a_out, cache = run_forward(case.layer, params, x, key=KEY, train=False)
        return case.layer.backward(params, cache, a_out)

    da_in, gradients = jax.eval_shape(run, case.inputs(3, float)[:0])
    assert case.tokens or da_in.shape == (0, *case.shape)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_an_empty_batch_and_one_of_another_dtype(case):
    params, x = case.params(float), case.inputs(3, "float32")

    def run(x):
        a_out, cache = run_forward(case.layer, params, x, key=KEY, train=True)
        return a_out, case.layer.backward(params, cache, jnp.ones_like(a_out))

    @jax.jit
    def runs(x):
        return case.layer.apply(params, x[:0]), run(x), run(x if case.tokens else x.astype(float))

    with jax.numpy_dtype_promotion("standard"):
        empty, mixed, wide = runs(x)
    assert empty.shape == (0, *case.layer.output_shape(case.shape))
    for ours, theirs in zip(jax.tree.leaves(mixed), jax.tree.leaves(wide), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", BY_CLASS, ids=repr)
def test_apply_compiles_once_for_equal_layers(case):
    from fnnet.layers._layer import _apply
    from fnnet.programs import program

    params, x = case.params(float), case.inputs(2, float)
    case.layer.apply(params, x)
    before = program(_apply, case.layer)._cache_size()
    equal_layer(case).apply(params, x[::-1])
    assert program(_apply, case.layer)._cache_size() == before


def test_every_public_name_has_a_row():
    classes = {type(case.layer).__name__ for case in LAYERS}
    public = {name: value for name, value in vars(fn).items() if name in fn.__all__}
    layers = {
        n
        for n, v in public.items()
        if isinstance(v, type) and issubclass(v, fn.Layer) and v not in (fn.Layer, fn.Composite)
    }
    assert layers == classes
    activations = {n for n, v in public.items() if isinstance(v, fn.Activation)}
    assert activations <= set(ACTIVATIONS) | set(FORWARD_ONLY)
    assert {n for n, v in public.items() if isinstance(v, fn.Cost)} == {name for name, _, _ in COSTS}


def test_dense_by_hand():
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "b": jnp.array([0.5, -0.5, 0.0])}
    x = jnp.array([[1.0, -1.0], [2.0, 0.0]])
    layer = fn.Dense(3, fn.linear)
    a, cache = layer.forward(params, x)
    np.testing.assert_allclose(a, [[-0.5, -1.5, -1.0], [2.5, 5.5, 10.0]])
    delta = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(layer.propagate(params, cache, delta), [[11.0, 14.0], [3.0, 4.0]])
    grads = layer.gradients(params, cache, delta)
    np.testing.assert_allclose(grads["w"], [[0.5, -0.5], [1.0, 0.0], [1.0, -1.0]])
    np.testing.assert_allclose(grads["b"], [0.5, 0.5, 1.0])


def test_mean_of_errors_must_not_be_fed_to_bp4():
    delta, a = jnp.array([[1.0], [-1.0]]), jnp.array([[2.0], [4.0]])
    right = weight_gradient(delta, a)
    wrong = jnp.mean(delta, 0)[:, None] * jnp.mean(a, 0)
    assert float(right[0, 0]) == -1.0
    assert float(wrong[0, 0]) == 0.0


def test_dense_takes_integer_and_bool_inputs():
    layer = fn.Dense(2, fn.linear)
    params = layer.init(jax.random.key(0), (3,))
    whole = jnp.array([[0, 1, 1], [1, 0, 0]])
    for x in (whole, whole.astype(bool), whole.astype(jnp.uint8)):
        np.testing.assert_allclose(layer.apply(params, x), layer.apply(params, whole.astype(float)))


class TestDropout:
    def test_both_conventions_agree_in_expectation(self):
        x, m = jnp.ones((20_000, 3)), 20_000
        example = fn.Dropout(0.3)
        trained, _ = example.forward({}, x, key=KEY, train=True)
        # 20,000 draws of 0 or 1/0.7: the mean's standard error is √(0.3/0.7/20000) = 0.0046; 5 of them.
        np.testing.assert_allclose(jnp.mean(trained, 0), 1.0, atol=5 * 0.0046)
        np.testing.assert_array_equal(example.apply({}, x), x)
        batch = fn.Dropout(0.3, per="batch")
        draws = jax.vmap(lambda k: batch.forward({}, x[:1], key=k, train=True)[0])(jax.random.split(KEY, m))
        np.testing.assert_allclose(jnp.mean(draws, (0, 1)), 0.7, atol=5 * 0.0033)
        np.testing.assert_allclose(batch.apply({}, x), 0.7)

    def test_masks_are_0_or_the_scale(self):
        x = jnp.ones((50, 40))
        per_example, _ = fn.Dropout(0.5).forward({}, x, key=KEY, train=True)
        assert set(np.unique(per_example)) == {0.0, 2.0}
        assert len(np.unique(per_example, axis=0)) > 1
        per_batch, _ = fn.Dropout(0.5, per="batch").forward({}, x, key=KEY, train=True)
        assert set(np.unique(per_batch)) == {0.0, 1.0}
        assert len(np.unique(per_batch, axis=0)) == 1

    def test_masks_are_the_same_without_x64(self):
        def mask(per):
            return np.asarray(
                fn.Dropout(0.5, per=per).forward({}, jnp.ones((9, 8), jnp.float32), key=KEY, train=True)[0]
            )

        for per in ("example", "batch"):
            with jax.enable_x64(False):
                without = mask(per)
            np.testing.assert_array_equal(mask(per), without)

    def test_two_layers_of_a_network_never_share_a_mask(self):
        net = fn.Network(fn.Dropout(0.5), fn.Dropout(0.5))
        _, ((first, _), (second, _)) = net.forward(({}, {}), jnp.ones((20, 20)), key=KEY, train=True)
        assert bool(jnp.any(first != second))

    def test_training_without_a_key_is_an_error(self):
        net = fn.Network(fn.Dense(3, fn.sigmoid), fn.Network(fn.Dropout(0.5)), fn.Dense(2, fn.softmax))
        params = net.init(jax.random.key(0), (4,))
        with pytest.raises(
            fn.LayerError, match=r"layer 1\.0 Dropout\(0\.5\): expected a key while training, got key=None; pass"
        ):
            fn.backprop(net, fn.log_likelihood, params, jnp.ones((2, 4)), jnp.array([0, 1]))
        net.apply(params, jnp.ones((2, 4)))


@fn.layer
class Scale:
    """A user's layer, as a plain class: a = n · w ⊙ a_in."""

    n: float
    sizes: list = (1, 2)

    def init(self, key, input_shape):
        return {"w": jnp.ones(input_shape)}

    def forward(self, params, a_in):
        return a_in * params["w"] * self.n, a_in

    def propagate(self, params, cache, delta):
        return delta * params["w"] * self.n

    def gradients(self, params, cache, delta):
        return {"w": jnp.mean(delta * cache, 0) * self.n}


class TestOwnLayer:
    def test_the_decorator_makes_a_plain_class_a_layer(self):
        one, other = Scale(2.0, [3, [4]]), Scale(2.0, (3, (4,)))
        assert isinstance(one, fn.Layer)
        assert one == other
        assert hash(one) == hash(other)
        assert one.sizes == (3, (4,))
        assert repr(one) == "Scale(2.0, sizes=(3, (4,)))"
        assert one.output_shape((5,)) == (5,)
        with pytest.raises(AttributeError):
            one.n = 3.0

    def test_a_class_that_is_given_again_is_the_same_layer(self):
        class Plain:
            n: int = 2

            def forward(self, params, a_in):
                return a_in * self.n, None

        class Derived(Plain):
            pass

        made = fn.layer(Plain)
        assert fn.layer(Plain) is made
        assert fn.layer(made) is made
        assert fn.layer(Scale) is Scale
        assert fn.layer(Derived) is fn.layer(Derived) is not made
        assert (made(), fn.layer(Derived)(3).n) == (fn.layer(Plain)(2), 3)

        @fn.layer
        class Plain:  # a cell of a notebook, run again
            n: int = 2

            def forward(self, params, a_in):
                return a_in * self.n, None

        assert Plain() != made()
        np.testing.assert_array_equal(Plain().apply({}, jnp.ones((1, 2))), 2 * jnp.ones((1, 2)))

    def test_what_is_no_plain_class(self):
        @dataclasses.dataclass
        class Fields:
            n: int = 2

        class Derived(Fields):
            pass

        for cls in (Fields, Derived, dataclasses.dataclass(frozen=True)(type("Fields", (), {}))):
            with pytest.raises(
                TypeError, match=r"layer: expected a plain class, got .* where Fields is a dataclass; leave"
            ):
                fn.layer(cls)
        with pytest.raises(
            TypeError, match=r"layer: expected a class, got Dense\(3, sigmoid\); write @fn\.layer above"
        ):
            fn.layer(fn.Dense(3, fn.sigmoid))

    @pytest.mark.thorough
    def test_it_trains_in_a_network(self):
        net = fn.Network(fn.Dense(4, fn.sigmoid), Scale(2.0), fn.Dense(3, fn.softmax))
        params = net.init(jax.random.key(0), (5,))
        x, y = normal((6, 5), seed=1), jnp.arange(6) % 3
        _, manual = fn.value_and_grad(net, fn.log_likelihood)(params, x, y)
        assert_agree(manual, jax.grad(fn.objective(net, fn.log_likelihood))(params, x, y), 1e-12)
        assert fn.compare_gradients(net, fn.log_likelihood, params, x, y).ok

    def test_arrays_in_fields_are_refused(self):
        with pytest.raises(TypeError, match=r"Scale\.n: expected a hashable value .* a layer holds no arrays"):
            Scale(jnp.ones(3))
        with pytest.raises(TypeError, match=r"Scale\.sizes: expected a hashable value"):
            Scale(1.0, [{"a": 1}])

    def test_missing_equations_are_named(self):
        @fn.layer
        class Half:
            def init(self, key, input_shape):
                return {"w": jnp.ones(input_shape)}

            def forward(self, params, a_in):
                return a_in * params["w"], a_in

        layer = Half()
        with pytest.raises(NotImplementedError, match="Half defines no propagate"):
            layer.propagate({"w": jnp.ones(2)}, None, jnp.ones((1, 2)))
        with pytest.raises(NotImplementedError, match="Half has parameters but defines no gradients"):
            layer.gradients({"w": jnp.ones(2)}, None, jnp.ones((1, 2)))

    def test_a_class_with_its_own_init_and_repr_keeps_them(self):
        @fn.layer
        class Power:
            power: int

            def __init__(self, root):
                object.__setattr__(self, "power", 1 / root)

            def __repr__(self):
                return "a power"

            def forward(self, params, a_in):
                return a_in**self.power, a_in

            def propagate(self, params, cache, delta):
                return delta * self.power * cache ** (self.power - 1)

        assert repr(Power(2)) == "a power"
        np.testing.assert_allclose(Power(2).apply({}, jnp.array([[4.0]])), [[2.0]])
        assert Power(2) == Power(2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: fn.Dense(0, fn.sigmoid),
            r"Dense\(0, sigmoid\): expected a positive number of neurons, got 0; give n_out",
        ),
        (lambda: fn.Dense(2.5, fn.sigmoid), r"expected a positive number of neurons, got 2\.5"),
        (lambda: fn.Dense(2, jnp.tanh), r"expected an fn\.Activation, got .*; give one of fnnet's activations"),
        (
            lambda: fn.Dense(2, fn.tanh, bias=fn.initializers.zeros()),
            r"expected bias to be True or False, got zeros\(\); bias says whether there is a b; bias_init says how",
        ),
        (lambda: fn.Conv(2, 3, fn.tanh, bias=0.5), r"expected bias to be True or False, got 0\.5; bias says"),
        (lambda: fn.Dropout(1.0), r"Dropout\(1\.0\): expected a rate of at least 0 and below 1, got 1\.0; rate is"),
        (lambda: fn.Dropout(-0.1), r"expected a rate of at least 0 and below 1"),
        (lambda: fn.Dropout(0.5, per="layer"), r"expected per to be 'example' or 'batch', got 'layer'"),
        (lambda: fn.Network(), r"Network\(\): expected at least one layer, got none"),
        (
            lambda: fn.Network(fn.Flatten(), fn.sigmoid),
            r"layer 1 sigmoid: expected a layer, got Activation; build a layer",
        ),
        (
            lambda: fn.Dense(2, fn.sigmoid).init(KEY, ()),
            r"expected an input shape \(\.\.\., n_in\) with n_in ≥ 1, got \(\)",
        ),
        (
            lambda: fn.Network(fn.Flatten()).init(KEY, 784),
            r"expected an input shape of positive integers, got 784; give the",
        ),
        (lambda: fn.Network(fn.Flatten()).init(KEY, (0,)), r"expected an input shape of positive integers, got \(0,\)"),
        (lambda: fn.Network(fn.Flatten()).init(3, (2,)), r"key: expected one PRNG key, got int 3; make one with"),
        (
            lambda: fn.Dense(2, fn.sigmoid).apply({"w": jnp.ones((2, 3)), "b": jnp.ones(2)}, jnp.ones((4, 5))),
            r"Dense\(2, sigmoid\): expected inputs of shape \(m, 3\), got \(4, 5\); initialise with",
        ),
        (
            lambda: fn.Dense(2, fn.sigmoid).apply({"w": jnp.ones((2, 3)), "b": jnp.ones(2)}, jnp.ones(3)),
            r"expected inputs of shape \(m, 3\), got \(3,\); give a batch: x\[None\]",
        ),
        (
            lambda: fn.Dense(2, fn.sigmoid).apply({"w": jnp.ones((2, 3))}, jnp.ones((1, 3))),
            r"expected parameters with a leaf 'b' of shape \(2\), got the keys \['w'\]; use the parameters",
        ),
        (
            lambda: fn.Dense(2, fn.sigmoid).apply({"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones((1, 3))),
            r"expected parameters with a leaf 'w' of shape \(2, any\), got \(3, 2\)",
        ),
        (
            lambda: fn.Network(fn.Flatten(), fn.Flatten()).apply(({},), jnp.ones((1, 3))),
            r"expected parameters with 2 entries, one per layer, got 1 entries; use what init",
        ),
        (
            lambda: fn.Network(fn.Network(fn.Flatten(), fn.Dense(2, fn.relu))).apply(
                (({}, {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}),), jnp.ones((1, 2))
            ),
            r"layer 0\.1 Dense\(2, relu\): expected inputs of shape \(m, 3\), got \(1, 2\)",
        ),
    ],
)
def test_bad_input_is_a_clear_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fn.Dense(3), r"Dense: missing a required argument: 'activation'.*\(n_out, activation, .*fn\.Dense\(10"),
        (lambda: fn.Conv(8, 3), r"Conv: missing a required argument: 'activation'.*as in fn\.Conv\(20, 5, fn\.relu\)"),
        (lambda: fn.MaxPool(), r"MaxPool: missing a required argument: 'size'; it takes \(size, .*fn\.MaxPool\(2\)"),
        (lambda: fn.Dropout(), r"Dropout: missing a required argument: 'rate'.*fn\.Dropout\(0\.5\)"),
        (lambda: fn.LSTM(), r"LSTM: missing a required argument: 'n'.*fn\.LSTM\(64\)"),
        (lambda: fn.Bidirectional(), r"Bidirectional: missing a required argument: 'cell'.*\(fn\.LSTM\(64\)\)"),
        (lambda: fn.Dense(3, fn.relu, size=2), "Dense: got an unexpected keyword argument 'size'; it takes"),
        (lambda: fn.Flatten(2), r"Flatten: too many positional arguments; it takes \(\)"),
        (lambda: fn.Dense(2, fn.relu)({}, 1), r"Dense\(2, relu\): expected apply\(params, x\), got a call; .*net\.apply"),
        (lambda: fn.Network(fn.Flatten())({}, 1), r"Network\(Flatten\(\)\): expected apply\(params, x\), got a call"),
        (lambda: fn.Dense(2, "relu"), r"Dense\(2, 'relu'\): expected an fn\.Activation, got 'relu'; .*such as fn\.relu, or"),
        (lambda: fn.Dense(2, jnp.tanh), r"expected an fn\.Activation, got .*such as fn\.tanh, or"),
        (lambda: fn.RNN(2, jax.nn.swish), r"expected an fn\.Activation, got .*such as fn\.silu, or"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_told_the_right_one(build, message):
    with pytest.raises((TypeError, fn.LayerError), match=message):
        build()


def test_initialisers():
    key, shape = jax.random.key(0), (400, 300)
    draw = lambda init: init(key, shape, jnp.float64)  # noqa: E731
    inits = fn.initializers
    deviation = {
        inits.normal(): 1.0,
        inits.normal(0.2): 0.2,
        inits.scaled_normal(): 300**-0.5,
        inits.scaled_uniform(): 900**-0.5,
        inits.lecun_normal(): 300**-0.5,
        inits.lecun_uniform(): 300**-0.5,
        inits.he_normal(): (2 / 300) ** 0.5,
        inits.he_uniform(): (2 / 300) ** 0.5,
        inits.glorot_normal(): (2 / 700) ** 0.5,
        inits.glorot_uniform(): (2 / 700) ** 0.5,
    }
    found = jax.jit(lambda: [jnp.std(draw(init)) for init in deviation])()
    for init, std, expected in zip(deviation, found, deviation.values(), strict=True):
        # 120,000 draws: the standard deviation's relative standard error is at most 1/√240000 = 0.2 %; 5 of them.
        np.testing.assert_allclose(std, expected, rtol=0.0102, err_msg=repr(init))
    rows = draw(inits.orthogonal(2.0))
    np.testing.assert_allclose(rows.T @ rows, 4 * np.eye(300), atol=1e-10)
    assert largest(draw(inits.zeros())) == 0
    assert inits.normal(0.5) == inits.normal(0.5)
    assert hash(inits.he_normal()) == hash(inits.he_normal())
    assert fn.Dense(3, fn.relu, inits.he_normal()) != fn.Dense(3, fn.relu)
    kernel = inits.scaled_normal()(key, (5, 5, 20, 40), jnp.float64, in_axis=-2, out_axis=-1)
    np.testing.assert_allclose(jnp.std(kernel), 500**-0.5, rtol=0.03)


@pytest.mark.thorough
def test_the_notes_standard_deviations_of_z():
    # Section 4.4: 500 inputs of 1, 500 of 0. √501 ≈ 22.4, and √(3/2) ≈ 1.22 with weights of variance 1/1000.
    x = jnp.repeat(jnp.array([1.0, 0.0]), 500)[None]
    init = fn.initializers
    for weight_init, expected in ((init.normal(), 501**0.5), (init.scaled_normal(), 1.5**0.5)):
        layer = fn.Dense(10_000, fn.linear, weight_init, init.normal())
        z = layer.apply(layer.init(jax.random.key(3), (1000,)), x)
        np.testing.assert_allclose(jnp.std(z), expected, rtol=0.02)


def test_fields_of_an_own_layer_may_have_any_plain_name():
    @fn.layer
    class Named:
        title: str
        keywords: tuple[str, ...]
        moves: bool

        def forward(self, params, a_in):
            return 2 * a_in, ()

        def propagate(self, params, cache, delta):
            return 2 * delta

    net = fn.Network(Named("twice", ("a",), True), fn.Dense(2, fn.softmax))
    params, x = net.init(jax.random.key(0), (3,)), jnp.ones((4, 3))
    assert fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.zeros(4, int)).rows[0].verdict == "pass"
