"""What tests of commands share beside their fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = Path("runs/digits_resnet-dgate-001")


@dataclass(frozen=True)
class Said:
    """What a command left behind: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as the one JSON value it must be."""
        return json.loads(self.out)


Cli = Callable[..., Said]


def read_report(run: Path) -> Any:
    """Return the report of a run as JSON."""
    return json.loads((run / "report.json").read_text())


def target(**given: Any) -> dict[str, Any]:
    """Return the section `calibrate` of a recipe in which `given` was asked for."""
    unasked = {"max_drop": None, "max_macs": None, "thresholds": None, "confidence": None, "rule": "search"}
    return {**unasked, **given}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
