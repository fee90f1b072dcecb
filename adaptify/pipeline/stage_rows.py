"""The part of a report that says what each stage did."""

from __future__ import annotations

from adaptify.reports.schema import After, Before, Report, Stage


def stage_of(command: str, folder: str, report: Report) -> Stage:
    """The row of a stage that made a network, from its report."""
    return Stage(
        command=command,
        method=report.method.name,
        folder=folder,
        before=report.before,
        after=report.after,
    )


def choice_after(stage: Stage, folder: str, report: Report) -> Stage:
    """The row of another operating point for the network that `stage` made."""
    given = stage.after
    before = Before(accuracy=given.accuracy, macs=round(given.macs))
    after = After(accuracy=report.after.accuracy, macs=report.after.macs, kept=report.after.macs / given.macs)
    return Stage(command="calibrate", folder=folder, before=before, after=after)


def recalibrated(before: Report, report: Report) -> Report:
    """Carry the stages of a run over to its new report, with the new choice as the last of them."""
    if not before.stages:
        return report
    *earlier, last = before.stages
    if last.command == "calibrate":
        stages = [*earlier, choice_after(earlier[-1], last.folder, report)]
    else:
        stages = [*before.stages, choice_after(last, last.folder, report)]
    return report.model_copy(update={"stages": stages})
