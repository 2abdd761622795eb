"""How the benchmarks beside this file take their times."""

import time

import jax
import numpy as np


def alternating(contenders, rounds, calls):
    """Seconds per call, (rounds, contenders). Each has its turn after as many calls that are not counted: what ran before
    it leaves cold caches, and PyTorch's threads spin on for a while after a call.
    """
    times = np.empty((rounds + 1, len(contenders)))
    for row in times:
        for i, run in enumerate(contenders.values()):
            for _ in range(calls):
                jax.block_until_ready(run())
            start = time.perf_counter()
            for _ in range(calls):
                result = run()
            jax.block_until_ready(result)
            row[i] = (time.perf_counter() - start) / calls
    return times[1:]
