"""A disk on which any call can fail."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from disk import HERE, Disk


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """Runs commands in which a call to the file system fails; skips where it cannot be built."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build failing.c with")
    shim = tmp_path_factory.mktemp("shim") / "failing.so"
    words = [compiler, "-O1", "-shared", "-fPIC", "-o", str(shim), str(HERE / "failing.c"), "-ldl"]
    built = subprocess.run(words, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"failing.c cannot be built here: {built.stderr.splitlines()[-1]}")
    found = Disk(shim)
    yield found
    found.close()
