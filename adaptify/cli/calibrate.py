"""`adaptify calibrate`: choose another operating point of a finished run."""

from __future__ import annotations

from adaptify.cli.options import (
    Confidence,
    DryRun,
    Json,
    MaxDrop,
    MaxMacs,
    Quiet,
    Rule,
    Run,
    Thresholds,
    TrustCode,
    Verbose,
)


def calibrate(
    run: Run = None,
    max_drop: MaxDrop = None,
    confidence: Confidence = None,
    max_macs: MaxMacs = None,
    rule: Rule = None,
    thresholds: Thresholds = None,
    dry_run: DryRun = False,
    trust_code: TrustCode = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Choose again between accuracy and compute, without training.

    The thresholds are chosen from the scores that the exits gave on the held-out images; the network is
    not run. Model, recipe and report of the run are brought up to date.

    Gates that look at images have one threshold for all of them: it is chosen among those that the run tried
    on the held-out images, and the network runs once over the test images for the report.

    With --confidence, the drop is promised for new images: half of the held-out images choose thresholds,
    the other half tests them.

    \b
    Examples:
      adaptify calibrate --max-drop 1.0
      adaptify calibrate --max-drop 5 --confidence 0.9
      adaptify calibrate runs/resnet56-dgate-001 --budget 0.6 --dry-run
      adaptify calibrate --budget 45M --rule quota
      adaptify calibrate --thresholds 1.2,never
    """
    from adaptify.cli import values
    from adaptify.cli.console import Console
    from adaptify.cli.runs import find_run
    from adaptify.errors import UsageError

    console = Console(json=json, quiet=quiet, verbose=verbose)
    request = values.request_of(
        max_drop=max_drop, budget=max_macs, by_hand=thresholds, confidence=confidence, rule=rule
    )
    if not {"max_drop", "max_macs", "thresholds"} & set(request):
        raise UsageError(
            "nothing to choose the thresholds by",
            "Give --max-drop 0.5 (points of accuracy to lose at most), --budget 0.6 (part of the MACs to "
            "keep at most)\nor --thresholds 1.2,never (one per exit).",
        )
    found = find_run(run, holding="report.json")

    # Not before the arguments are known to be right: what comes with these takes seconds to import.
    from adaptify.cli.tables import changes
    from adaptify.pipeline import folder
    from adaptify.pipeline.calibrate import calibrate as work

    if run is None:
        console.say(f"run: {found}")
    done = work(found, request, dry_run=dry_run, trust_code=trust_code, progress=console)
    console.data({**done.report.to_json(), "run": str(found)})
    console.show(*changes(done.before, done.report))
    if dry_run:
        console.say("dry run: the run is as it was")
    else:
        console.say(f"page: {found / folder.PAGE}")
