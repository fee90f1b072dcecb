"""Reports made by hand of networks whose exits were trained together with them."""

from __future__ import annotations

from typing import Any

from report_sample import CLASSES, MACS, picture, sample_report


def jointly_trained(exits: int = 10, epochs: int = 12, kind: str = "valid", **changes: Any) -> dict[str, Any]:
    """Return a report of a network with `exits` exits, the output among them, each with a loss of its own."""
    names = [f"classifier.{index}" for index in range(exits - 1)] + ["output"]
    report = sample_report()
    macs = [MACS * (index + 1) / exits for index in range(exits)]
    accuracies = [0.62 + 0.12 * (1 - 0.7**index) for index in range(exits)]
    share = 1 / exits
    report["exits"] = [
        {
            "name": name,
            "threshold": None if name == "output" else 0.9,
            "share": share,
            "macs": macs[index],
            "share_macs": macs[index] / MACS,
            "accuracy_all": accuracies[index],
            "accuracy_left": accuracies[index],
            "samples": 1000,
        }
        for index, name in enumerate(names)
    ]
    report["anytime"] = [
        {"accuracy": accuracy, "macs": cost + 1000} for accuracy, cost in zip(accuracies, macs, strict=True)
    ]
    held_out = [0.6 + 0.15 * index / 20 for index in range(21)]
    report["frontier"] = [
        {
            "thresholds": [index / 20] * (exits - 1),
            "accuracy": accuracy,
            "macs": MACS * (0.1 + 0.9 * index / 20),
            "exit_shares": [share] * exits,
        }
        for index, accuracy in enumerate(held_out)
    ]
    report["budgeted"] = [
        {"accuracy": point["accuracy"] + 0.011, "macs": point["macs"] * 0.99} for point in report["frontier"]
    ]
    report["classes_per_exit"] = [[100] * len(CLASSES)] * exits
    report["before"]["accuracy"], report["after"] = 0.1, {"accuracy": 0.75, "macs": MACS / 2, "kept": 0.5}
    report["examples"]["classes"] = [same_class(names, label) for label in CLASSES[:2]]
    report["training"] = {
        "options": {"epochs": epochs},
        "chosen": epochs - 1,
        "epochs": [_epoch(epoch, names, kind) for epoch in range(epochs)],
    }
    return report | changes


def same_class(names: list[str], label: str) -> dict[str, Any]:
    """Return images of one class that left at the first exit and at the last."""
    seen = {"label": label, "predicted": label, "score": 0.9}
    left = [
        seen | {"image": picture((90 * index, 40, 90)), "exit": name}
        for index, name in enumerate((names[0], names[-1]))
    ]
    return {"name": label, "first": [left[0]], "last": [left[1], left[1] | {"predicted": "truck"}]}


def _epoch(epoch: int, names: list[str], kind: str) -> dict[str, Any]:
    terms = {name: (2.3 - 0.08 * place) * 0.8**epoch for place, name in enumerate(names)}
    return {
        "epoch": epoch,
        "lr": 0.1,
        "loss": sum(terms.values()),
        "terms": terms,
        "train_accuracy": 1 - 0.6 * 0.8**epoch,
        "holdout_accuracy": 1 - 0.5 * 0.8**epoch,
        "figures": {f"{kind}.{name}": 0.9 - 0.01 * place * epoch / 2 for place, name in enumerate(names)},
    }
