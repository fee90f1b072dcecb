"""The readers under a fuzzer that is guided by coverage: `python -m tests.fuzz.atheris_readers checkpoint`.

It needs `pip install .[fuzz]`. What stands behind the kind goes to libFuzzer: `-max_total_time=300`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from random import Random


def main(arguments: list[str]) -> None:
    """Fuzz the reader of one kind of file until it fails, or libFuzzer is told to stop."""
    import atheris

    with atheris.instrument_imports(include=["adaptify", "yaml", "zipfile", "pickletools"]):
        from tests.fuzz.targets import TARGETS, attack

    if not arguments or arguments[0] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz.atheris_readers {{{','.join(TARGETS)}}} [-runs=N ...]")
    target = TARGETS[arguments[0]]
    root = Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments[0]}-"))
    corpus, work = root / "corpus", root / "work"
    corpus.mkdir()
    work.mkdir()
    for index, data in enumerate(target.samples()):
        (corpus / str(index)).write_bytes(data)
    os.chdir(work)

    def one(data: bytes) -> None:
        for entry in work.iterdir():
            entry.unlink()
        wrong = attack(target, data, work)
        if wrong:
            raise AssertionError(wrong)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        """Half of the time keep the format valid, else let libFuzzer change bytes."""
        random = Random(seed)
        if random.randint(0, 1):
            return target.damaged(random)[:most]
        return bytes(atheris.Mutate(data, most))

    atheris.Setup(
        [sys.argv[0], *arguments[1:], str(corpus), f"-artifact_prefix={root}/", "-max_len=65536"],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
