"""`adaptify recipes`: the recipes that come with adaptify, what they can set, whether one is valid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptify.cli import completion
from adaptify.cli.group import make_group
from adaptify.cli.options import Force, Json

recipes = make_group()

Name = Annotated[
    Path,
    typer.Argument(
        metavar="NAME",
        show_default=False,
        help="A recipe that comes with adaptify, as `adaptify recipes ls` lists it, or a YAML file.",
        autocompletion=completion.recipes,
    ),
]


@recipes.callback(invoke_without_command=True)
def _recipes(context: typer.Context) -> None:
    """List, show, copy and check recipes, and all that they can set.

    A recipe is a YAML file that holds all settings of a run: `adaptify retrofit --recipe NAME`.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@recipes.command("ls")
def ls(json: Json = False) -> None:
    """List the recipes that come with adaptify.

    \b
    Examples:
      adaptify recipes ls
      adaptify recipes ls --json | jq '.[].name'
    """
    from dataclasses import asdict

    from rich.text import Text

    from adaptify.cli.console import Console
    from adaptify.recipe_library import list_recipes

    console = Console(json=json)
    listed = list_recipes()
    console.data([asdict(row) for row in listed])
    for row in listed:
        # Lines of their own: side by side they would not fit a terminal.
        head = Text.assemble((row.name, "bold"), f"  {row.method}, {row.model}", no_wrap=True)
        console.show(head, f"  {row.summary}")
    console.say("\nnext:\n  adaptify recipes show NAME\n  adaptify retrofit CKPT --recipe NAME --data FOLDER")


@recipes.command("show")
def show(name: Name) -> None:
    """Print a recipe, with what it is for and what was measured.

    \b
    Examples:
      adaptify recipes show dgate/resnet56_cifar10
    """
    from adaptify.recipe_library import find_recipe

    print(find_recipe(name).read_text(encoding="utf-8"), end="")


@recipes.command("reference")
def reference(
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD",
            show_default=False,
            help="Only the settings of this method. Without it: every setting of every method.",
            autocompletion=completion.methods,
        ),
    ] = None,
) -> None:
    """Print every setting that a recipe can have, as Markdown.

    Types, defaults and bounds come from the schemas that check recipes.

    \b
    Examples:
      adaptify recipes reference dgate
      adaptify recipes reference > recipes.md
    """
    from adaptify.cli import reference as work
    from adaptify.methods import method_names

    print(work.reference(method_names()) if method is None else work.method_part(method), end="")


@recipes.command("cp")
def cp(
    name: Name,
    destination: Annotated[
        Path | None,
        typer.Argument(
            metavar="DEST",
            show_default=False,
            help="File or folder to copy to. Without it: a file of the same name here.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Copy a recipe to a file of your own, to change it.

    \b
    Examples:
      adaptify recipes cp dgate/resnet56_cifar10
      adaptify recipes cp dgate/resnet56_cifar10 mine.yaml --force
    """
    from adaptify.cli.console import Console
    from adaptify.errors import UsageError
    from adaptify.files import write_text
    from adaptify.recipe_library import find_recipe

    source = find_recipe(name)
    target = destination or Path()
    if target.is_dir():
        target /= source.name
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", "Choose another name, or overwrite it with --force.")
    write_text(target, source.read_text(encoding="utf-8"))
    Console().say(f"recipe: {target}\nnext:\n  adaptify retrofit CKPT --recipe {target} --data FOLDER")


@recipes.command("validate")
def validate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE_OR_NAME|KEY=VALUE",
            show_default=False,
            help="Recipes, and settings that override theirs, as in train.lr=0.01.",
        ),
    ],
) -> None:
    """Check recipes, without a checkpoint or data.

    What does not fit the schema is told with its line and column, and the exit code is 3.

    \b
    Examples:
      adaptify recipes validate mine.yaml
      adaptify recipes validate dgate/resnet56_cifar10 train.epochs=40
    """
    from adaptify.errors import RecipeError, UsageError
    from adaptify.recipe import check
    from adaptify.recipe_library import find_recipe
    from adaptify.settings import parse_overrides
    from adaptify.stages import check_stages
    from adaptify.text import printable

    files = [word for word in words if "=" not in word or Path(word).exists()]
    if not files:
        raise UsageError("no recipe to check", "Name one: adaptify recipes validate FILE.")
    overrides = parse_overrides([word for word in words if word not in files])
    wrong = []
    for file in files:
        try:
            found = find_recipe(file)
            if check_stages(found, overrides) is None:
                check(found, overrides)
        except (RecipeError, UsageError) as error:  # an unknown method, too, makes a recipe invalid
            wrong.append(error)
        else:
            print(f"{printable(file)}: OK")
    if wrong:
        # Each has its hint behind it; this is what to do about all of them.
        raise RecipeError(
            "\n".join(map(str, wrong)), "`adaptify recipes show NAME` prints one that is valid to start from."
        )
