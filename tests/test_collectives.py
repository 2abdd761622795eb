"""What each equation sends, declared (`fn.collectives`) and compiled: the same kinds, counts and bytes.

The programs are compiled in a process with eight simulated devices, which imports this file and reports what it finds.
"""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn

from . import compiled
from .cases import LAYERS, gpt, gpt_block
from .devices import ROOT, environment

M, SIZES = 32, {"data": 4, "model": 2}
KEY = jax.random.key(0)

IMAGES = fn.Network(
    fn.Conv(4, 3, fn.tanh), fn.GroupNorm(2), fn.MaxPool(2), fn.Dropout(0.3), fn.Flatten(), fn.Dense(3, fn.softmax)
)
SEQUENCES = fn.Network(fn.LSTM(3), fn.RMSNorm(), fn.Bidirectional(fn.GRU(2), last=True), fn.Dense(3, fn.softmax))
TOKENS = gpt(6, 4, [*gpt_block(4, fn.Attention(2)), fn.Repeat(fn.Residual(fn.Dense(4, fn.tanh)), 2)])
NETS = {"images": (IMAGES, (6, 6, 2)), "sequences": (SEQUENCES, (4, 3)), "tokens": (TOKENS, (4,))}
ROWS = {case.name: (case.layer, case.shape) for case in LAYERS if case.layer.independent}
TAKING_TOKENS = {"tokens", *(case.name for case in LAYERS if case.tokens)}

BY_OUT, BY_IN, WHOLE = {"w": P("model", None), "b": P("model")}, {"w": P(None, "model"), "b": P()}, P()
KERNELS_BY_OUT = {"w": P(None, None, None, "model"), "b": P("model")}
KERNELS_BY_IN = {"w": P(None, None, "model", None), "b": P()}
FEATURES = {"w": P(None, "model")}
LIBRARY = {"algorithm": "library"}
END = fn.Dense(4, fn.softmax)
LAST = fn.Dense(6, fn.softmax)


def dense(n, activation=fn.tanh, **fields):
    return fn.Dense(n, activation, **fields)


IN_THE_MIDDLE = fn.Network(dense(6), dense(8), END), (5,), (WHOLE, BY_OUT, BY_IN)
CUT = {
    "two layers": (fn.Network(dense(8), END), (5,), (BY_OUT, BY_IN)),
    "two layers in the middle": IN_THE_MIDDLE,
    "on steps, with dropout": (
        fn.Network(dense(6), dense(8), fn.Dropout(0.5), fn.Identity(), fn.LastStep(), END),
        (3, 5),
        (WHOLE, BY_OUT, WHOLE, WHOLE, WHOLE, BY_IN),
    ),
    "inputs": (fn.Network(dense(6), END), (8,), (BY_IN, WHOLE)),
    "outputs": (fn.Network(dense(6), dense(4, fn.sigmoid)), (5,), (WHOLE, BY_OUT)),
    "outputs of one layer": (fn.Network(dense(4, fn.sigmoid)), (5,), (BY_OUT,)),
    "without biases": (
        fn.Network(dense(6), dense(8, fn.relu, bias=False), dense(4, fn.softmax, bias=False)),
        (5,),
        (WHOLE, {"w": P("model")}, {"w": P(None, "model")}),
    ),
    "a block": (
        fn.Network(dense(4), fn.Residual(fn.LayerNorm(), dense(8, fn.gelu), dense(4)), END),
        (3, 5),
        (WHOLE, (P(), (P(), BY_OUT, BY_IN)), WHOLE),
    ),
    "layer norm": (fn.Network(dense(6), dense(8), fn.LayerNorm(), END), (5,), (WHOLE, BY_OUT, P("model"), BY_IN)),
    "RMS norm": (fn.Network(dense(6), dense(8), fn.RMSNorm(), END), (3, 5), (WHOLE, BY_OUT, P("model"), BY_IN)),
    "a norm below": (fn.Network(fn.LayerNorm(), dense(8), END), (6,), (WHOLE, BY_OUT, BY_IN)),
    "channels": (
        fn.Network(
            fn.Conv(4, 3, fn.tanh),
            fn.Conv(6, 3, fn.tanh, **LIBRARY),
            fn.MaxPool(2),
            fn.Conv(3, 1, fn.tanh, padding=1, **LIBRARY),
            fn.Flatten(),
            END,
        ),
        (8, 8, 2),
        (WHOLE, KERNELS_BY_OUT, P(), KERNELS_BY_IN, P(), WHOLE),
    ),
    "channels upwards": (
        fn.Network(
            fn.Conv(4, 3, fn.tanh),
            fn.ConvTranspose(6, 3, fn.tanh, 2, **LIBRARY),
            fn.MeanPool(2),
            fn.Upsample(2),
            fn.ConvTranspose(4, 2, fn.tanh, **LIBRARY),
            fn.GlobalMeanPool(),
            END,
        ),
        (6, 6, 2),
        (WHOLE, KERNELS_BY_OUT, P(), P(), KERNELS_BY_IN, P(), WHOLE),
    ),
    "features": (fn.Network(fn.Embedding(6, 4), fn.Position(), END), (4,), (FEATURES, FEATURES, BY_IN)),
    "a vocabulary": (fn.Network(fn.Embedding(6, 4), dense(5), END), (4,), ({"w": P("model")}, WHOLE, WHOLE)),
    "tied features": (
        fn.Tied(fn.Network(fn.Embedding(6, 4), LAST), "0.w", "1.w"),
        (4,),
        ({"w": P(None, "model")}, {"b": P()}),
    ),
    "repeated": (
        fn.Network(dense(6), fn.Repeat(fn.Network(dense(8), dense(6)), 3), END),
        (5,),
        (WHOLE, tuple({n: P(None, *s) for n, s in leaves.items()} for leaves in (BY_OUT, BY_IN)), WHOLE),
    ),
    "repeated first": (
        fn.Network(fn.Repeat(fn.Residual(dense(8), dense(6)), 3), END),
        (6,),
        ((P(), tuple({n: P(None, *s) for n, s in leaves.items()} for leaves in (BY_OUT, BY_IN))), WHOLE),
    ),
}
BRANCHES = {
    "branches added": (
        fn.Network(dense(4), fn.Parallel(dense(6), dense(6)), END),
        (5,),
        (WHOLE, (BY_OUT, BY_OUT), BY_IN),
    ),
    "branches side by side": (
        fn.Network(dense(4), fn.Parallel(*[fn.Network(dense(6), dense(3))] * 2, join=fn.concatenate), END),
        (5,),
        (WHOLE, ((BY_OUT, BY_IN),) * 2, WHOLE),
    ),
}
MIXING = {
    "batch norm": (fn.Network(dense(6), fn.BatchNorm(), END), (5,), WHOLE),
    "batch norm below": (fn.Network(fn.BatchNorm(), END), (5,), WHOLE),
    "batch norm twice": (
        fn.Network(fn.Conv(4, 3, fn.tanh), fn.BatchNorm(), fn.Conv(4, 3, fn.tanh), fn.BatchNorm(), fn.Flatten(), END),
        (6, 6, 2),
        WHOLE,
    ),
    "batch norm of channels": (
        fn.Network(dense(6), dense(8, fn.linear), fn.BatchNorm(), END),
        (5,),
        (WHOLE, BY_OUT, P("model"), BY_IN),
    ),
}


def given(net, shape, tokens):
    """Parameters and a batch without their numbers, and targets like the net's output."""
    params = jax.eval_shape(lambda: net.init(KEY, shape))
    x = jax.ShapeDtypeStruct((M, *shape), jnp.int32 if tokens else float)
    return params, x, jax.eval_shape(lambda p, x: net.forward(p, x)[0], params, x)


def found(f, args, sizes, shardings, results):
    """What the program sends whose arguments and results live so."""
    text = jax.jit(f, in_shardings=shardings, out_shardings=results).lower(*args).compile().as_text()
    return listed(compiled.totals(compiled.collectives(text), sizes))


def listed(totals):
    return sorted([*key, *total] for key, total in totals.items())


def mesh_of(sizes):
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def of_data(name, micro_batch, planted=False, parallel=True):
    """(declared, compiled) of a gradient with the batch on all devices, by `data_parallel` or by the compiler alone."""
    net, shape = (NETS | ROWS)[name]
    params, x, y = given(net, shape, name in TAKING_TOKENS)
    mesh = mesh_of({"data": 8})
    gradient = fn.value_and_grad(net, fn.quadratic, micro_batch=micro_batch)
    gradient = fn.data_parallel(gradient, mesh) if parallel else gradient

    def f(params, x, y):
        x = jnp.take(x, jnp.arange(M)[::-1], axis=0) if planted else x
        return gradient(params, x, y, key=KEY)

    rows, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    declared = fn.collectives(net, params, P()).totals
    return listed(declared), found(f, (params, x, y), {"data": 8}, (whole, rows, rows), whole)


def of_model(name, parallel, penalty=False):
    """(declared, compiled) of a gradient with the batch over "data" and parameters over "model", by `data_parallel` or by
    the compiler alone."""
    net, shape, specs = (CUT | BRANCHES | MIXING)[name]
    args = params, x, _ = given(net, shape, isinstance(net.layers[0], fn.Embedding))
    mesh = mesh_of(SIZES)
    live, *_ = shardings = living(mesh, specs, "model" if name == "inputs" else None)
    penalty = fn.L2(0.1) if penalty else None
    gradient = fn.value_and_grad(net, fn.quadratic, micro_batch=None, penalty=penalty, n_examples=100)
    if parallel:
        gradient = fn.data_parallel(gradient, mesh, "data")
    f = lambda params, x, y: gradient(params, x, y, key=KEY)  # noqa: E731
    declared = fn.collectives(net, params, live, shape=x.shape, penalty=penalty).totals
    return listed(declared), found(f, args, SIZES, shardings, (NamedSharding(mesh, P()), live))


def living(mesh, specs, features=None):
    """The shardings of parameters and of the batch."""
    of = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    live = jax.tree.map(of, specs, is_leaf=lambda spec: isinstance(spec, P))
    return live, of(P("data", features)), of(P("data"))


def difference(name):
    """Between the gradients of one device and those with the batch and the parameters cut, relative to the largest entry."""
    net, shape, specs = CUT[name]
    mesh, rng = mesh_of(SIZES), np.random.default_rng(0)
    batch = given(net, shape, False)
    batch = jax.tree.map(lambda a: rng.standard_normal(a.shape), batch)
    one = fn.value_and_grad(net, fn.quadratic)
    run = jax.jit(fn.data_parallel(one, mesh, "data"), in_shardings=living(mesh, specs))
    pairs = zip(jax.tree.leaves(one(*batch)), jax.tree.leaves(run(*batch)), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in pairs)


def of_recurrence():
    """What a cell's gradient sends under ``jax.jit`` alone, by hand and by autodiff."""
    net = fn.Network(fn.LSTM(4), fn.LastStep(), fn.Dense(3, fn.softmax))
    args = params, *_ = given(net, (40, 3), False)
    shardings, mesh = (living(mesh_of({"data": 8}), P())), mesh_of({"data": 8})
    by_hand = fn.value_and_grad(net, fn.quadratic, micro_batch=None)
    both = by_hand, jax.value_and_grad(fn.objective(net, fn.quadratic))
    sent = [found(f, args, {"data": 8}, shardings, NamedSharding(mesh, P())) for f in both]
    return listed(fn.collectives(net, params, P()).totals), *sent


def report():
    """For the process that asks: what it asks for on stdin, answered on stdout."""
    jax.config.update("jax_enable_x64", True)
    print(json.dumps([globals()[function](*about) for function, *about in json.load(sys.stdin)]))


def ask(*programs):
    """{program: what its function returns} from a process with eight devices."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_collectives import report; report()"],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(8),
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(programs, json.loads(done.stdout), strict=True))


def assert_as_declared(*programs):
    for program, (declared, sent) in ask(*programs).items():
        assert sent == declared, program


def test_what_is_declared_is_what_is_sent():
    plain = [("of_data", name, size) for name, size in zip(NETS, (None, 2, 2), strict=True)]
    planted = "of_data", "Dense", None, True
    cut = ("of_model", "two layers in the middle", False, True), ("of_model", "batch norm", False)
    answers = ask(*plain, *cut, planted)
    declared, sent = answers.pop(planted)
    assert sent != declared
    assert [kind for kind, *_ in sent if kind != "collective-permute"] == ["all-gather", "all-reduce"]
    for program, (declared, sent) in answers.items():
        assert sent == declared, program
    for program in plain:
        assert [row[:3] for row in answers[program][1]] == [["all-reduce", "data", 1]]


def in_parts(names, n=10):
    return [list(names)[i : i + n] for i in range(0, len(names), n)]


@pytest.mark.thorough
@pytest.mark.parametrize("names", in_parts(NETS | ROWS), ids=lambda names: names[0])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_every_row_sends_one_sum(names, micro_batch):
    assert_as_declared(*[("of_data", name, micro_batch) for name in names])


MORE_THAN_ONCE = {
    "tokens": "tied and repeated",
    "Tied": "the array's gradient in each place",
    "Tied embedding": "the array's gradient in each place",
    "Repeat": "gradients in each repetition",
    "Repeat a softmax": "gradients in each repetition",
    "Repeat a cell": "gradients in each repetition",
    "Nested three deep": "gradients in each repetition",
    "LSTM recomputed": "gradients in each segment",
    "Conv by library": "the gradient with the rows that the stride leaves out",
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "names", in_parts([name for name in NETS | ROWS if name not in MORE_THAN_ONCE]), ids=lambda n: n[0]
)
def test_the_compiler_alone_sends_one_sum(names):
    assert_as_declared(*[("of_data", name, None, False, False) for name in names])


@pytest.mark.thorough
def test_what_the_compiler_alone_sends_more_than_once():
    """No row of the batch is among it."""
    for program, (_, sent) in ask(*[("of_data", name, None, False, False) for name in MORE_THAN_ONCE]).items():
        assert [row[:2] for row in sent] == [["all-reduce", "data"]], program


@pytest.mark.thorough
@pytest.mark.parametrize("names", in_parts(CUT), ids=lambda names: names[0])
@pytest.mark.parametrize("penalty", [False, True])
def test_cut_parameters(names, penalty):
    assert_as_declared(*[("of_model", name, True, penalty) for name in names])


@pytest.mark.thorough
def test_cut_parameters_give_the_same_gradients():
    for program, difference in ask(("difference", "a block"), ("difference", "repeated")).items():
        assert difference < 1e-12, program


@pytest.mark.thorough
def test_the_compiler_alone():
    """``jax.jit`` with these shardings; a tied array's gradients are added up once for each place, those of repetitions in
    each."""
    alone = [name for name in CUT if "tied" not in name and "repeated" not in name]
    assert_as_declared(*[("of_model", name, False) for name in (*alone, *MIXING)])


@pytest.mark.thorough
def test_a_recurrence_sends_once_where_autodiff_sends_each_step():
    declared, by_hand, by_autodiff = ask(("of_recurrence",))["of_recurrence",]
    assert by_hand == declared
    assert [row[:3] for row in by_autodiff] == [["all-reduce", "data", 1 + 40]]


@pytest.mark.thorough
def test_branches_may_be_sent_together():
    """Two psums that do not wait for each other: the same bytes, in as many or fewer."""
    for _, (declared, sent) in ask(*[("of_model", name, True) for name in BRANCHES]).items():
        assert [(*row[:2], row[3]) for row in sent] == [(*row[:2], row[3]) for row in declared]
        assert all(0 < row[2] <= most[2] for row, most in zip(sent, declared, strict=True))


AVALS = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
MLP, _, MLP_SPECS = IN_THE_MIDDLE


def shapes(net, shape):
    return jax.eval_shape(lambda: net.init(KEY, shape))


def test_the_table():
    params = shapes(MLP, (5,))
    table = fn.collectives(MLP, params, MLP_SPECS, shape=(32, 5), mesh={"data": 4, "model": 2}, penalty=fn.L2(0.1))
    assert str(table) == textwrap.dedent("""\
        layer    equation  collective  axis   count  bytes
        0 Dense  BP3 b     all-reduce  data       0     48
        0 Dense  BP4 w     all-reduce  data       0    240
        1 Dense  BP2       all-reduce  model      1    384
        1 Dense  BP3 b     all-reduce  data       0     32
        1 Dense  BP4 w     all-reduce  data       0    192
        2 Dense  z         all-reduce  model      1    256
        2 Dense  BP3 b     all-reduce  data       0     32
        2 Dense  BP4 w     all-reduce  data       0    128
        cost     C         all-reduce  data       1      8
        penalty  L2 1.w    all-reduce  model      0      8
        penalty  L2 2.w    all-reduce  model      0      8
        total              all-reduce  data       1    680
        total              all-reduce  model      2    656""")
    assert table.rows[2] == fn.Collective("1 Dense", "BP2", "all-reduce", "model", 1, 8 * 6 * 8)
    live = jax.tree.map(lambda spec: NamedSharding(AVALS, spec), MLP_SPECS, is_leaf=lambda spec: isinstance(spec, P))
    for specs, mesh in ((MLP_SPECS, AVALS), (live, None)):
        again = fn.collectives(MLP, params, specs, shape=(32, 5), mesh=mesh, penalty=fn.L2(0.1))
        assert again == table
        hash(again)


def test_the_batch_alone():
    params = shapes(MLP, (5,))
    whole = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert fn.collectives(MLP, params, P()).totals == {("all-reduce", "data"): (1, 8 * whole + 8)}
    single = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), params)
    assert fn.collectives(MLP, single, None).totals == {("all-reduce", "data"): (1, 4 * whole + 4)}
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    assert fn.collectives(MLP, half, P()).totals == {("all-reduce", "data"): (1, 2 * whole + 4)}
    assert fn.collectives(fn.Network(fn.Flatten()), ({},), P()).totals == {("all-reduce", "data"): (1, 8)}
    table = fn.collectives(MLP, params, P(), batch=("rows", "columns"), mesh={"rows": 4, "columns": 2, "other": 1})
    assert table.totals == {("all-reduce", "rows,columns"): (1, 8 * whole + 8)}
    for nothing in ({"batch": None}, {"mesh": {"data": 1}}):
        assert fn.collectives(MLP, params, P(), **nothing).rows == ()
    with jax.sharding.use_abstract_mesh(AVALS):
        assert fn.collectives(MLP, params, MLP_SPECS, shape=(32, 5)).totals["all-reduce", "model"] == (2, 640)


def test_a_tied_array_is_sent_once():
    net = fn.Tied(fn.Network(fn.Embedding(6, 4), LAST), "0.w", "-1.w")
    rows = fn.collectives(net, shapes(net, (4,)), P()).rows
    assert [(row.layer, row.equation, row.bytes) for row in rows] == [
        ("0 Embedding", "BP4 w", 8 * 24),
        ("1 Dense", "BP3 b", 8 * 6),
        ("cost", "C", 8),
    ]


def test_repetitions_are_one_array():
    net = fn.Network(fn.Repeat(fn.Dense(4, fn.tanh), 3), END)
    rows = fn.collectives(net, shapes(net, (4,)), P()).rows
    assert [(row.layer, row.equation, row.bytes) for row in rows[:2]] == [
        ("0 Repeat", "BP3 b", 8 * 12),
        ("0 Repeat", "BP4 w", 8 * 48),
    ]


@fn.layer
class Gain(fn.Layer):
    """a = scale ⊙ a_in."""

    def init(self, key, input_shape):
        return {"scale": jnp.ones(input_shape[-1])}

    def forward(self, params, a_in):
        return params["scale"] * a_in, a_in


@fn.layer
class CutGain(Gain):
    def collectives(self, params, a_in, a_out):
        (over,) = params["scale"].cut
        return fn.Sends(over, over)


def test_an_own_layer():
    net = fn.Network(dense(6), Gain(), END)
    params, specs = shapes(net, (5,)), (BY_OUT, P("model"), BY_IN)
    assert fn.collectives(net, params, P()).rows[2] == fn.Collective("1 Gain", "BP4 scale", "all-reduce", "data", 0, 48)
    with pytest.raises(
        fn.LayerError,
        match=r"layer 1 Gain\(\): expected parameters that each device holds whole, got params\['scale'\] cut by "
        r"P\('model',\); give it P\(\); a layer of your own may write collectives",
    ):
        fn.collectives(net, params, specs, shape=(32, 5), mesh=AVALS)
    net = fn.Network(dense(6), CutGain(), END)
    assert fn.collectives(net, params, specs, shape=(32, 5), mesh=AVALS).totals["all-reduce", "model"] == (1, 256)


TWO = {"mesh": {"data": 4, "model": 2}}


@pytest.mark.parametrize(
    ("layers", "shape", "specs", "message"),
    [
        (
            (fn.LSTM(4), fn.LastStep(), END),
            (5, 3),
            (P("model"), P(), P()),
            r"layer 0 LSTM\(4\): expected b whole on each device: its rows are 4 gates of 4, one under another, got "
            r"P\('model',\); .*weights \(g, n, n_in\)",
        ),
        (
            (fn.GRU(4), END),
            (5, 3),
            ({"b": P(), "b_h": P(), "w_h": P(), "w_x": P("model")}, P()),
            "w_x whole .* 3 gates of 4",
        ),
        (
            (dense(6), END),
            (5,),
            (BY_OUT, P()),
            r"layer 1 Dense\(4, softmax\): expected inputs that are whole, got inputs that are cut over 'model' along their "
            r"last axis; cut the outputs of one layer and the inputs of the next",
        ),
        (
            (dense(6), END),
            (5,),
            (P(), BY_IN),
            "layer 1 .* inputs that are cut over 'model' .* got inputs that are whole",
        ),
        ((dense(6), END), (5,), (P(), BY_OUT), "layer 1 .* expected units that act alone, to cut them, got softmax"),
        (
            (dense(6), END),
            (5,),
            ({"w": P("model"), "b": P()}, P()),
            r"expected b cut as the outputs of w, .* P\('model'\)",
        ),
        (
            (dense(6), END),
            (4,),
            ({"w": P("model", "model"), "b": P("model")}, P()),
            "w cut by its outputs or by its inputs",
        ),
        (
            (fn.Conv(4, 3, fn.tanh), fn.Flatten(), END),
            (5, 5, 2),
            (KERNELS_BY_OUT, P(), P()),
            r"layer 0 Conv.*: expected algorithm=\"library\" and one group, to cut channels",
        ),
        ((fn.Embedding(6, 4), END), (3,), ({"w": P("model", "model")}, P()), "w cut by tokens or by features"),
        ((fn.Position(), END), (4, 6), ({"w": P("model")}, P()), "layer 0 Position.*: expected w cut by features"),
        ((fn.LayerNorm(), END), (6,), ({"g": P("model"), "b": P()}, P()), "expected all parameters cut alike"),
        ((fn.GroupNorm(2), END), (6,), (P("model"), P()), "GroupNorm.* parameters that each device holds whole"),
        ((dense(6), fn.Attention(1), END), (3, 5), (BY_OUT, P(), P()), "layer 1 Attention.* inputs that are whole"),
        (
            (fn.Parallel(dense(6), dense(6), join=fn.concatenate), END),
            (5,),
            ((BY_OUT, BY_OUT), BY_IN),
            r"layer 0 Parallel.*: expected outputs of its parts that each device holds whole, got \('model', 'model'\)",
        ),
        (
            (dense(4), fn.Recompute(fn.Network(dense(8), dense(4))), END),
            (5,),
            (P(), (BY_OUT, BY_IN), P()),
            r"layer 1\.0 Dense.*: expected a layer whose forward pass runs once, got one inside Recompute",
        ),
    ],
)
def test_a_cut_that_would_move_data(layers, shape, specs, message):
    net = fn.Network(*layers)
    with pytest.raises(fn.LayerError, match=message):
        fn.collectives(net, shapes(net, shape), specs, shape=(8, *shape), **TWO)


@fn.layer
class Doubled(fn.Composite):
    """Its second part reads twice what the first gives."""

    layers: tuple[fn.Layer, ...]

    last = -1

    def wire(self, run, a_in):
        return run(1, 2 * run(0, a_in)), None


def test_an_own_wiring():
    net = fn.Network(dense(6), Doubled((dense(8), END)))
    params = shapes(net, (5,))
    assert fn.collectives(net, params, P()).totals["all-reduce", "data"][0] == 1
    with pytest.raises(
        fn.LayerError, match=r"layer 1\.1 Dense.*: expected what another layer gives as the input, where one is"
    ):
        fn.collectives(net, params, (P(), (BY_OUT, BY_IN)), shape=(8, 5), **TWO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": "net"}, r"net: expected an fn\.Network or another layer, got str"),
        (
            {"specs": (P(),)},
            r"specs: expected a PartitionSpec or NamedSharding for each parameter, .* another structure",
        ),
        (
            {"specs": (1, P(), P())},
            r"specs: expected a PartitionSpec or NamedSharding .*, got int; as in P\('model', None\)",
        ),
        (
            {"specs": (P(None, None, "model"), P(), P())},
            r"specs\[0\]\['b'\]: expected at most one axis of a mesh for each axis of",
        ),
        ({"specs": ({"w": P(("data", "model")), "b": P()}, P(), P())}, r"specs\[0\]\['w'\]: expected at most one axis"),
        (
            {"specs": (P("rows"), P(), P())},
            r"expected an axis of the mesh, got 'rows' with a mesh of 'data', 'model'; give mesh=",
        ),
        ({"mesh": None}, r"expected an axis of the mesh, got 'model' with no mesh; give mesh="),
        (
            {"specs": (P("data"), P(), P())},
            r"expected another axis than the batch's, got 'data'; cut parameters over another",
        ),
        (
            {"mesh": {"data": 4, "model": 5}},
            r"expected a number that the devices divide, got 8 entries for the 5 devices of",
        ),
        ({"mesh": 8}, r"mesh: expected a jax\.sharding\.Mesh or the sizes of its axes, got int; as in \{'data': 8\}"),
        (
            {"batch": "rows"},
            r"batch: expected an axis of the mesh, 'data', 'model', or None, got 'rows'; name the axis",
        ),
        (
            {"shape": None},
            r"shape: expected the shape \(m, \.\.\.\) of the batch, as more is sent than gradients, got None",
        ),
        (
            {"shape": (30, 5)},
            r"shape: expected a number of examples that the devices divide, got 30 for the 4 devices of 'data'",
        ),
        ({"shape": (32, 7)}, r"layer 0 Dense\(6, tanh\): expected inputs of shape \(m, 5\), got \(32, 7\)"),
        ({"penalty": 0.1}, r"penalty: expected fn\.L1, fn\.L2 or None, got 0\.1; count one of your own by hand"),
    ],
)
def test_bad_input(change, message):
    about = {"net": MLP, "params": shapes(MLP, (5,)), "specs": MLP_SPECS, "shape": (32, 5), "mesh": SIZES} | change
    with pytest.raises(ValueError, match=message):
        fn.collectives(about.pop("net"), about.pop("params"), about.pop("specs"), **about)


def test_a_layer_that_mixes_examples_needs_the_shape():
    net = fn.Network(dense(6), fn.BatchNorm(), END)
    with pytest.raises(ValueError, match=r"shape: expected the shape \(m, \.\.\.\) of the batch"):
        fn.collectives(net, shapes(net, (5,)), P())
    assert fn.collectives(net, shapes(net, (5,)), P(), shape=(8, 5)).totals["all-reduce", "data"][0] == 4


PROGRAM = """\
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (f32[4])) -> (f32[4]) {
  %g = f32[8,4]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

%outer (p: (f32[4])) -> (f32[4]) {
  %w = (f32[4]) while(%p), condition=%cond, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %r = (f32[], bf16[3]{0}) all-reduce(%a, %b), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}

ENTRY %main (p: (f32[4])) -> (f32[4]) {
  %w = (f32[4]) while(%p), condition=%cond, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %s = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=mesh['data'=4,'model'=2] {'data'}, dimensions={0}
  %d = f32[8]{0} all-gather-done(%s)
  %t = f64[6]{0} all-reduce-start(%x), replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}, to_apply=%add
  %c = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
}
"""


def test_reading_a_program():
    ones = compiled.collectives(PROGRAM)
    data, model = compiled.along(SIZES, "data"), compiled.along(SIZES, "model")
    pairs = frozenset({frozenset({0, 1})})
    assert ones == [
        ("all-gather", 128, 1, True, 15, data),
        ("all-reduce", 10, 2, True, 5, model),
        ("all-gather", 32, 1, False, 1, data),
        ("all-reduce", 48, 1, False, 1, model),
        ("collective-permute", 8, 1, False, 1, pairs),
    ]
    assert compiled.totals(ones, SIZES) == {
        ("all-gather", "data"): (16, 15 * 128 + 32),
        ("all-reduce", "model"): (6, 5 * 10 + 48),
        ("collective-permute", "?"): (1, 8),
    }
