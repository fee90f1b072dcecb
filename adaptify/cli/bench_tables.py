"""What `adaptify bench` shows; it fits into 80 columns."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from adaptify.bench.measure import Batch, Figures, Row
from adaptify.cli.tables import table, titled, word
from adaptify.pipeline.bench import Benched
from adaptify.runtime.timing import Spread
from adaptify.text import memory, percent, quantity


def benched(result: Benched) -> tuple[RenderableType, ...]:
    """Return the figures of all backends by batch size, and where the saving went."""
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    where = f"{result.device}, {threads}" if result.device == "cpu" else result.device
    images = "random images" if result.data is None else f"test images of {result.data}"
    against = "" if result.original is None else f" against {result.original}"
    parts: list[RenderableType] = [Text(f"{result.target}{against}; {where}; {images}", style="bold")]
    for batch in result.measured.batches:
        rows = [row for row in result.measured.rows if row.batch == batch.batch]
        parts += ["", *_batch(batch, rows, alone=result.original is None)]
    splits = [batch for batch in result.measured.batches if batch.split is not None]
    if splits:
        parts += ["", *_splits(splits)]
    return tuple(parts)


def _batch(batch: Batch, rows: list[Row], *, alone: bool) -> tuple[RenderableType, ...]:
    title = (
        f"Batches of {batch.batch}, ms a batch ({batch.images} images): {quantity(batch.macs)} MACs an image"
    )
    if alone:
        shown = table(["backend", "ms", "quartiles", "images/s", "memory"])
        for row in rows:
            if row.result is not None:
                figures = row.result
                shown.add_row(
                    word(row.backend),
                    _ms(figures.ms.median),
                    _quartiles(figures.ms, 1),
                    f"{figures.images_per_second:.0f}",
                    _memory(figures),
                )
        return titled(title, shown)
    assert batch.kept is not None
    shown = table(["backend", "before", "after", "images/s", "time", "quartiles", "gap", "memory"])
    for row in rows:
        time = row.time
        shown.add_row(
            word(row.backend),
            "-" if row.original is None else _ms(row.original.ms.median),
            "-" if row.result is None else _ms(row.result.ms.median),
            "-" if row.result is None else f"{row.result.images_per_second:.0f}",
            "-" if time is None else f"{time.median:.3f}",
            "-" if time is None else _quartiles(time, 3),
            "-" if time is None else f"{time.median - batch.kept:+.3f}",
            "-" if row.result is None else _memory(row.result),
        )
    return titled(f"{title}, {percent(batch.kept)} of before", shown)


def _splits(batches: list[Batch]) -> tuple[RenderableType, ...]:
    """Where the saving of the fast form went."""
    shown = table(["batch", "arrived", "MACs", "layers", "batches", "gates", "rows", "other", "time"])
    for batch in batches:
        split = batch.split
        assert split is not None
        promised = 1 - split.kept
        shown.add_row(
            str(batch.batch),
            percent((1 - split.time) / promised, 0) if promised > 0.005 else "-",
            f"{split.kept:.3f}",
            f"{split.layers:+.3f}",
            "" if split.batches is None else f"{split.batches:+.3f}",
            *(f"{value:+.3f}" for value in (split.gates, split.rows, split.other)),
            f"{split.time:.3f}",
        )
    return (
        *titled("Where the saving went (fast; MACs + ... = time, in times of the original)", shown),
        Text("layers: per MAC of what runs; batches: they get smaller; rows: moving them", style="dim"),
    )


def _ms(value: float) -> str:
    return f"{value:.{2 if value < 100 else 0}f}"


def _quartiles(spread: Spread, digits: int) -> str:
    return "-".join(f"{value:.{digits}f}".removeprefix("0") for value in (spread.low, spread.high))


def _memory(figures: Figures) -> str:
    return "-" if figures.memory is None else memory(figures.memory)
