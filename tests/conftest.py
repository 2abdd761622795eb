"""Strict settings for every test: float64 allowed, no implicit dtype promotion, warnings are errors (pyproject.toml)."""

import ctypes
import gc
import itertools
import os
import shutil
import sys

import jax
import pytest
from hypothesis import HealthCheck, settings

from . import quick

gc.disable()  # until all tests are collected
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
os.environ.setdefault("MPLBACKEND", "Agg")

# Nearly all of the time is compilation. Unoptimised and in one piece it takes a fraction: numbers are the same to rounding;
# operations and buffers are settled before. XLA reads this when first used. Later versions have nothing but fusion emitters.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
quick.keep_dialects()
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])

TESTS = itertools.count(1)
KEPT = 30_000
WORTH = 0.03  # seconds: to write a smaller program takes a third of the time of its compilation


def pytest_configure(config):
    """What is compiled is kept for the next run, of each worker in its own folder, as JAX does not lock the files."""
    if not hasattr(config, "cache"):  # -p no:cacheprovider
        return
    folder = config.cache.mkdir("compiled") / os.environ.get("PYTEST_XDIST_WORKER", "alone")
    if folder.exists() and len(os.listdir(folder)) > KEPT:
        shutil.rmtree(folder)
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(WORTH)}
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH)


def pytest_collection_finish():
    quick.collect_seldom()


common = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "print_blob": True}
settings.register_profile("dev", max_examples=5, **common)
settings.register_profile("ci", max_examples=50, **common)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def forget_compiled_programs():
    """Compiled programs are kept for ever otherwise: gigabytes over the whole suite, and hundreds of memory maps for an
    audit, of which Linux gives a process 65,530 (compilation crashes without any left)."""
    yield
    if next(TESTS) % 250 == 0:
        jax.clear_caches()
        quick.CONTEXTS.cache_clear()
        gc.collect()
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)  # what the compiler has freed goes back to the system: two thirds of it all


@pytest.fixture
def optimised():
    with quick.optimised():
        yield


@pytest.fixture(scope="session")
def digits():
    """The embedded digits: (images, labels) of 400 training and 100 test images."""
    import fnnet as fn

    data = fn.datasets.mnist_subset()
    return tuple(pair[:400] for pair in data.train), tuple(pair[:100] for pair in data.test)


@pytest.fixture(scope="module")
def found(request):
    """The outcomes of the module's ``CHECKS`` on eight devices, all of them run in one process."""
    from .checks import outcomes

    return outcomes(request)
