"""Runs functions of the tests in processes of their own: with several devices, or as several hosts of one program."""

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment(devices):
    """Of a process in which the CPU passes for so many devices. It has more threads than cores: a collective holds one while
    it waits for the other devices, and where all are held it waits for ever."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "32", "PYTHONPATH": str(ROOT)}


def on_devices(function, *arguments, devices=8, hosts=1, timeout=180):
    """What ``function(*arguments)`` prints where there are so many CPU devices, on each host; an AssertionError that shows it
    where the function raises or takes too long. It is one of a module, and the arguments are such as JSON has."""
    __tracebackhide__ = True
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = environment(devices // hosts)
    if hosts > 1:  # they would write to one folder at once
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
    call = [function.__module__, function.__qualname__, json.dumps(arguments)]
    outputs, running = [tempfile.TemporaryFile("w+") for _ in range(hosts)], []  # noqa: SIM115
    for i, output in enumerate(outputs):
        command = [sys.executable, "-m", "tests.devices", *call, address, str(hosts), str(i)]
        running.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT))
    end = time.monotonic() + timeout
    while (codes := [p.poll() for p in running]).count(None) and not any(codes) and time.monotonic() < end:
        time.sleep(0.05)
    late = None in codes and not any(codes)
    for p in running:  # one that failed leaves the others waiting
        p.kill()
        p.wait()
    printed = []
    for output in outputs:
        with output:
            output.seek(0)
            printed.append(output.read())
    if late or any(codes):
        ends = zip(codes, printed, strict=True)
        said = "\n".join(f"host {i}: exit code {code}\n{text}" for i, (code, text) in enumerate(ends))
        raise AssertionError(f"{call[1]} {f'took more than {timeout} s' if late else 'failed'}\n{said}")
    return printed


def main(module, name, arguments, address, hosts, host):
    import jax

    from .quick import collect_seldom, keep_dialects

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    if int(hosts) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(hosts), int(host))
    keep_dialects()
    collect_seldom()
    try:
        getattr(importlib.import_module(module), name)(*json.loads(arguments))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at the usual exit a host waits for the others


if __name__ == "__main__":
    main(*sys.argv[1:])
