"""Which programs for some channels of a block are built, and which of them serves whom."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptify.errors import ModelError
from adaptify.runtime.skipping.codebook import Codebook, as_bits, as_number
from adaptify.runtime.skipping.programs import Bits, Narrow

K = 8
CAPACITY = 12
ROOM = 4


class Block:
    """A block of K channels that cost the same; it counts what is built of it.

    Attributes:
        built: The patterns that a program was asked for, in order.
    """

    def __init__(self, *, seconds: float = 0.0, fails: bool = False, masks: bool = True) -> None:
        self.built: list[int] = []
        self._seconds, self._fails, self._masks = seconds, fails, masks

    def share(self, opened: Bits) -> float:
        return float(opened.mean())

    def narrow(self, opened: Bits) -> Narrow:
        self.built.append(as_number(opened))
        time.sleep(self._seconds)
        if self._fails:
            raise ModelError("channels cannot be removed", "Keep them.")
        run = (lambda x, gates: x) if self._masks else None
        return Narrow(opened, np.flatnonzero(opened), self.share(opened), lambda x: x, lambda: run)


def bits(channels: Collection[int]) -> Bits:
    return np.isin(np.arange(K), list(channels))


def ask(book: Codebook, channels: Collection[int], seconds: float) -> Narrow | None:
    """Run rows that need some channels and would take `seconds` in the whole block."""
    opened = bits(channels)
    found = book.find(as_number(opened))
    book.note(as_number(opened), opened, 1.0 if found is None else found.share, seconds)
    return found


def codebook(block: Block) -> Codebook:
    return Codebook(block)  # type: ignore[arg-type]


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_patterns_survive_as_numbers(values: list[bool]) -> None:
    opened = np.array(values)
    assert as_bits(as_number(opened), len(opened)).tolist() == values


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=100))
def test_numbers_say_which_pattern_holds_another(pairs: list[tuple[bool, bool]]) -> None:
    one, other = np.array(pairs).T
    assert (as_number(one) & ~as_number(other) == 0) == bool((other | ~one).all())


def test_a_program_is_built_when_its_lack_has_cost_what_building_takes() -> None:
    block = Block(seconds=0.05)
    book = codebook(block)
    # Half of the block is not needed: a row of 2 s loses 1 s, and building takes far less.
    assert ask(book, range(4), 2.0) is None
    assert len(book) == 1
    found = ask(book, range(4), 2.0)
    assert found is not None
    assert found.opened.tolist() == bits(range(4)).tolist()
    # Now it is known that building takes 50 ms or more: ten times 2.5 ms are less, and it is not built.
    for _ in range(10):
        assert ask(book, [1, 5], 0.005) is None
    assert block.built == [as_number(bits(range(4)))]
    ask(book, [1, 5], 100.0)
    assert as_number(bits([1, 5])) in block.built


def test_rows_that_need_everything_lose_nothing() -> None:
    block = Block()
    book = codebook(block)
    for _ in range(5):
        assert ask(book, range(K), 1e6) is None
    assert not block.built


def test_the_smallest_program_that_has_all_channels_serves() -> None:
    book = codebook(Block())
    for channels in ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3], [4, 5, 6]):
        ask(book, channels, 1e6)
    for wanted, serves in (([1, 2], [0, 1, 2, 3]), ([3, 4], [0, 1, 2, 3, 4, 5]), ([4, 6], [4, 5, 6])):
        found = book.find(as_number(bits(wanted)))
        assert found is not None
        assert np.flatnonzero(found.opened).tolist() == serves
    assert book.find(as_number(bits([7]))) is None


def test_a_program_without_masks_serves_only_the_channels_that_it_was_built_for() -> None:
    book = codebook(Block(masks=False))
    ask(book, [0, 1, 2], 1e6)
    assert book.find(as_number(bits([0, 1]))) is None
    assert book.find(as_number(bits([0, 1, 2]))) is not None


def test_channels_that_any_row_ever_needed_are_a_program_too() -> None:
    book = codebook(Block())
    for channel in (0, 1, 2):
        ask(book, [channel], 1e6)
    found = book.find(as_number(bits([0, 2])))
    assert found is not None
    assert np.flatnonzero(found.opened).tolist() == [0, 1, 2]


def test_there_are_never_more_programs_than_fit_and_those_in_use_stay() -> None:
    block = Block()
    book = codebook(block)
    first = [0, 1]
    ask(book, first, 1e6)
    for number in range(1, 60):
        ask(book, np.flatnonzero(as_bits(number, K)).tolist(), 1e6)
        found = ask(book, first, 1e6)
        assert found is not None
        assert found.opened.tolist() == bits(first).tolist()
        assert len(book) <= CAPACITY
    assert len(set(block.built)) > CAPACITY


def test_large_programs_are_fewer() -> None:
    book = codebook(Block())
    shares = []
    for closed in range(K):
        found = ask(book, [channel for channel in range(K) if channel != closed], 1e6)
        assert found is None
        shares.append(len(book) * (K - 1) / K)
    assert max(shares) <= ROOM
    assert len(book) == int(ROOM / ((K - 1) / K))


def test_what_cannot_be_built_is_not_tried_again() -> None:
    block = Block(fails=True)
    book = codebook(block)
    for _ in range(4):
        assert ask(book, [0, 1], 1e6) is None
    assert block.built == [as_number(bits([0, 1]))]
    assert len(book) == 0


def test_only_errors_of_the_network_are_expected() -> None:
    class Broken(Block):
        def narrow(self, opened: Bits) -> Narrow:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(codebook(Broken()), [0], 1e6)


def test_thousands_of_patterns_are_forgotten_again() -> None:
    # Losses of single patterns stay below what building takes: memory must not grow with their number.
    block = Block(seconds=0.0)
    book = codebook(block)
    opened = np.zeros(16, bool)
    for number in range(1, 6000):
        opened = as_bits(number, 16)
        book.note(number, opened, 1.0, 1e-9)
    assert len(book._lost) <= 4096 + 1
    assert len(book._shares) <= 4096 + 1


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_share_a_codebook(hasty: None) -> None:
    block = Block(seconds=1e-4)
    book = codebook(block)

    def serve(seed: int) -> None:
        for number in np.random.default_rng(seed).permutation(2**K - 1).tolist():
            wanted = as_bits(number + 1, K)
            found = ask(book, np.flatnonzero(wanted).tolist(), 1e6)
            assert found is None or found.opened[wanted].all()
            assert len(book) <= CAPACITY

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(serve, range(4)))
    assert len(set(block.built)) > CAPACITY
