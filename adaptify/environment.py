"""What adaptify runs on: versions, processor, memory, GPU, settings that change its speed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from adaptify.runtime.allocator import describe_allocator
from adaptify.runtime.machine import cache_folder
from adaptify.version import VERSION

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "onnx", "onnxruntime")


def describe_environment() -> dict[str, Any]:
    """Return the facts that a report or a bug report needs, as JSON values.

    Returns:
        `versions` (package name to version or `None`), `platform`, `cpu` (model, logical cores, cores this
        process may use, torch threads), `memory_bytes`, `gpus`, `allocator`, `cache` (where measurements of
        this machine are kept). Nothing in it names the user: the home folder is `~`.
    """
    import torch

    return {
        "versions": {"adaptify": VERSION, "python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": {
            "model": _cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": _usable_cores(),
            "torch_threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "memory_bytes": _memory(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "allocator": describe_allocator(),
        "cache": _without_home(cache_folder()),
    }


def _without_home(path: Path) -> str:
    try:
        return str(Path("~") / path.absolute().relative_to(Path.home()))
    except (ValueError, RuntimeError):  # it is elsewhere, or there is no home
        return str(path)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    if sys.platform.startswith("linux"):
        for line in _lines("/proc/cpuinfo"):
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model"):
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _usable_cores() -> int | None:
    """Cores that the scheduler lets this process use: fewer than the machine has, in many containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory() -> int | None:
    """Bytes of memory this process may use: of the machine, or of its control group if that is less."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        for line in _lines(limit):
            if line.strip().isdigit():
                machine = min(machine, int(line))
    return machine


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
