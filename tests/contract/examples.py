"""Settings for registered classes that cannot be made without any: (axis, name) -> fields."""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("asset", "trained"): {"net": "mlp", "fit": {"name": "fit", "rule": "sgd", "steps": 3}},
    ("asset", "trajectories"): {"net": "mlp", "fit": {"name": "fit", "rule": "sgd", "epochs": 3}},
    ("augment", "beside"): {"augment": "dsa"},
    ("augment", "then"): {"augments": ["none", "dsa"]},
    ("budget", "per-class"): {"n": 2},
    ("budget", "ratio"): {"r": 0.5},
    ("budget", "total"): {"n": 6},
    ("data", "edge-free"): {"data": "karate"},
    ("data", "folder"): {"path": "somewhere"},
    ("data", "given"): {"fingerprint": "0" * 64},
    ("data", "given-graph"): {"fingerprint": "0" * 64},
    ("data", "tu"): {"of": "ENZYMES"},
    ("data", "npz"): {"path": "somewhere.npz"},
    ("data", "private"): {"data": "digits", "epsilon": 8.0},
    ("data", "pyg"): {"path": "somewhere.npz"},
    ("data", "shadow"): {"data": "digits", "shadows": 16, "number": 3},
    ("learn", "fit"): {"rule": {"name": "sgd", "momentum": 0.9}, "epochs": 3, "augment": "none"},
    ("net", "custom"): {"path": "package.module:function"},
    ("net", "ensemble"): {"net": "kernel-conv-net", "n": 2},
    ("net", "torchvision"): {"model": "resnet18"},
    ("net", "xavier"): {"net": "mlp"},
    ("objective", "bilevel"): {"fit": {"name": "fit", "rule": "sgd", "steps": 3}},
    ("objective", "kernel-orthogonal"): {"kernel": "lite-gntk"},
    ("objective", "kernel-ridge"): {"kernel": "lite-gntk", "n": 8, "m": 4, "target_loss": "centred-error"},
    ("objective", "matching"): {"statistic": "gradient", "distance": "row-cosine", "pairing": "class-wise"},
    ("objective", "released"): {"statistic": "clipped-feature", "distance": "squared-error", "net": "random-fourier"},
    ("objective", "sum"): {
        "objectives": [
            {"name": "matching", "statistic": "gradient", "distance": "row-cosine", "pairing": "class-wise"},
            {"name": "matching", "statistic": "mean-feature", "distance": "squared-error", "pairing": "class-wise"},
        ],
        "weights": [1.0, 0.5],
    },
    ("objective", "trajectory"): {"fit": {"name": "fit", "rule": "sgd", "steps": 3, "lr": "learned"}},
    ("pool", "experts"): {
        "experts": {"name": "trajectories", "net": "mlp", "fit": {"name": "fit", "rule": "sgd", "epochs": 3}},
        "below": 1,
    },
    ("pool", "fresh"): {"net": {"name": "conv-net", "depth": 2}},
    ("rule", "norm-clipped"): {"rule": "adam"},
    ("pool", "online"): {"net": "mlp", "inner": {"name": "fit", "rule": "sgd", "steps": 3}, "most": 5},
    ("statistic", "edge-free"): {"statistic": "gradient"},
    ("statistic", "joined"): {"statistic": "gradient"},
    ("selection", "on-validation"): {"net": "mlp", "fit": {"name": "fit", "rule": "sgd", "steps": 3}},
    ("schedule", "constant"): {"at": 0.5},
    ("schedule", "cosine"): {"start": 0.5},
    ("schedule", "linear"): {"start": 0.5, "to": 0.1},
    ("schedule", "warm-cosine"): {"start": 0.5, "warm": 0.25},
    ("schedule", "drops"): {"start": 0.5, "at": [0.25, 0.5]},
}
