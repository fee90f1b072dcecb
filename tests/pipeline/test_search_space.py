"""What a search may choose from, as it is typed."""

from __future__ import annotations

from typing import Any

import pytest

from adaptify.errors import RecipeError, UsageError
from adaptify.pipeline.search_space import Choices, Range, parse_space
from adaptify.pipeline.sweep_plan import plan_search
from adaptify.recipe import recipe_type

OPTIONS = {"model.checkpoint": "model.pth", "data.source": "digits"}


@pytest.mark.parametrize(
    ("word", "found", "told"),
    [
        ("train.lr=1e-4..1e-1:log", Range(1e-4, 0.1, True, False), "from 0.0001 to 0.1, on a log scale"),
        ("train.lr=1..10", Range(1, 10, False, False), "from 1 to 10"),
        ("train.epochs=5..20", Range(5, 20, False, True), "whole numbers from 5 to 20"),
        ("calibrate.max_drop=-1..2.5", Range(-1, 2.5, False, False), "from -1 to 2.5"),
        ("gates.pool=1,2,null", Choices((1, 2, None)), "one of 1, 2, None"),
        (
            "gates.loss=hinge,cross_entropy",
            Choices(("hinge", "cross_entropy")),
            "one of hinge, cross_entropy",
        ),
        ("gates.sites=[a..b],[c]", Choices((["a..b"], ["c"])), "one of ['a..b'], ['c']"),
    ],
)
def test_ranges_and_choices(word: str, found: Range | Choices, told: str) -> None:
    key = word.partition("=")[0]
    assert parse_space([word], recipe_type("dgate")) == {key: found}
    assert str(found) == told
    assert all(found.holds(value) for value in found.edges)


def test_a_range_of_whole_numbers_holds_no_fractions() -> None:
    assert [Range(1, 8, False, True).holds(value) for value in (1, 8, 9, 2.5, "2", None)] == [
        *[True] * 2,
        *[False] * 4,
    ]
    assert Range(0.5, 1, False, False).holds(0.75)
    assert not Choices((1, 2)).holds(3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.lrr=1..2"], "train.lrr: unknown key; did you mean 'train.lr'?"),
        (["run.seed=1,2,3"], "run.seed: unknown key"),
        (["data.holdout=0.1..0.5"], "data.holdout: unknown key"),
        (["train.lr"], "--search 'train.lr' says nothing to choose from"),
        (["train.lr="], "--search 'train.lr=' says nothing to choose from"),
        (["train.lr=1"], "train.lr: '1' leaves nothing to choose"),
        (["train.lr=1..1"], "train.lr: '1..1' leaves nothing to choose"),
        (["train.lr=2..1"], "train.lr: '2..1' leaves nothing to choose"),
        (["train.lr=1..x"], "train.lr: '1..x' is no range of numbers"),
        (["train.lr=1..2..3"], "train.lr: '1..2..3' is no range of numbers"),
        (["train.lr=1...inf"], "train.lr: '1...inf' is no range of numbers"),
        (["train.lr=true..2"], "train.lr: 'true..2' is no range of numbers"),
        (["train.lr=1..2:lin"], "train.lr: '1..2:lin' is no range of numbers"),
        (["train.lr=1..2:log2"], "train.lr: '1..2:log2' is no range of numbers"),
        (["train.lr=0..1:log"], "train.lr: a log scale has no 0"),
        (["train.epochs=1..2.5"], "train.epochs: '1..2.5' has fractions, and it is a whole number"),
        (["gates.pool=1,2,1"], "gates.pool: 1 is there twice"),
        (["gates.pool=1,[2"], "gates.pool: cannot read the value"),
        (["train.lr=1..2", "train.lr=3,4"], "--search has train.lr twice"),
    ],
)
def test_what_is_no_space_is_told(words: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as raised:
        parse_space(words, recipe_type("dgate"))
    assert raised.value.message.startswith(told)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("method", "words", "overrides", "told"),
    [
        ("dgate", ["train.lr=-1..1"], {}, "train.lr: input should be greater than 0, got -1"),
        ("dgate", ["gates.pool=1,2,17"], {}, "gates.pool: input should be less than or equal to 16"),
        ("dgate", ["gates.loss=hinge,hing"], {}, "gates.loss: input should be 'hinge' or 'cross_entropy'"),
        ("dgate", ["train.lr=1..2"], {"dgate.train.lr": 1}, "train.lr is both set and searched"),
        ("dgat", ["train.lr=1..2"], {}, "unknown method 'dgat'"),
        ("importance", ["prune.round_to=1,4"], {}, "importance prunes to a target, and there is none"),
        ("importance", ["prune.target=0.4..0.8"], {}, "importance looks at no held-out images"),
        (
            "importance",
            ["prune.target=0.4..0.8", "prune.finetune=0..2"],
            {},
            "importance looks at no held-out images",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_any_work(
    method: str, words: list[str], overrides: dict[str, Any], told: str
) -> None:
    with pytest.raises((RecipeError, UsageError)) as raised:
        plan_search(method, None, words, 5, OPTIONS, overrides)
    assert raised.value.message.startswith(told)
    assert raised.value.hint


def test_a_target_is_for_methods_that_have_one() -> None:
    words = ["train.lr=1e-3..1e-1:log"]
    search, common = plan_search("gumbel", 0.6, words, 5, OPTIONS, {"train.epochs": 3})
    assert (search.trials, search.words, common.command) == (5, tuple(words), "retrofit")
    assert common.recipe.train.model_dump()["target"] == 0.6
    assert common.recipe.train.model_dump()["epochs"] == 3
    _, pruned = plan_search("importance", 0.5, ["prune.finetune=1..3"], 5, OPTIONS)
    assert (pruned.command, pruned.recipe.prune.target) == ("prune", 0.5)
    with pytest.raises(UsageError, match="dgate has no target"):
        plan_search("dgate", 0.5, words, 5, OPTIONS)
    with pytest.raises(UsageError, match=r"train\.target is both set and searched"):
        plan_search("gumbel", 0.5, ["train.target=0.4..0.8"], 5, OPTIONS)
