"""What tests do to compile and trace in less time, in every process of theirs."""

import contextlib
import functools
import gc
import threading
from unittest import mock

import jax
from jax._src import compiler
from jax._src.interpreters import mlir

CONTEXTS = functools.cache(lambda thread, make=mlir.make_ir_context: make())


def keep_dialects():
    """JAX 0.10 loads MLIR's dialects for each program, which takes 3 ms; later versions keep them for each thread as well."""
    if jax.__version_info__ < (0, 11):
        mlir.make_ir_context = lambda: CONTEXTS(threading.get_ident())


def collect_seldom():
    """Imports and tracing make many objects: the collector would look through all that there are again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(500_000, 20, 100)
    gc.enable()


@contextlib.contextmanager
def optimised():
    """What is compiled meanwhile runs for longer than it compiles."""

    def options(*args, make=compiler.get_compile_options, **given):
        made = make(*args, **given)
        made.executable_build_options.debug_options.xla_backend_optimization_level = 1
        return made

    with mock.patch.object(compiler, "get_compile_options", options):
        yield
