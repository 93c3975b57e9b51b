"""The other side of `tests.benchmarks.kernels`: run by a python that has neural-tangents, and asked line by line.

Each line on stdin is JSON: {"what": "conv" or "dense", "n", "m", "depth", "dtype", "seed"}. The answer is a line of
JSON with the processor seconds of one call, compiled before, and the values. One thread.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import numpy as np
from neural_tangents import stax

jax.config.update("jax_enable_x64", True)
STD = {"W_std": 2**0.5, "b_std": 0.1}


@functools.cache
def kernel(what: str, depth: int):
    dense = stax.Dense(1, **STD)
    if what == "dense":
        layers = [stax.Flatten(), *[dense, stax.Relu()] * depth, dense]
    else:
        block = [stax.Conv(1, (3, 3), padding="SAME", **STD), stax.Relu(), stax.AvgPool((2, 2), strides=(2, 2))]
        layers = [*block * depth, stax.Flatten(), dense]
    return jax.jit(functools.partial(stax.serial(*layers)[2], get="ntk"))


def answer(what: str, n: int, m: int, depth: int, dtype: str, seed: int) -> dict:
    state = np.random.RandomState(seed)
    a, b = (np.moveaxis(state.standard_normal((k, 3, 32, 32)).astype(dtype), 1, -1) for k in (n, m))
    f = kernel(what, depth)
    f(a, b).block_until_ready()
    began = time.process_time()
    out = f(a, b).block_until_ready()
    seconds = time.process_time() - began
    return {"seconds": seconds, "values": np.asarray(out).ravel()[:64].tolist()}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)
