"""A graph as a Python function over the module tree that owns its parameters."""

from __future__ import annotations

import itertools
import linecache
import weakref
from collections.abc import Callable
from typing import Any

from torch import fx

_serial = itertools.count()


def compile_graph(graph: fx.Graph) -> Callable[..., Any]:
    """Return `graph` as a function `(root, *inputs) -> outputs`.

    The function looks modules and parameters up on `root` by their qualified names, so one module
    tree can run many graphs (the whole network, its segments) and keeps its own state dict.
    """
    code = graph.python_code("self")
    filename = f"<adaptify graph {next(_serial)}>"
    # The source is kept where tracebacks and torch.compile look for it.
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    weakref.finalize(function, linecache.cache.pop, filename, None).atexit = False
    return function
