"""What blocks take is measured once, and nothing that happens to the file does more harm than take time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from skipping_nets import CPU, cifar, place
from torch import Tensor

from adaptify.runtime.machine import VERSION, cache_folder, cost_key
from adaptify.runtime.optimize import optimize
from adaptify.runtime.skipping.costs import BlockCost, CostTable, measure_block

COST = BlockCost(fixed=1e-4, row=2e-3, move=3e-6)


class Measure:
    """Measures COST, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> BlockCost:
        self.count += 1
        return COST


def test_costs_are_measured_once_and_read_again(tmp_path: Path) -> None:
    measure = Measure()
    path = tmp_path / "not" / "there" / "costs.json"
    with CostTable(path) as table:
        assert [table.look_up(key, measure) for key in ("a", "a", "b")] == [COST] * 3
    assert measure.count == 2
    with CostTable(path) as table:
        assert table.look_up("a", measure) == COST
        table.look_up("c", measure)
    assert measure.count == 3
    with CostTable(path) as table:
        for key in "abc":
            table.look_up(key, measure)
    assert measure.count == 3


def test_a_table_that_learned_nothing_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    with CostTable(path):
        pass
    assert not path.exists()


GOOD = {"fixed": 1.0, "row": 1.0, "move": 1.0}
DAMAGED = {
    "empty": b"",
    "no JSON": b"{'version'",
    "no text": b"\xff\xfe\x00",
    "null": b"null",
    "a list": b"[1, 2]",
    "no version": b"{}",
    "no costs": json.dumps({"version": VERSION}).encode(),
    "costs of another kind": json.dumps({"version": VERSION, "costs": 3}).encode(),
    "a cost of another kind": json.dumps({"version": VERSION, "costs": {"a": 3}}).encode(),
    "half a cost": json.dumps({"version": VERSION, "costs": {"a": {"fixed": 1.0}}}).encode(),
    "more than a cost": json.dumps({"version": VERSION, "costs": {"a": {**GOOD, "more": 1}}}).encode(),
    "words": json.dumps({"version": VERSION, "costs": {"a": {**GOOD, "row": "much"}}}).encode(),
    "another version": json.dumps({"version": VERSION + 1, "costs": {"a": GOOD}}).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_cannot_be_used_is_measured_anew(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    measure = Measure()
    for _ in range(2):
        with CostTable(path) as table:
            assert table.look_up("a", measure) == COST
    assert measure.count == 1


@pytest.mark.parametrize("name", ["file/costs.json", "folder"])
def test_a_place_that_cannot_be_written_costs_time_only(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    measure = Measure()
    for _ in range(2):
        with CostTable(tmp_path / name) as table:
            assert table.look_up("a", measure) == COST
    assert measure.count == 2


def test_what_was_measured_before_an_error_is_kept(tmp_path: Path) -> None:
    measure = Measure()

    def interrupted() -> BlockCost:
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt), CostTable(tmp_path / "costs.json") as table:
        table.look_up("a", measure)
        table.look_up("b", interrupted)
    with CostTable(tmp_path / "costs.json") as table:
        table.look_up("a", measure)
    assert measure.count == 1


def test_the_place_of_the_file_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ADAPTIFY_CACHE", raising=False)
    assert cache_folder() == tmp_path / "cache" / "adaptify"
    monkeypatch.setenv("ADAPTIFY_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("ADAPTIFY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "adaptify"


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_keys_tell_blocks_and_machines_apart() -> None:
    torch.set_num_threads(1)
    key = cost_key("a block", CPU)
    assert cost_key("a block", CPU) == key
    assert cost_key("another block", CPU) != key
    torch.set_num_threads(2)
    assert cost_key("a block", CPU) != key


def test_measuring_tells_what_a_row_takes() -> None:
    def per_row(x: Tensor) -> Tensor:
        time.sleep(2e-3 * len(x))
        return x

    cost = measure_block(per_row, (4, 5, 5), torch.channels_last, CPU)
    # Sleeping takes at least as long as asked for; how much longer depends on who else is there.
    assert cost.row >= 1e-3
    assert cost.fixed >= 0
    assert 0 < cost.move < cost.row
    assert cost.run(8) >= 8e-3
    assert measure_block(lambda x: x, (7,), torch.contiguous_format, CPU).row > 0


def test_the_fast_form_is_measured_where_it_is_first_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADAPTIFY_CACHE", str(tmp_path))
    model = place(cifar(), "masks")
    costs = [block.cost for block in optimize(model).blocks]
    stored = json.loads((tmp_path / "block-costs.json").read_text())["costs"]
    assert len(stored) == len(set(costs)) == 3
    assert [block.cost for block in optimize(model).blocks] == costs
    assert json.loads((tmp_path / "block-costs.json").read_text())["costs"] == stored


def test_a_cost_is_linear_in_rows_and_shares() -> None:
    assert COST.run(3) == pytest.approx(1e-4 + 6e-3)
    assert COST.run(3, 0.5) == pytest.approx(1e-4 + 3e-3)
