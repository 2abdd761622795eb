"""The machine that measures, and its limits."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .measure import in_turns


def processor() -> str:
    """Its name and family, without the vendor's marks: "AMD EPYC, family 25"."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text.split("\n\n")[0], re.M))
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor|@.*)", "", fields.get("model name", platform.machine())).split()
    family = f", family {fields['cpu family']}" if "cpu family" in fields else ""
    return " ".join(name) + family


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the figures are of: processor, cores, device, version of JAX."""
    device = jax.devices()[0]
    return {
        "processor": processor(),
        "cores": cores(),
        "device": device.platform if device.platform == "cpu" else device.device_kind,
        "jax": jax.__version__,
    }


def name_of(machine: dict[str, Any]) -> str:
    """Of the file of its results: lower-case, without spaces."""
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    words = f"{device} {machine['cores']} jax{machine['jax']}"
    return re.sub(r"[^a-z0-9.]+", "-", words.lower())


def limits(quick: bool = False) -> dict[str, float]:
    """GFLOP/s of a product of two 2048 × 2048 matrices (8192 × 8192 off the CPU), and GB/s of reading and writing 256 MB in
    place, both float32."""
    large = 2048 if jax.default_backend() == "cpu" else 8192
    n, size, times = (256, 2**18, 10) if quick else (large, 2**26, 10)
    a, b = (jax.device_put(np.ones(shape, np.float32)) for shape in ((n, n), size))
    product, passes = jax.jit(jnp.dot), jax.jit(lambda b: jax.lax.fori_loop(0, times, lambda _, b: b + 1, b))
    runs = {"product": lambda: product(a, a), "passes": lambda: passes(b)}
    seconds = np.median(in_turns(runs, 1 if quick else 5), axis=0)
    return {"gemm_gflops": 2 * n**3 / seconds[0] / 1e9, "memory_gb_s": 2 * times * b.nbytes / seconds[1] / 1e9}
