from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adaptify.errors import AdaptifyError, ModelError, UsageError
from adaptify.training.features import FeatureCache, cache_features

Batches = list[tuple[Tensor, Tensor]]


def numbered(count: int, batch: int = 7) -> Batches:
    """Images that are their own number, labelled with it modulo 5."""
    rows = torch.arange(count)
    return [(part.float().unsqueeze(1), part % 5) for part in rows.split(batch)]


def forward(images: Tensor) -> dict[str, Tensor]:
    return {"wide": images.repeat(1, 3) / 8, "row": images.long()}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files, empty."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("ram_limit", [0, 150, 1 << 20])
def test_memory_and_disk_hold_the_same(temporary: Path, ram_limit: int) -> None:
    with cache_features(forward, numbered(40), ram_limit=ram_limit) as cache:
        assert (cache.folder is None) == (ram_limit == 1 << 20)
        assert len(cache) == 40
        assert cache.labels.tolist() == [i % 5 for i in range(40)]
        assert cache.site("row").tensor().flatten().tolist() == list(range(40))
        wide = cache.site("wide").tensor()
        assert (wide.dtype, wide.shape) == (torch.float16, (40, 3))
        assert torch.cat(list(cache.site("wide").blocks())).equal(wide)
        assert wide[:, 2].tolist() == [i / 8 for i in range(40)]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("ram_limit", [0, 1 << 20])
@pytest.mark.parametrize("buffer_bytes", [1, 600, 1 << 20])
def test_an_epoch_shows_every_row_once_with_its_label(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, ram_limit: int, buffer_bytes: int
) -> None:
    monkeypatch.setattr("adaptify.training.feature_cache._CHUNK_BYTES", 60)  # 10 rows of `wide`
    with cache_features(forward, numbered(205), ram_limit=ram_limit, buffer_bytes=buffer_bytes) as cache:
        generator = torch.Generator().manual_seed(0)
        epochs = [list(cache.minibatches("wide", 8, generator)) for _ in range(2)]
    orders = []
    for batches in epochs:
        values = torch.cat([v for v, _ in batches])
        rows = (values[:, 0] * 8).long()
        orders.append(rows.tolist())
        assert values.dtype == torch.float32
        assert sorted(orders[-1]) == list(range(205))
        assert torch.cat([y for _, y in batches]).equal(rows % 5)
        assert max(len(v) for v, _ in batches) <= 12
        assert len(batches) <= 27  # 205 / 8, and one more for each of the few buffers
    assert orders[0] != orders[1]
    if buffer_bytes > 1:
        assert orders[0][:10] != sorted(orders[0][:10])


def test_the_same_seed_gives_the_same_order(temporary: Path) -> None:
    with cache_features(forward, numbered(50)) as cache:
        first, second = (
            [y.tolist() for _, y in cache.minibatches("wide", 8, torch.Generator().manual_seed(3))]
            for _ in "ab"
        )
    assert first == second


def test_classes_that_come_sorted_are_mixed_in_every_buffer(temporary: Path) -> None:
    labels = torch.arange(10).repeat_interleave(2000)
    batches = [(y.float().unsqueeze(1).expand(-1, 64), y) for y in labels.split(500)]
    with cache_features(lambda x: {"a": x}, batches, ram_limit=0, buffer_bytes=1 << 20) as cache:
        seen = [y for _, y in cache.minibatches("a", 500, torch.Generator().manual_seed(0))]
    assert min(len(set(y.tolist())) for y in seen) >= 5


@pytest.mark.parametrize("ram_limit", [0, 1 << 20])
def test_values_beyond_float16_turn_a_site_to_float32_and_are_noted(temporary: Path, ram_limit: int) -> None:
    def grow(images: Tensor) -> dict[str, Tensor]:
        return {"large": images * 8192, "small": images}

    with cache_features(grow, numbered(20), ram_limit=ram_limit) as cache:
        assert cache.site("large").tensor().flatten().tolist() == [8192.0 * i for i in range(20)]
        assert cache.site("large").tensor().dtype == torch.float32
        assert cache.site("small").tensor().dtype == torch.float16
        assert cache.notes == ("features of 'large' exceed the range of float16 and are kept as float32",)
    assert list(temporary.iterdir()) == []


def test_exact_sites_and_integers_are_not_rounded() -> None:
    def say(images: Tensor) -> dict[str, Tensor]:
        return {
            "score": images / 3,
            "rounded": images / 3,
            "half": (images / 3).bfloat16(),
            "big": images.long() * 99999,
        }

    with cache_features(say, numbered(9), exact=("score", "half")) as cache:
        third = torch.arange(9.0).unsqueeze(1) / 3
        assert cache.site("score").tensor().equal(third)
        assert cache.site("rounded").tensor().equal(third.half())
        assert cache.site("half").tensor().equal(third.bfloat16().float())
        assert cache.site("big").tensor().flatten().tolist() == [99999 * i for i in range(9)]


def test_a_cache_in_a_named_folder_stays_and_opens_again(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "features"
    with cache_features(forward, numbered(30), folder=folder, ram_limit=0) as cache:
        expected = cache.site("wide").tensor()
    header = json.loads((folder / "features.json").read_text())
    assert (header["format"], header["version"], header["rows"]) == ("adaptify.features", 1, 30)

    again = FeatureCache.open(folder)
    assert again.site("wide").tensor().equal(expected)
    assert again.labels.equal(cache.labels)
    assert sorted(again.sites) == ["row", "wide"]
    again.delete()
    assert not folder.exists()


def test_a_named_folder_is_not_touched_while_memory_suffices(tmp_path: Path) -> None:
    with cache_features(forward, numbered(30), folder=tmp_path / "features"):
        assert list(tmp_path.iterdir()) == []


def test_a_new_cache_replaces_the_one_before(tmp_path: Path) -> None:
    cache_features(forward, numbered(30), folder=tmp_path, ram_limit=0).close()
    cache_features(forward, numbered(10), folder=tmp_path, ram_limit=0).close()

    assert len(FeatureCache.open(tmp_path)) == 10


def test_the_cache_before_is_gone_as_soon_as_its_files_are_overwritten(tmp_path: Path) -> None:
    cache_features(forward, numbered(30), folder=tmp_path, ram_limit=0).close()

    def look() -> Iterator[tuple[Tensor, Tensor]]:
        yield from numbered(20)
        assert not (tmp_path / "features.json").exists()
        yield from numbered(10)

    with cache_features(forward, look(), folder=tmp_path, ram_limit=0) as cache:
        assert len(cache) == 30


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "features.json").unlink(), "No such file"),
        (lambda folder: (folder / "features.json").write_text("{}"), "format"),
        (lambda folder: (folder / "features.json").write_text("{"), "Expecting"),
        (lambda folder: os.truncate(folder / "labels.bin", 8), "holds 1 rows, not 30"),
        (lambda folder: os.truncate(next(folder.glob("site*.bin")), 90), "rows, not 30"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    cache_features(forward, numbered(30), folder=tmp_path, ram_limit=0).close()
    damage(tmp_path)

    with pytest.raises(UsageError, match=message) as caught:
        FeatureCache.open(tmp_path)
    assert caught.value.hint == "Make the features again."


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    cache_features(forward, numbered(30), folder=tmp_path, ram_limit=0).close()
    header = tmp_path / "features.json"
    header.write_text(header.read_text().replace('"version": 1', '"version": 2'))

    with pytest.raises(UsageError, match="version 2 is not known"):
        FeatureCache.open(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("camera on fire"), KeyboardInterrupt()])
@pytest.mark.parametrize("named", [True, False])
def test_nothing_stays_behind_a_failure(
    temporary: Path, tmp_path: Path, error: BaseException, named: bool
) -> None:
    def failing() -> Iterator[tuple[Tensor, Tensor]]:
        yield from numbered(40)
        assert list(tmp_path.glob("**/*.bin"))  # it was on disk
        raise error

    folder = tmp_path / "features" if named else None
    with pytest.raises(type(error)):
        cache_features(forward, failing(), folder=folder, ram_limit=10)
    assert list(tmp_path.glob("**/*.bin")) == []
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "features").exists()


def test_a_forgotten_cache_takes_its_files_along(temporary: Path) -> None:
    cache = cache_features(forward, numbered(40), ram_limit=0)
    assert list(temporary.iterdir()) == [cache.folder]
    del cache
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("width", [20, 1000])  # batches smaller and larger than the buffer of a file
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(temporary: Path, width: int) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    batches = [(torch.zeros(100, width), torch.zeros(100))] * (20_000 // width)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(AdaptifyError, match=r"cannot write features to .*site\d+\.bin: ") as caught:
            cache_features(lambda x: {"a": x}, batches, ram_limit=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "space" in caught.value.hint
    assert list(temporary.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdaptifyError, match="cannot make a folder for features"):
        cache_features(forward, numbered(40), folder=tmp_path / "file" / "features", ram_limit=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_gives_no_numbers_is_named_with_site_and_image(value: float) -> None:
    def broken(images: Tensor) -> dict[str, Tensor]:
        return {"fine": images, "layer2": torch.where(images == 17, value, images)}

    with pytest.raises(ModelError, match="'layer2' for image 17"):
        cache_features(broken, numbered(40))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: {"a": x.reshape(-1)}, r"shape \(7,\) for 7 labels"),
        (lambda x: {"a": x[:3]}, r"shape \(3, 1\) for 7 labels"),
        (lambda x: {"a": x.repeat(1, int(x[0, 0]) + 1)}, "width 1 and now have 8"),
        (lambda x: {"a": x} if x[0, 0] == 0 else {"b": x}, r"\['b'\] follow features of \['a'\]"),
    ],
)
def test_features_that_do_not_fit_are_refused(
    result: Callable[[Tensor], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        cache_features(result, numbered(40))


def test_no_images_are_no_features() -> None:
    with pytest.raises(UsageError, match="no images"):
        cache_features(forward, [])


def test_an_unknown_site_gets_a_suggestion() -> None:
    with (
        cache_features(forward, numbered(4)) as cache,
        pytest.raises(UsageError, match="did you mean 'wide'"),
    ):
        cache.site("wode")


_BOUNDED = """
import sys, torch
from pathlib import Path
from adaptify.training.features import cache_features
from adaptify.training.linear import train_linear_gates

PAGE = 4096
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

class Watch:  # a generator of images that looks at the memory of the process at every batch
    peak = 0
def batches(count, size):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        Watch.peak = max(Watch.peak, resident())
        labels = torch.randint(0, 10, (size,), generator=generator)
        yield torch.randn(size, 1024, generator=generator) + labels.unsqueeze(1), labels

def run(count, folder):
    forward = lambda x: {"layer1": x[:, :256].clone(), "layer2": x[:, :512].clone(), "layer3": x}
    limits = {"ram_limit": 8 << 20, "buffer_bytes": 16 << 20}
    with cache_features(forward, batches(count, 256), folder=folder, **limits) as cache:
        size = sum(rows.nbytes for rows in cache.sites.values())
        original = cache.minibatches
        def watched(*args):
            for item in original(*args):
                Watch.peak = max(Watch.peak, resident())
                yield item
        cache.minibatches = watched
        train_linear_gates(cache, 10, epochs=1)
        cache.delete()
    return size

torch.set_num_threads(1)
folder = Path(sys.argv[1])
run(20, folder / "warm")  # loads kernels, fills allocators
before, Watch.peak = resident(), 0
size = run(600, folder / "large")
print(size, Watch.peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see resident memory")
def test_memory_is_bounded_when_the_cache_is_many_times_larger(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _BOUNDED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    size, added = map(int, finished.stdout.split())

    assert size > 500 << 20
    # A buffer of 16 MiB, 8 MiB held before writing, and slack of the allocator.
    assert added < 80 << 20
    assert list(tmp_path.iterdir()) == []
