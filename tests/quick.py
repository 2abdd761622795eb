"""What tests do to compile and trace in less time, in every process of theirs."""

import functools
import gc
import threading

import jax
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
