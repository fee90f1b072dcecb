"""Reports of networks with learned gates, made by hand: figures that fit together."""

from __future__ import annotations

import math
from typing import Any

from report_sample import CLASSES, MACS, picture, sample_report

_OPENING = (120, 140, 160, 180, 240, 330, 520, 900, 2_240, 52_800)


def training_part(epochs: int = 30, *, kept: bool = True, chosen: int | None = None) -> dict[str, Any]:
    """Return a training that closes gates from the second epoch on."""
    rows = []
    for epoch in range(1, epochs + 1):
        step = epoch / epochs
        task = 0.12 + 0.9 * math.exp(-4 * step) + 0.01 * math.sin(7 * epoch)
        budget = 0.6 * math.exp(-5 * step)
        rows.append(
            {
                "epoch": epoch,
                "lr": 0.05 * (1 + math.cos(math.pi * step)) + 1e-5,
                "loss": task + budget,
                "terms": {"task": task, "budget": budget},
                "train_accuracy": 0.96 - 0.3 * math.exp(-4 * step),
                "holdout_accuracy": 0.931 - 0.22 * math.exp(-4.5 * step) + 0.003 * math.sin(5 * epoch),
                "kept": 0.55 + 0.45 * math.exp(-4 * step) if kept else None,
                "images_per_second": 2412.7 + 30 * math.sin(epoch),
            }
        )
    return {
        "options": {"optimizer": "sgd", "epochs": epochs, "target": 0.55, "schedule": {"warmup": 2}},
        "epochs": rows,
        "chosen": max(epochs - 2, 1) if chosen is None else chosen,
    }


def gating_part(blocks: int = 27, epochs: int = 30, **changes: Any) -> dict[str, Any]:
    """Return data-dependent channel gates at every block, and at the input of each third one."""
    sites, ends = [], []
    for block in range(blocks):
        stage = 3 * block // blocks
        name = f"layer{stage + 1}.{block - math.ceil(stage * blocks / 3)}"
        ends.append(0.35 + 0.4 * abs(math.sin(block)) * (0.5 + 0.5 * stage))
        sites.append(_site(name, "channels", 16 << stage, ends[-1]))
        if block % 3 == 2:
            ends.append(0.8)
            sites.append(_site(name, "input", 16 << stage, ends[-1]))
    activity = []
    for epoch in range(1, epochs + 1):
        now = [1 - (1 - end) * (1 - math.exp(-4 * epoch / epochs)) for end in ends]
        activity.append({"epoch": epoch, "open": sum(now) / len(now), "sites": now})
    sweep = []
    for i in range(1, 20):
        tau, lost = i / 20, 0.0035 * math.exp(max(i - 8, 0) / 2.6)
        sweep.append(_mode("threshold", tau, 0.9437 - lost, 0.78 - 0.5 * tau + 0.1 * tau**2))
    part = {
        "data_dependent": True,
        "granularity": "channel",
        "tau": 0.5,
        "histogram": [41_200, 1_310, 420, 260, 190, 150, 140, 120, 130, 110, *_OPENING],
        "polarised": 0.925,
        "sites": sites,
        "activity": activity,
        "modes": [
            sweep[9],
            _mode("always-on", None, 0.9421, 1.0113),
            _mode("stochastic", None, 0.9341, 0.566, runs=5, accuracy_std=0.0011, kept_std=0.0007),
            _mode("ensemble", None, 0.9402, 2.83, runs=5),
        ],
        "sweep": sweep,
        "gate_macs": 1_418_240,
    }
    return part | changes


def samples_part(**changes: Any) -> dict[str, Any]:
    """Return what gates make of ten thousand images of ten classes."""
    bell = [math.exp(-(((i - 12) / 6) ** 2)) for i in range(30)]
    by_use = [
        {"name": name, "samples": 1000, "accuracy": 0.97 - 0.01 * i, "kept": 0.5 + 0.012 * i}
        for i, name in enumerate(CLASSES)
    ]
    rows = [[(0.5 + 0.5 * math.sin(c + 3 * g)) if (c + g) % 3 else 0.0 for g in range(50)] for c in range(10)]
    images = [
        {"image": picture((20 * i, 90, 200)), "label": CLASSES[i], "predicted": CLASSES[i], "kept": 0.4}
        for i in range(6)
    ]
    part = {
        "macs": {"low": 0.4 * MACS, "high": 0.7 * MACS, "counts": [round(900 * share) for share in bell]},
        "classes": by_use,
        "examples": {
            "easy": images,
            "hard": [{**images[0], "predicted": CLASSES[3], "kept": 0.6875}, *images[1:]],
        },
        "channels": [
            {"name": name, "position": "channels", "gates": 64, "classes": CLASSES, "open": rows}
            for name in ("layer3.7.conv1", "layer3.8.conv1")
        ],
        "blocks": [
            {"name": f"layer{1 + i // 3}.{i % 3}", "executed": 1 - i / 12, "gradient": 0.002 / (1 + i % 3)}
            for i in range(9)
        ],
        "gradient_images": 512,
    }
    return part | changes


def gated_report(**changes: Any) -> dict[str, Any]:
    """Return the JSON value of a report of conditional computation, with its parts replaced by `changes`."""
    gating = gating_part()
    policy = gating["modes"][0]
    report = sample_report(
        method={"name": "channel_gates", "options": {"target": 0.55, "granularity": "channel"}},
        after={"accuracy": policy["accuracy"], "macs": policy["kept"] * MACS, "kept": policy["kept"]},
        macs_per_sample={"mean": policy["kept"] * MACS, "median": 0.54 * MACS, "p95": 0.66 * MACS},
        training=training_part(),
        gating=gating,
    )
    for key in ("exits", "calibration", "frontier", "classes_per_exit", "examples"):
        del report[key]
    return report | changes


def _site(name: str, position: str, channels: int, share: float) -> dict[str, Any]:
    return {"name": name, "position": position, "gates": channels, "channels": channels, "open": share}


def _mode(name: str, tau: float | None, accuracy: float, kept: float, **others: Any) -> dict[str, Any]:
    return {"name": name, "tau": tau, "accuracy": accuracy, "kept": kept, **others}
