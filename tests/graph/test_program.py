"""Graphs as Python functions, and their sources in tracebacks."""

from __future__ import annotations

import gc
import linecache
import traceback

import pytest
import torch
from torch import nn

from adaptify.graph.program import compile_graph
from adaptify.graph.trace import trace


def test_a_graph_runs_on_any_tree_that_has_its_modules() -> None:
    first, second = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 4, 1))
    run = compile_graph(trace(first.eval(), (3, 5, 5)).graph)
    images = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        assert torch.equal(run(first, images), first(images))
        assert torch.equal(run(second, images), second(images))


def test_its_source_is_in_tracebacks_as_long_as_it_is_there() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    run = compile_graph(trace(network.eval(), (3, 5, 5)).graph)
    with pytest.raises(RuntimeError) as caught:
        run(network, torch.randn(2, 7, 5, 5))
    frames = traceback.extract_tb(caught.tb)
    (frame,) = [frame for frame in frames if "adaptify graph" in frame.filename]
    assert frame.line is not None
    assert "getattr(self" in frame.line
    assert frame.filename in linecache.cache
    del run, caught
    gc.collect()
    assert frame.filename not in linecache.cache
