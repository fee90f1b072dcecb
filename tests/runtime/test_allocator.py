from __future__ import annotations

import subprocess
import sys

import pytest

from adaptify.errors import UsageError
from adaptify.runtime.allocator import describe_allocator
from adaptify.runtime.device import pick_device

SCRIPT = """
from adaptify.runtime.allocator import describe_allocator, keep_freed_memory
print(describe_allocator()); print(keep_freed_memory()); print(describe_allocator())
"""


def run(monkeypatch: pytest.MonkeyPatch, **settings: str) -> list[str]:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(not describe_allocator().startswith("glibc"), reason="needs glibc")
def test_the_setting_is_made_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before, changed, after = run(monkeypatch)
    assert before.endswith(", default")
    assert changed == "True"
    assert after.endswith("keeps freed blocks below 1 GiB")


@pytest.mark.skipif(not describe_allocator().startswith("glibc"), reason="needs glibc")
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before, changed, after = run(monkeypatch, MALLOC_TRIM_THRESHOLD_="131072")
    assert changed == "False"
    assert before == after
    assert "MALLOC_TRIM_THRESHOLD_=131072" in after


def test_devices_by_name() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "", "cpu:x"])
def test_a_device_that_is_not_there_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        pick_device(name)
    assert f"'{name}'" in caught.value.message
    assert caught.value.hint
