"""Many checks in one process with 8 devices, as starting JAX takes longer than most of them; and what checks compare."""

import importlib
import json
import tempfile
import traceback

import jax
import jax.numpy as jnp
import numpy as np

from .devices import on_devices


def assert_same(ours, theirs):
    """Bit for bit, keys too."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, strict=True)


def in_a_folder(check):
    """A check of a folder, in one that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        check(folder)


def outcomes(request):
    """What became of each check in ``CHECKS``, (function, *arguments) by name, of a test module, of which the tests' ``name``
    is about to be looked at: None, or how it failed. Give pytest's ``request`` of a fixture of the module."""
    mine = (item for item in request.session.items if item.path == request.path)
    names = [item.callspec.params["name"] for item in mine if request.fixturename in item.fixturenames]
    (printed,) = on_devices(run, request.module.__name__, names, timeout=900)
    return json.loads(printed.splitlines()[-1])


def run(module, names):
    """Print the outcomes as JSON."""
    checks = importlib.import_module(module).CHECKS
    print(json.dumps({name: outcome(*checks[name]) for name in names}))


def outcome(check, *arguments):
    try:
        check(*arguments)
    except BaseException:
        return traceback.format_exc()
