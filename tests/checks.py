"""Many checks in one process with 8 devices: starting JAX takes longer than most of them."""

import importlib
import json
import traceback

from .devices import on_devices


def outcomes(request, timeout=900):
    """What became of each check in ``CHECKS``, (function, *arguments) by name, of a test module, of which the tests' ``name``
    is about to be looked at: None, or how it failed. Give pytest's ``request`` of a fixture of the module."""
    mine = (item for item in request.session.items if item.path == request.path)
    names = [item.callspec.params["name"] for item in mine if request.fixturename in item.fixturenames]
    (printed,) = on_devices(run, request.module.__name__, names, timeout=timeout)
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
