"""The options that commands share, so that every command says the same thing about them.

Use them as annotations; the default stands in the command's signature:

    def evaluate(target: Target = None, data: Data = None, json: Json = False) -> None: ...

Options that a recipe knows too are `None` unless they are given, so that they leave a recipe alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from adaptify.cli import completion

# --- What to work on ---

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CKPT",
        show_default=False,
        help="Checkpoint of the pretrained network: .pt .pth .th .bin .ckpt .safetensors; or a run folder.",
        autocompletion=completion.runs,
    ),
]
RecipeCheckpoint = Annotated[
    str | None,
    typer.Argument(
        metavar="CKPT",
        show_default=False,
        help="Checkpoint of the pretrained network: .pt .pth .th .bin .ckpt .safetensors. The name of "
        "an architecture instead (adaptify:msdnet_cifar100_anytime) starts from random weights. "
        "Without one: the recipe's.",
        autocompletion=completion.runs,
    ),
]
Target = Annotated[
    Path | None,
    typer.Argument(
        metavar="TARGET",
        show_default=False,
        help="Run folder, artifact (model.safetensors) or plain checkpoint. "
        "Without one: the newest run in runs/.",
        autocompletion=completion.runs,
    ),
]
Run = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        show_default=False,
        help="Run folder. Without one: the newest in runs/.",
        autocompletion=completion.runs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        show_default=False,
        help="Settings that override recipe and options, as in train.lr=0.01.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        help="Architecture: torchvision:resnet50, timm:NAME or package.module:callable. "
        "Without it: found by the tensors' names and shapes.",
        autocompletion=completion.architectures,
    ),
]
ArchKwargs = Annotated[
    str | None,
    typer.Option(
        "--arch-kwargs", metavar="JSON", help="Arguments of the architecture, as in '{\"num_classes\": 10}'."
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        "--trust-code",
        help="Load whole pickled modules, and networks built by code of your own. "
        "This runs code that the file names: only if you trust it.",
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Load networks built by code of your own. This runs that code: only if you trust it.",
    ),
]

# --- Data ---

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="FOLDER (with train/ and val/, in them a folder per class), cifar10:FOLDER, cifar100:FOLDER, "
        "digits or fake:N.",
        autocompletion=completion.data,
    ),
]
ValSplit = Annotated[
    float | None,
    typer.Option(
        "--val-split",
        metavar="FRACTION",
        min=0.0,
        max=1.0,
        help="Part of a folder without train/ and val/ on which results are reported. Default: 0.2.",
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(
        "--holdout",
        metavar="FRACTION",
        min=0.0,
        max=1.0,
        help="Part of the training images that is kept out of training, to choose the operating point on. "
        "Default: 0.1.",
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option("--input-size", metavar="SIZE", help="Height and width of the input: 224, or 192x256."),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean", metavar="M,M,M", help="Mean per channel that the input is normalised with, in [0, 1]."
    ),
]
Std = Annotated[
    str | None,
    typer.Option("--std", metavar="S,S,S", help="Standard deviation per channel, in [0, 1]."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", min=1, help="Images per batch: less takes less memory. Default: 256."
    ),
]
AutoBatch = Annotated[
    bool,
    typer.Option(
        "--auto-batch", help="Take fewer images at a time, and say so, where the memory does not suffice."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", min=0, help="Processes that decode images. Without it: by the cores."
    ),
]
SkipCorrupt = Annotated[
    bool, typer.Option("--skip-corrupt", help="Leave unreadable images out, instead of refusing the data.")
]

# --- Method and target ---

Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        metavar="METHOD",
        help="The method. Default: the recipe's, or dgate.",
        autocompletion=completion.methods,
    ),
]
PruneMethod = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        metavar="METHOD",
        help="The method. Default: the recipe's or the run's; of a checkpoint, gumbel with --data, and "
        "importance without.",
        autocompletion=completion.methods,
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="RECIPE",
        help="Settings to start from: a YAML file, as recipe.yaml in any run folder, or the name of a recipe "
        "that comes with adaptify, as dgate/resnet56_cifar10. Options come on top.",
        autocompletion=completion.recipes,
    ),
]
Sites = Annotated[
    str | None,
    typer.Option(
        "--sites",
        metavar="NAMES",
        help="Where gates go: names or globs with commas between, as `adaptify inspect` lists them.",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="POINTS",
        min=0.0,
        max=100.0,
        help="Lose at most this much top-1 accuracy, in percentage points (0.5: from 94.0% to 93.5%).",
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        "--confidence",
        metavar="PROBABILITY",
        min=0.0,
        max=1.0,
        help="Promise --max-drop for new images with this confidence, as 0.95; refused where the held-out "
        "images cannot show it.",
    ),
]
MaxMacs = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "--max-macs",
        metavar="BUDGET",
        help="Spend at most this on an image, on average: the fraction of the MACs to KEEP (0.6: from 4.09 G "
        "to 2.45 G), or MACs (45M).",
    ),
]
Rule = Annotated[
    Literal["search", "quota"] | None,
    typer.Option(
        "--rule",
        help="How thresholds are looked for: by a search over all of them, or by giving each exit its share "
        "of the images (budgeted batch). Default: search.",
    ),
]
Thresholds = Annotated[
    str | None,
    typer.Option(
        "--thresholds",
        metavar="T,T,...",
        help="Thresholds by hand, one per exit; 'never' closes an exit, and at 'always' everything leaves.",
    ),
]

Budgets = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="B,B,...",
        help="Budgets for a sample, on average: fractions of the MACs to KEEP (0.3,0.5), or MACs (45M).",
    ),
]

# --- Running ---

Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Run folder to write. Without it: runs/<model>-<method>-NNN."
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N. Default: auto."),
]
_SEED = typer.Option("--seed", metavar="N", min=0, help="Same seed, same result: splits, shuffling, weights.")
Seed = Annotated[int, _SEED]
RecipeSeed = Annotated[int | None, _SEED]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with an unfinished run: the folder that is named, or the newest in runs/. It keeps the "
        "settings that it began with.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done (sites, costs, settings), and do no work.")
]

# --- Talking ---

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON value on stdout; everything else goes to stderr.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, metavar="", show_default=False, help="Say more; -vv with tracebacks."
    ),
]
