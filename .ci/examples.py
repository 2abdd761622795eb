"""Runs every example at small size, two at a time, in processes that import JAX once, those that choose JAX's devices in
one of their own: the parts of commands choose some. They compile for longer than they run, so little is optimised; the
quickstart and the benchmarks at small size run beside as users run them.

python .ci/examples.py [PART ...]
"""

import contextlib
import io
import multiprocessing
import os
import runpy
import shlex
import subprocess
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

COMMANDS = """
    quickstart.py --epochs 2 --examples 500
    feedback_alignment.py --epochs 1 --examples 500
    private.py --epochs 2 --examples 200 --batch 50
    front.py --epochs 2 --examples 500
    find_the_bug.py --epochs 2 --examples 500
    convolutional.py --epochs 1 --examples 300
    convolutional.py --epochs 1 --examples 60 --shift
    rows.py --epochs 1 --examples 200 --units 16
    sharded_checkpoint.py --on 8 4 --epochs 1 --examples 240
    adding.py --steps 20 --epochs 1 --examples 500
    characters.py --epochs 1 --characters 20000 --units 32
    gpt.py --steps 20 --rounds 2 --characters 20000 --length 20
    spectrum.py --epochs 2 --examples 200 --steps 20
    residual.py --epochs 2 --blocks 1 --seeds 2 --examples 100
    contrastive_divergence.py --stages 1,2 --steps 1,2 --chains 2 --groups 3
    belief_network.py --sizes 40,30 --labels 50,100 --seeds 2 --pretraining 2 --steps 20 --examples 500
    autoencoder.py --sizes 40,20,5 --pretraining 2 --epochs 2 --examples 500
    saturation.py --epochs 1 --examples 300 --seeds 2
    initialisation.py --epochs 1 --examples 300 --seeds 2
    overfitting.py --long 2 --epochs 1 --presented 300 --examples 300 --seeds 2
    unstable_gradients.py --steps 3 --examples 50 --seeds 2
    exercises/check.py --in examples/exercises/solutions
    figures.py neuron fault card --output output
    hyperparameters.py --epochs 0.03 --search 1 --examples 200 --seeds 2
    benchmarks/likelihood.py --epochs 2 --k 3 --hidden 8 --examples 500
    benchmarks/curvature.py --rounds 1 --small --only dense
    benchmarks/shares.py --rounds 1 --only inner
    benchmarks/audits.py --mistakes 2
    benchmarks/rules.py --count 2 --rules 2
    benchmarks/calls.py --rounds 1 --depths 2
    benchmarks/sweep.py --rounds 1 --epochs 1 --rates 2 --seeds 2 --at-once 2
    benchmarks/scaling.py --rounds 1 --small --only batch,steps
    benchmarks/gpu.py --small --only rows,audits,sweep,images,gpt
    benchmarks/feedback.py --quick --settings 2x30,lenet --rules BP,DFA
"""
BEFORE_JAX_STARTS = """
    devices.py --fake 4 --epochs 1 --examples 200
"""
ON_THE_WHOLE_OF_MNIST = """
    benchmarks/dense_mnist.py --seeds 2 --epochs 1
    benchmarks/conv_mnist.py --seeds 2 --epochs 1 --examples 1000
    benchmarks/conv_mnist.py --settings expanded,dropout --seeds 2 --epochs 1 --examples 100
"""
EXAMPLES = Path(__file__).parent.parent / "examples"


def run(command):
    """What the command prints and how long it takes; a traceback in place of the end of a command that fails."""
    name, *arguments = shlex.split(command)
    path, start = EXAMPLES / name, time.perf_counter()
    printed, failed = io.StringIO(), False
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[:0] = [str(path), *arguments], [str(path.parent)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            runpy.run_path(str(path), run_name="__main__")
    except (Exception, SystemExit):
        failed = True
        printed.write(traceback.format_exc())
    finally:
        sys.argv, sys.path[:] = before
    return printed.getvalue(), failed, time.perf_counter() - start


def run_alone(command):
    """As ``run``, in a new process."""
    name, *arguments = shlex.split(command)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.stdout, done.returncode != 0, time.perf_counter() - start


def lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def main(wanted):
    alone = lines(BEFORE_JAX_STARTS)
    commands = lines(COMMANDS) + alone + lines(ON_THE_WHOLE_OF_MNIST) * ("FNNET_DATA" in os.environ)
    chosen = [c for c in commands if not wanted or any(part in c for part in wanted)]
    listed = {line.split()[0] for line in lines(COMMANDS + BEFORE_JAX_STARTS + ON_THE_WHOLE_OF_MNIST)}
    unlisted = {str(p.relative_to(EXAMPLES)) for p in EXAMPLES.rglob("*.py") if "__main__" in p.read_text()} - listed
    failures = [f"{name}: not listed in .ci/examples.py" for name in sorted(unlisted)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(run_alone if c in alone else run, c): c for c in chosen}
        for done in as_completed(pending):
            printed, failed, seconds = done.result()
            print(f"+ examples/{pending[done]}  ({seconds:.0f} s)\n{printed}", flush=True)
            failures += [pending[done]] * failed
    if failures:
        sys.exit("failed:\n" + "\n".join(failures))


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1")
    main(sys.argv[1:])
