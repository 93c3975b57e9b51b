"""The kernels of neural-tangents 0.6.5 that ours are held against: writes golden.json beside this file.

neural-tangents does not import beside a current jax. In an environment of its own:

    python3.11 -m venv env && env/bin/pip install jax==0.4.30 jaxlib==0.4.30 numpy==1.26.4 ml_dtypes==0.3.2 \
        tensorflow-cpu==2.16.1 tf2jax==0.3.6 dm-tree absl-py neural-tangents==0.6.5
    env/bin/python tests/reference/kernels/make.py

Images are numpy's `RandomState(seed).standard_normal`, whose stream is frozen: the file holds shapes and values only.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from neural_tangents import stax

jax.config.update("jax_enable_x64", True)

DENSE = [
    {"depth": 1, "shape": [1, 8, 8]},
    {"depth": 1, "shape": [3, 8, 8], "bias_std": 0.0},
    {"depth": 2, "shape": [3, 8, 12], "weight_std": 1.3, "bias_std": 0.5},
    {"depth": 4, "shape": [1, 12, 12]},
]
CONV = [
    {"depth": 1, "shape": [1, 8, 8]},
    {"depth": 2, "shape": [3, 8, 12]},
    {"depth": 2, "shape": [3, 12, 8], "extra": True, "bias_std": 0.0},
    {"depth": 3, "shape": [1, 12, 9], "weight_std": 1.3, "bias_std": 0.5},
    {"depth": 3, "shape": [3, 8, 8], "extra": True},
    {"depth": 3, "shape": [1, 7, 10], "pool": "none"},
    {"depth": 3, "shape": [3, 12, 12]},
    {"depth": 3, "shape": [3, 32, 32], "extra": True, "few": True},
    {"depth": 3, "shape": [1, 28, 28], "extra": True, "few": True},
]
USUAL = {"weight_std": 2**0.5, "bias_std": 0.1}


def images(shape, seed, few=False):
    """Two batches of 3 and 4 images (few: 1 and 2), (N, C, rows, columns). The second begins with one of the first."""
    n = 1 if few else 3
    state = np.random.RandomState(seed)
    a, b = state.standard_normal((n, *shape)), state.standard_normal((n + 1, *shape))
    b[0] = a[-1]
    b[1] = 0.9 * a[0] + 0.1 * b[1]
    return a, b


def network(case, dense):
    std = {"W_std": case.get("weight_std", USUAL["weight_std"]), "b_std": case.get("bias_std", USUAL["bias_std"])}
    hidden = stax.Dense(1, **std)
    if dense:
        return stax.serial(stax.Flatten(), *[hidden, stax.Relu()] * case["depth"], hidden)
    conv = [stax.Conv(1, (3, 3), padding="SAME", **std), stax.Relu()]
    pool = [stax.AvgPool((2, 2), strides=(2, 2))] if case.get("pool", "avg") == "avg" else []
    front = conv if case.get("extra") else []
    return stax.serial(*front, *[*conv, *pool] * case["depth"], stax.Flatten(), hidden)


def made(case, seed, dense):
    a, b = (np.moveaxis(x, 1, -1) for x in images(case["shape"], seed, case.get("few", False)))
    kernel = network(case, dense)[2]
    values = {kind: np.asarray(kernel(a, b, kind)).tolist() for kind in ("nngp", "ntk")}
    values |= {f"self-{kind}": np.asarray(kernel(a, None, kind)).tolist() for kind in ("nngp", "ntk")}
    return {"net": "infinite-mlp" if dense else "infinite-conv-net", "seed": seed, "case": case, **values}


def main():
    cases = [*((case, True) for case in DENSE), *((case, False) for case in CONV)]
    golden = [made(case, seed, dense) for seed, (case, dense) in enumerate(cases)]
    text = ",\n".join(json.dumps(entry) for entry in golden)
    (Path(__file__).parent / "golden.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
