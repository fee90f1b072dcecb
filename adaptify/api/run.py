"""What `retrofit` and `prune` give: a network, what was measured of it, and where both are."""

from __future__ import annotations

import os
import shutil
import weakref
from pathlib import Path

from adaptify import artifact
from adaptify.api.page import Page
from adaptify.assembly import Adapted
from adaptify.data import Data
from adaptify.errors import UsageError
from adaptify.models.session import Session, keep
from adaptify.pipeline import folder
from adaptify.reports.schema import Report
from adaptify.text import percent, points

_ARTIFACT = ".safetensors"
TEMPORARY = "adaptify-run-"
"""How the names of folders begin that are made for one run, and go with it."""


class Run:
    """A finished run. A notebook shows it as the page of its report.

    Args:
        path: Its run folder.
        report: What was measured.
        data: The images that it was given as loaders.

    Attributes:
        folder: The run folder; one that nobody asked for goes when nobody holds the run any more.
        report: What was measured, on the test images.
        data: The images that it was given as loaders.
    """

    def __init__(self, path: Path, report: Report, data: Data | None = None) -> None:
        self.folder = path
        self.report = report
        self.data = data
        self._model: Adapted | None = None
        keep(report.model.architecture, self)
        if path.parent.name.startswith(TEMPORARY):
            weakref.finalize(self, shutil.rmtree, path.parent, ignore_errors=True)

    @property
    def model(self) -> Adapted:
        """The network, an `nn.Module` in evaluation mode on the CPU; the same object each time."""
        if self._model is None:
            self._model = artifact.load(self.folder, trust_code=True)
            keep(self.report.model.architecture, self._model)
        return self._model

    @property
    def page(self) -> Page:
        """The report as a page."""
        return Page(self.report)

    def renew(self, report: Report) -> None:
        """Take the network and the report that the run folder has by now."""
        self.report = report
        self._model = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the network (`NAME.safetensors`), or the whole run folder (any other name).

        Raises:
            UsageError: The folder is there already, or no other process could build the network.
            AdaptifyError: It cannot be written.
        """
        target = Path(path)
        if target.suffix == _ARTIFACT:
            save(self.model, target)
            return target
        refuse_session(self.model)
        if target.exists():
            raise UsageError(f"{target} is there already", "Choose another name.")
        with folder.new_run(target.name, output=target) as run:
            shutil.copytree(self.folder, run.work, dirs_exist_ok=True)
        return target

    def _repr_html_(self) -> str:
        return self.page._repr_html_()

    def __str__(self) -> str:
        return str(self.page)

    def __repr__(self) -> str:
        report = self.report
        told = f"{percent(report.after.kept)} of the MACs"
        if report.measured:
            before, after = report.accuracies
            told += f", {percent(after, 2)} accuracy ({points(after - before)} points)"
        return f"<{report.method.name}: {told}>"


def save(model: Adapted, path: str | os.PathLike[str]) -> None:
    """Write `model` with its plan as one `.safetensors` file, then open the file and compare.

    Args:
        model: What `retrofit`, `prune`, `place` or `load` gave.
        path: The file; it appears whole or not at all.

    Raises:
        UsageError: Nothing says how to build the network again.
        TargetError: What was read back is not what was written.
        AdaptifyError: The file cannot be written.
    """
    refuse_session(model)
    artifact.save(model, path)


def refuse_session(model: Adapted) -> None:
    """Refuse to write a network that no other process could build.

    Raises:
        UsageError: It was made of a module without a name.
    """
    plan = model.plan
    if plan is not None and plan.architecture["name"].startswith(f"{Session.prefix}:"):
        refuse_unnamed()


def refuse_unnamed() -> None:
    """Say that a file needs to know what builds the network.

    Raises:
        UsageError: Always.
    """
    raise UsageError(
        "a file holds tensors and a plan, and nothing says how to build this module again",
        "Name what builds it where the network is handed over: arch='package.module:callable', arch_kwargs; "
        "or write it as a file that needs no code: adaptify.export(model, 'model.pt2').",
    )
