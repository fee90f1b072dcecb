"""What MSDNet and RANet have in common: logits at every exit, and a graph that is the network."""

from __future__ import annotations

import exit_costs
import pytest
import torch
from multi_scale_nets import images, small_msdnet, small_ranet

from adaptify.graph.trace import trace

networks = pytest.mark.parametrize(("build", "exits"), [(small_msdnet, 4), (small_ranet, 8)])


@networks
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40), (19, 33), (8, 8)])
def test_every_exit_gives_logits_for_images_of_any_size(build, exits, height, width, training):
    logits = build().train(training)(images(3, height=height, width=width))
    assert isinstance(logits, tuple)
    assert [tuple(exit_.shape) for exit_ in logits] == [(3, 5)] * exits


@networks
@pytest.mark.parametrize("training", [True, False])
def test_the_graph_computes_what_the_network_computes(build, exits, training):
    model = build().train(training)
    outputs = exit_costs.Outputs(trace(model, (3, 32, 32)))
    expected = model(images())
    outputs.run(images())
    assert len(outputs.logits) == exits
    assert all(torch.equal(a, b) for a, b in zip(outputs.logits, expected, strict=True))


@networks
def test_what_runs_before_a_classifier_is_what_it_needs(build, exits):
    traced = trace(build(), (3, 32, 32))
    nodes = list(traced.graph.nodes)
    classifiers = exit_costs.exits(traced)
    assert len(classifiers) == exits
    for logits, needed in zip(classifiers, exit_costs.needed(traced), strict=True):
        assert set(nodes[: nodes.index(logits) + 1]) == needed


@pytest.mark.parametrize(
    ("build", "changes"),
    [
        (small_msdnet, {}),
        (small_msdnet, {"step": 1, "base": 1}),
        # Of these, the last layers cannot hand all that the rule of the paper keeps to the last classifier.
        (small_msdnet, {"blocks": 2, "base": 2}),
        (small_msdnet, {"blocks": 3, "base": 1, "factors": [1, 2, 4, 4], "bottlenecks": [1, 2, 4, 4]}),
        (small_msdnet, {"blocks": 2, "base": 1, "factors": [1], "bottlenecks": [1]}),
        (small_msdnet, {"stem": "large", "head_channels": None, "reduction": 1}),
        (small_ranet, {}),
        (small_ranet, {"growing": True}),
        (small_ranet, {"blocks": 1, "block_step": 1, "step": 1}),
        (small_ranet, {"scales": [1], "factors": [2], "bottlenecks": [2]}),
        (small_ranet, {"scales": [1, 1, 2], "factors": [2, 2, 1], "bottlenecks": [2, 2, 1]}),
        (small_ranet, {"stem": "large", "head_channels": None, "reduction": 0.7}),
    ],
)
def test_gradients_reach_all_parameters(build, changes):
    model = build(**changes)
    sum(logits.square().sum() for logits in model(images())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
