from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adaptify import recipe_library
from adaptify.assembly import assemble
from adaptify.cli.main import main
from adaptify.errors import RecipeError
from adaptify.graph.cost import CostModel
from adaptify.graph.trace import trace
from adaptify.models.registry import resolve as resolve_architecture
from adaptify.pipeline.prepare import make_gating_method
from adaptify.plan import BoostExits, PlaceExit
from adaptify.recipe import check
from adaptify.recipe_library import FOLDER, Listed, find_recipe, list_recipes, recipe_names
from adaptify.runtime.adaptive import AdaptiveModel

FILES = sorted(FOLDER.rglob("*.yaml"))
# Of one run; those of several stages have tests of their own.
SINGLE = [name for name in recipe_names() if not name.startswith("stages/")]


def test_there_are_recipes_and_each_has_a_name() -> None:
    assert {"dgate/resnet20_cifar10", "dgate/resnet56_cifar10"} <= set(recipe_names())
    assert [FOLDER / f"{name}.yaml" for name in recipe_names()] == FILES


@pytest.mark.parametrize("name", SINGLE)
def test_recipe_is_valid_and_for_the_method_of_its_folder(name: str) -> None:
    assert check(find_recipe(name)).method == name.partition("/")[0]


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_opens_with_the_command_that_runs_it_and_what_to_expect(name: str) -> None:
    lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
    comment = [line for line in lines[: lines.index("version: 1")] if line.startswith("#")]
    commands = [line.split() for line in comment if line.startswith("#   adaptify ")]
    assert len(commands) == 1
    words = commands[0]
    assert words[2] == ("prune" if "prune:" in lines else "retrofit")
    assert words[words.index("--recipe") + 1] == name
    assert "--data" in words or "data:" in lines  # nothing that is needed is missing
    assert any("measured" in line.lower() for line in comment)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "ranet" in name else ()) for name in SINGLE]
)
def test_the_gates_of_a_recipe_have_a_place_in_its_network(name: str) -> None:
    recipe = check(find_recipe(name))
    assert recipe.model.arch is not None
    torch.manual_seed(0)
    architecture = resolve_architecture(recipe.model.arch, recipe.model.arch_kwargs)
    traced = trace(architecture.build().eval(), architecture.input.shape)
    model = AdaptiveModel(traced)
    steps = make_gating_method(recipe).place(traced, CostModel(traced), model.num_classes)
    wanted = recipe.gates.model_dump().get("sites")
    if wanted is not None:
        # What says how exits are added up has no site; there is at most one such step, the last.
        assert tuple(step.site for step in steps if isinstance(step, PlaceExit)) == wanted
        assert all(isinstance(step, BoostExits) for step in steps[len(wanted) :])
    made = assemble(traced, steps)
    if not model.exits:
        assert made.gate_parameters
        return
    # A network that has exits of its own needs no gates.
    assert isinstance(made, AdaptiveModel)
    assert made.gate_parameters == ()
    assert len(made.exits) == len(model.exits)
    assert made.boost == (0.5,) * len(made.exits)


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("dgate/resnet20_cifar10.yaml")
    own.parent.mkdir()
    own.touch()
    assert find_recipe("dgate/resnet20_cifar10.yaml") == own
    assert find_recipe("dgate/resnet20_cifar10") == FOLDER / own


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe("dgate/resnet56_cifar")
    assert caught.value.message == (
        "there is no recipe 'dgate/resnet56_cifar'; did you mean 'dgate/resnet56_cifar10'?"
    )
    assert "adaptify recipes ls" in caught.value.hint


@pytest.mark.parametrize("path", ["missing.yaml", "../recipe", "dgate", "."])
def test_names_do_not_leave_the_folder(path: str) -> None:
    with pytest.raises(RecipeError, match="there is no recipe"):
        find_recipe(path)


def test_recipes_are_found_wherever_the_package_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "method" / "model_data.yaml"
    file.parent.mkdir()
    file.write_text("# What it is for.\n# More.\nmethod: one\nmodel: {arch: small}\n")
    monkeypatch.setattr(recipe_library, "FOLDER", tmp_path)
    assert recipe_names() == ("method/model_data",)
    assert find_recipe("method/model_data") == file
    assert list_recipes() == [Listed("method/model_data", "one", "small", "What it is for.")]


def test_the_command_line_takes_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "digits.pt"
    torch.save(resolve_architecture("adaptify:digits_resnet").build().state_dict(), checkpoint)
    command = ["retrofit", str(checkpoint), "--dry-run", "--json", "--max-drop", "1", "--recipe"]
    assert main([*command, "dgate/digits_resnet_digits"]) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["data"]["source"] == "digits"
    assert recipe["calibrate"]["max_drop"] == 1  # options come on top
    assert main([*command, "dgate/digits"]) == 3
    assert "there is no recipe 'dgate/digits'" in capsys.readouterr().err
