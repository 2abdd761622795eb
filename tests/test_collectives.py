"""What each equation sends, declared (`fn.collectives`) and compiled: the same kinds, counts and bytes.

The programs are compiled in a process with eight simulated devices, which imports this file and reports what it finds.
"""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn

from . import compiled
from .cases import LAYERS, gpt, gpt_block, thorough

M = 32
SIZES = {"data": 4, "model": 2}
IMAGES = fn.Network(
    fn.Conv(4, 3, fn.tanh), fn.GroupNorm(2), fn.MaxPool(2), fn.Dropout(0.3), fn.Flatten(), fn.Dense(3, fn.softmax)
)
SEQUENCES = fn.Network(fn.LSTM(3), fn.RMSNorm(), fn.Bidirectional(fn.GRU(2), last=True), fn.Dense(3, fn.softmax))
TOKENS = gpt(6, 4, [*gpt_block(4, fn.Attention(2)), fn.Repeat(fn.Residual(fn.Dense(4, fn.tanh)), 2)])
NETS = {"images": (IMAGES, (6, 6, 2)), "sequences": (SEQUENCES, (4, 3)), "tokens": (TOKENS, (4,))}
NETS |= {case.name: (case.layer, case.shape) for case in LAYERS if case.layer.independent}
TAKING_TOKENS = {"tokens", *(case.name for case in LAYERS if case.tokens)}


def given(net, shape, tokens, m=M):
    """Parameters and a batch without their numbers, and a cost that the net's output fits."""
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), shape))
    x = jax.ShapeDtypeStruct((m, *shape), jnp.int32 if tokens else float)
    a = jax.eval_shape(lambda p, x: net.forward(p, x)[0], params, x)
    return params, x, jax.ShapeDtypeStruct(a.shape, float)


def data_parallel(gradient, mesh, axis):
    def local(params, x, y):
        own = jax.tree.map(lambda p: jax.lax.pcast(p, (axis,), to="varying"), params)
        i = jax.lax.axis_index(axis) * len(x) + jnp.arange(len(x))
        total = jax.lax.psum(gradient(own, x, y, key=fn.ExampleKeys(jax.random.key(0), i)), axis)
        return jax.tree.map(lambda g: g / mesh.shape[axis], total)

    specs = P(), P(axis), P(axis)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), axis_names={axis}, check_vma=False)


def found(f, *args, **options):
    return compiled.collectives(jax.jit(f, **options).lower(*args).compile().as_text())


def of_data(name, micro_batch, planted=False):
    """(declared, compiled) of a data-parallel gradient on all devices."""
    net, shape = NETS[name]
    params, x, y = given(net, shape, name in TAKING_TOKENS)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    gradient = fn.value_and_grad(net, fn.quadratic, micro_batch=micro_batch)
    if planted:
        rows, gradient = gradient, lambda p, x, y, key: rows(p, jax.lax.all_gather(x, "data", tiled=True)[: len(x)], y)
    rows = NamedSharding(mesh, P("data"))
    shardings = {"in_shardings": (NamedSharding(mesh, P()), rows, rows)}
    ones = found(data_parallel(gradient, mesh, "data"), params, x, y, **shardings)
    return fn.collectives(net, params, P()).totals, compiled.totals(ones, {"data": 8})


def report(names, of):
    """Printed as JSON, for the process that asks."""
    jax.config.update("jax_enable_x64", True)
    both = {name: [[[*k, *v] for k, v in totals.items()] for totals in of(*name.split("|"))] for name in names}
    print(json.dumps(both))
