"""A report made by hand, with figures that fit together: three exits of a small residual network."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MACS = 125_485_696
EXITS = ("layer1", "layer2.3", "layer2")
COSTS = (44_000_000, 64_000_000, 85_000_000, MACS + 3_840)


def picture(colour: tuple[int, int, int]) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def sample_report(**changes: Any) -> dict[str, Any]:
    """Return the JSON value of a good report, with top-level parts replaced by `changes`."""
    counts = [[300 - 20 * c, 250, 150, 300 + 20 * c] for c in range(10)]
    per_exit = [list(row) for row in zip(*counts, strict=True)]
    samples = [sum(row) for row in per_exit]
    total = sum(samples)
    shares = [n / total for n in samples]
    mean = sum(s * c for s, c in zip(shares, COSTS, strict=True))
    accuracies = [(0.712, 0.992), (0.823, 0.981), (0.889, 0.964), (0.9437, 0.869)]
    names = (*EXITS, "output")
    report = {
        "format": "adaptify.report",
        "version": 1,
        "adaptify": "0.1.0",
        "created": "2025-03-04T12:30:00+00:00",
        "command": [
            "adaptify",
            "retrofit",
            "resnet56-4bfd9763.th",
            "--data",
            "my images",
            "--max-drop",
            "0.5",
        ],
        "model": {
            "architecture": "adaptify:cifar_resnet56",
            "kwargs": {"num_classes": 10},
            "checkpoint": "checkpoints/resnet56-4bfd9763.th",
            "sha256": "4bfd9763" * 8,
            "parameters": 853_018,
            "gate_parameters": 2_340,
            "input": [3, 32, 32],
        },
        "method": {"name": "dgate", "options": {"loss": "hinge", "l2": 0.0001, "epochs": 30}},
        "data": {
            "name": "cifar10",
            "classes": CLASSES,
            "train": 45_000,
            "holdout": 5_000,
            "test": total,
            "notes": ["holdout taken from train, the same part of each class"],
        },
        "before": {"accuracy": 0.9437, "macs": MACS},
        "after": {"accuracy": 0.9395, "macs": mean, "kept": mean / MACS},
        "calibration": {
            "split": "holdout",
            "samples": 5_000,
            "request": {"max_drop": 0.5},
            "accuracy": 0.9368,
            "base_accuracy": 0.9412,
        },
        "exits": [
            {
                "name": name,
                "threshold": None if name == "output" else 0.75 - 0.25 * i,
                "share": shares[i],
                "macs": COSTS[i],
                "share_macs": COSTS[i] / MACS,
                "accuracy_all": accuracies[i][0],
                "accuracy_left": accuracies[i][1],
                "samples": samples[i],
            }
            for i, name in enumerate(names)
        ],
        "macs_per_sample": {"mean": mean, "median": COSTS[1], "p95": COSTS[3]},
        "frontier": _frontier(mean),
        "layers": [
            {
                "name": f"layer{1 + i // 18}.{i % 18 // 2}.conv{1 + i % 2}",
                "type": "Conv2d",
                "shape": [16 << i // 18, 32 >> i // 18, 32 >> i // 18],
                "parameters": 2_304 << 2 * (i // 18),
                "macs": 2_359_296,
                "executed": (1.0, 0.79, 0.36)[i // 18],
            }
            for i in range(54)
        ],
        "classes_per_exit": per_exit,
        "examples": {
            "easy": [
                {
                    "image": picture((200, 30 * i, 90)),
                    "label": CLASSES[i],
                    "predicted": CLASSES[i],
                    "exit": "layer1",
                    "score": 2.5 - i / 10,
                }
                for i in range(8)
            ],
            "hard": [
                {
                    "image": picture((40, 90, 30 * i)),
                    "label": CLASSES[i],
                    "predicted": CLASSES[i ^ 1 if i % 3 == 0 else i],
                    "exit": "output",
                    "score": None,
                }
                for i in range(8)
            ],
        },
        "timing": {"retrofit_s": 131.2, "forward_pass_s": 104.7, "peak_memory_bytes": 1_288_490_188},
        "environment": {
            "versions": {"python": "3.11.2", "torch": "2.15.0", "timm": None},
            "memory_bytes": 25_769_803_776,
        },
        "notes": ["took 'state_dict'; removed prefix 'module.'"],
    }
    return report | changes


def _frontier(mean: float) -> list[dict[str, Any]]:
    points = []
    for i in range(41):
        kept = 0.36 + 0.64 * i / 40
        points.append(
            {
                "thresholds": [1.5 * i / 40 - 0.4, 0.5, None if i > 30 else 0.3],
                "accuracy": 0.9412 - 0.05 * ((1 - kept) / 0.64) ** 3.2,
                "macs": kept * MACS,
                "exit_shares": [1 - kept, 0.0, 0.0, kept],
            }
        )
    chosen = {
        "thresholds": [0.75, 0.5, 0.25],
        "accuracy": 0.9368,
        "macs": mean * 1.004,
        "exit_shares": [0.25, 0.25, 0.2, 0.3],
    }
    return sorted(
        [p for p in points if abs(p["macs"] - mean) > 0.01 * MACS] + [chosen], key=lambda p: p["macs"]
    )
