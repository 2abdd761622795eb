"""What each equation sends, declared (`fn.collectives`) and compiled: the same kinds, counts and bytes.

The programs are compiled in a process with eight simulated devices, which imports this file and reports what it finds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn

from . import compiled
from .cases import LAYERS, gpt, gpt_block

ROOT = Path(__file__).parent.parent
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
        fn.Network(dense(6), dense(8), fn.Dropout(0.5), fn.LastStep(), END),
        (3, 5),
        (WHOLE, BY_OUT, WHOLE, WHOLE, BY_IN),
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


def compile_for(f, args, shardings, results):
    """The collectives of the program whose arguments and results live so."""
    text = jax.jit(f, in_shardings=shardings, out_shardings=results).lower(*args).compile().as_text()
    return compiled.collectives(text)


def of_data(name, micro_batch, planted=False):
    """(declared, compiled) of `data_parallel`'s gradient on all devices."""
    net, shape = (NETS | ROWS)[name]
    params, x, y = given(net, shape, name in TAKING_TOKENS)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    gradient = fn.data_parallel(fn.value_and_grad(net, fn.quadratic, micro_batch=micro_batch), mesh)

    def f(params, x, y):
        x = jnp.take(x, jnp.arange(M)[::-1], axis=0) if planted else x
        return gradient(params, x, y, key=KEY)

    rows, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    ones = compile_for(f, (params, x, y), (whole, rows, rows), whole)
    return fn.collectives(net, params, P()), compiled.totals(ones, {"data": 8})


def of_model(name, parallel, penalty=False):
    """(declared, compiled) of a gradient with the batch over "data" and parameters over "model", by `data_parallel` or by
    the compiler alone."""
    net, shape, specs = (CUT | BRANCHES | MIXING)[name]
    params, x, y = given(net, shape, isinstance(net.layers[0], fn.Embedding))
    mesh = jax.make_mesh(tuple(SIZES.values()), tuple(SIZES), axis_types=(AxisType.Auto,) * 2)
    of = lambda spec: NamedSharding(mesh, spec)  # noqa: E731
    live = jax.tree.map(of, specs, is_leaf=lambda spec: isinstance(spec, P))
    penalty = fn.L2(0.1) if penalty else None
    gradient = fn.value_and_grad(net, fn.quadratic, micro_batch=None, penalty=penalty, n_examples=100)
    if parallel:
        gradient = fn.data_parallel(gradient, mesh, "data")
    rows, inputs = of(P("data")), of(P("data", "model" if name == "inputs" else None))
    f = lambda params, x, y: gradient(params, x, y, key=KEY)  # noqa: E731
    ones = compile_for(f, (params, x, y), (live, inputs, rows), (of(P()), live))
    return fn.collectives(net, params, live, shape=x.shape, penalty=penalty), compiled.totals(ones, SIZES)


def report():
    """For the process that asks: what it asks for on stdin, answered on stdout."""
    jax.config.update("jax_enable_x64", True)
    asked = json.load(sys.stdin)
    both = (globals()[function](*about) for function, *about in asked)
    print(json.dumps([[[[*key, *total] for key, total in t.items()] for t in (d.totals, found)] for d, found in both]))


def ask(*programs):
    """{program: ({(kind, axis): (count, bytes)} declared, the same compiled)} from a process with eight devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    code = "from tests.test_collectives import report; report()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    read = lambda rows: {(kind, axis): (count, size) for kind, axis, count, size in rows}  # noqa: E731
    return {p: tuple(map(read, both)) for p, both in zip(programs, json.loads(done.stdout), strict=True)}


def assert_as_declared(*programs):
    for program, (declared, found) in ask(*programs).items():
        assert found == declared, program


def test_what_is_declared_is_what_is_sent():
    plain = [("of_data", name, size) for name, size in zip(NETS, (None, 2, 2), strict=True)]
    planted = "of_data", "Dense", None, True
    cut = ("of_model", "two layers in the middle", False, True), ("of_model", "batch norm", False)
    answers = ask(*plain, *cut, planted)
    declared, found = answers.pop(planted)
    assert found.pop(("all-gather", "data"), None)
    assert found != declared
    for program, (declared, found) in answers.items():
        assert found == declared, program
    for program in plain:
        assert [(*key, count) for key, (count, _) in answers[program][1].items()] == [("all-reduce", "data", 1)]


def in_parts(names, n=10):
    return [list(names)[i : i + n] for i in range(0, len(names), n)]


@pytest.mark.thorough
@pytest.mark.parametrize("names", in_parts(NETS | ROWS), ids=lambda names: names[0])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_every_row_sends_one_sum(names, micro_batch):
    assert_as_declared(*[("of_data", name, micro_batch) for name in names])


@pytest.mark.thorough
@pytest.mark.parametrize("names", in_parts(CUT), ids=lambda names: names[0])
@pytest.mark.parametrize("penalty", [False, True])
def test_cut_parameters(names, penalty):
    assert_as_declared(*[("of_model", name, True, penalty) for name in names])


@pytest.mark.thorough
def test_the_compiler_alone():
    """``jax.jit`` with these shardings; a tied array's gradients are added up once for each place, those of repetitions in
    each."""
    alone = [name for name in CUT if "tied" not in name and "repeated" not in name]
    assert_as_declared(*[("of_model", name, False) for name in (*alone, *MIXING)])


@pytest.mark.thorough
def test_branches_may_be_sent_together():
    """Two psums that do not wait for each other: the same bytes, in as many or fewer."""
    for _, (declared, found) in ask(*[("of_model", name, True) for name in BRANCHES]).items():
        assert {key: size for key, (_, size) in found.items()} == {key: size for key, (_, size) in declared.items()}
        assert all(0 < found[key][0] <= count for key, (count, _) in declared.items())
