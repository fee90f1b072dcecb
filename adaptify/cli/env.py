"""`adaptify env`: what adaptify runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptify.cli.options import Json

if TYPE_CHECKING:
    from rich.table import Table


def env(json: Json = False) -> None:
    """Show what adaptify runs on, for bug reports.

    Versions, processor, threads, memory, GPU, allocator and cache: what measurements depend on. Nothing in it
    names you.

    \b
    Examples:
      adaptify env
      adaptify env --json > env.json
    """
    from adaptify.cli.console import Console
    from adaptify.environment import describe_environment
    from adaptify.runtime.allocator import keep_freed_memory

    keep_freed_memory()  # as every command that computes does, so that it is shown as it will be
    console = Console(json=json)
    facts = describe_environment()
    console.data(facts)
    console.show(_table(facts))


def _table(facts: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from adaptify.text import memory, printable

    cpu = facts["cpu"]
    rows = [(name, version or "not installed") for name, version in facts["versions"].items()]
    rows += [
        ("platform", facts["platform"]),
        ("processor", f"{cpu['model']}, {cpu['capability']}"),
        ("cores", f"{cpu['usable_cores']} of {cpu['cores']}, {cpu['torch_threads']} torch threads"),
        ("memory", memory(facts["memory_bytes"]) if facts["memory_bytes"] else "unknown"),
    ]
    rows += [
        ("gpu", f"{gpu['name']}, {memory(gpu['memory_bytes'])}, capability {gpu['compute_capability']}")
        for gpu in facts["gpus"]
    ] or [("gpu", "none")]
    rows += [(name, facts[name]) for name in ("allocator", "cache")]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(printable(value)))
    return table
