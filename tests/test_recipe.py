"""Recipes: defaults, file, options and overrides in that order; mistakes are told with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptify.errors import RecipeError, UsageError
from adaptify.recipe import check, dump_recipe, known_keys, recipe_type, resolve, write_recipe

GIVEN = {"model.checkpoint": "model.pt", "data.source": "digits"}


def written(tmp_path: Path, text: str) -> Path:
    """A recipe file with this text."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_later_sources_win(tmp_path: Path) -> None:
    file = written(tmp_path, "method: dgate\ntrain: {lr: 1.0, epochs: 3}\ngates: {pool: 2}\n")
    recipe = resolve(None, file=file, options={**GIVEN, "train.epochs": 4}, overrides={"train.epochs": 5})
    assert recipe.train.model_dump()["epochs"] == 5
    assert recipe.train.model_dump()["lr"] == 1.0
    assert recipe.gates.model_dump()["pool"] == 2
    assert recipe.run.seed == 0


def test_a_written_recipe_resolves_to_itself(tmp_path: Path) -> None:
    recipe = resolve("dgate", options={**GIVEN, "gates.sites": ["layer1"], "calibrate.max_macs": 0.6})
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert resolve(None, file=tmp_path / "recipe.yaml") == recipe
    assert "max_macs: 0.6" in dump_recipe(recipe)


def test_without_a_request_half_a_point_may_be_lost() -> None:
    assert resolve("dgate", options=GIVEN).calibrate.request() == {"max_drop": 0.5}
    assert resolve("dgate", options=GIVEN, overrides={"calibrate.max_macs": 0.5}).calibrate.request() == {
        "max_macs": 0.5
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "method: dgate\ntrain:\n  lrr: 0.1\n",
            r"recipe\.yaml:3:3 train\.lrr: unknown key; did you mean 'train\.lr'\?",
        ),
        ("method: dgate\ngates:\n  pool: many\n", r"recipe\.yaml:3:3 gates\.pool: .*integer.*'many'"),
        ("method: dgate\nrun:\n  batch_size: 0\n", r"recipe\.yaml:3:3 run\.batch_size: .*greater than 0"),
        ("method: dgate\ngates: 3\n", r"recipe\.yaml:2:1 gates"),
        ("method: dgate\ncalibrate: {max_drop: 1, thresholds: [1, 2]}\n", "thresholds by hand"),
        ("version: 2\nmethod: dgate\n", r"recipe\.yaml:1:1 version"),
        ("method: [dgate\n", r"recipe\.yaml:2:1"),
        ("just words\n", "holds no sections"),
        ("method: dgat\n", r"recipe\.yaml:1:1 unknown method 'dgat'; did you mean 'dgate'"),
        ("method: dgate\ntrain: {lr: !!int fast}\n", r"recipe\.yaml: not YAML text"),
    ],
    ids=[
        "unknown key",
        "wrong type",
        "out of range",
        "no section",
        "two requests",
        "newer",
        "not yaml",
        "text",
        "unknown method",
        "no number",
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(None, file=written(tmp_path, text), options=GIVEN)


def test_missing_data_is_asked_for() -> None:
    with pytest.raises(RecipeError, match=r"data\.source is missing") as caught:
        resolve("dgate", options={"model.checkpoint": "model.pt"})
    assert "--data" in caught.value.hint


def test_an_override_of_an_unknown_key_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.learning_rate: unknown key"):
        resolve("dgate", options=GIVEN, overrides={"train.learning_rate": 1})
    with pytest.raises(RecipeError, match=r"method\.name: unknown key"):
        resolve("dgate", options=GIVEN, overrides={"method.name": 1})


@pytest.mark.parametrize(
    ("key", "value"), [("train.weights", "1,1"), ("gates.temperature", "0.5,0.5"), ("gates.sites", "a,b")]
)
def test_lists_without_brackets_are_told_how_lists_are_written(key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=f"^{key}: ") as caught:
        resolve("boostnet", options=GIVEN, overrides={key: value})
    assert f"'{key}=[{value}]'" in str(caught.value.hint)


def test_unknown_methods_and_files() -> None:
    with pytest.raises(UsageError, match="unknown method 'dgat'; did you mean 'dgate'"):
        resolve("dgat", options=GIVEN)
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        resolve(None, file="nowhere.yaml", options=GIVEN)


def test_known_keys_are_dotted() -> None:
    keys = known_keys(recipe_type("dgate"))
    assert {"method", "data.source", "gates.pool", "train.lr", "calibrate.max_drop", "run.seed"} <= set(keys)


def test_a_recipe_is_checked_without_what_the_command_line_adds(tmp_path: Path) -> None:
    bare = check(written(tmp_path, "method: dgate\ndata: {holdout: 0.2}\n"), {"train.lr": 0.5})
    assert (bare.model.checkpoint, bare.data.source) == ("CKPT", "DATA")
    assert (bare.data.holdout, bare.train.model_dump()["lr"]) == (0.2, 0.5)
    full = check(written(tmp_path, "model: {checkpoint: a.pt}\ndata: {source: digits}\n"))
    assert (full.model.checkpoint, full.data.source) == ("a.pt", "digits")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  checkpoint: 3\n", r"recipe\.yaml:2:3 model\.checkpoint: .*string.*3"),
        ("data: digits\n", r"recipe\.yaml:1:1 data: .*'digits'"),
    ],
)
def test_checking_sees_what_a_file_says_of_checkpoint_and_data(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check(written(tmp_path, text))


def test_a_method_from_the_command_line_is_checked_like_any_other() -> None:
    with pytest.raises(UsageError, match="unknown method 'dgat'"):
        resolve("dgate", options=GIVEN, overrides={"method": "dgat"})
