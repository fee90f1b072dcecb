from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adaptify.checkpoint.state_dict import clean_names, find_weights, mentioned_names
from adaptify.errors import ModelError


def network() -> nn.Module:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), head=nn.Linear(4, 2)))


WEIGHTS = {name: tensor.clone() for name, tensor in network().state_dict().items()}
OTHER = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
OPTIMIZER = {
    "state": {0: {"exp_avg": torch.ones(5000), "step": torch.tensor(3.0)}},
    "param_groups": [{"lr": 0.1}],
}


def prefixed(prefix, weights=WEIGHTS):
    return {prefix + name: tensor for name, tensor in weights.items()}


def is_network(tensors, weights=WEIGHTS):
    return list(tensors) == list(weights) and all(torch.equal(tensors[n], weights[n]) for n in weights)


@pytest.mark.parametrize(
    "value",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3, "optimizer": OPTIMIZER},
        {"model": WEIGHTS, "epoch": torch.tensor(3), "optimizer": OPTIMIZER},
        {"model_state_dict": WEIGHTS, "optimizer_state_dict": OPTIMIZER, "loss": 0.1},
        {"net": prefixed("module."), "acc": 91.2},
        {"a name nobody knows": WEIGHTS},
        {"checkpoint": {"model": {"state_dict": WEIGHTS}}},
        {"model": OTHER, "ema": WEIGHTS},
        {"model": OTHER, "model_ema": prefixed("module.") | {"n_averaged": torch.tensor(4)}},
        {"state_dict": OTHER, "state_dict_ema": WEIGHTS, "arch": "resnet50", "args": Namespace(model="x")},
        {"model": WEIGHTS, "scheduler": {"last_lr": torch.ones(2)}},
        {"state_dict": WEIGHTS, "criterion": {"weight": torch.ones(3)}},
        {
            "pytorch-lightning_version": "2.1",
            "state_dict": prefixed("model.") | {"criterion.weight": torch.ones(2)},
            "hyper_parameters": {"lr": 0.1},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.4)}},
            "optimizer_states": [OPTIMIZER],
        },
    ],
)
def test_the_weights_are_found(value):
    found = find_weights(value, "x.pt")
    assert is_network(found.tensors)
    assert found.notes == () if value is WEIGHTS else found.notes


def test_the_choice_of_averaged_weights_is_said():
    notes = find_weights({"state_dict": OTHER, "state_dict_ema": WEIGHTS}, "x.pt").notes
    assert notes == ("took 'state_dict_ema' of the file and left 'state_dict'",)


PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "backbone.", "_forward_module.", "student."]


@given(st.lists(st.sampled_from(PREFIXES), max_size=5))
def test_prefixes_come_off_in_any_nesting(prefixes):
    prefix = "".join(prefixes)
    tensors, removed, notes = clean_names(prefixed(prefix))
    assert is_network(tensors)
    assert removed == prefix.replace("_orig_mod.", "")
    assert bool(notes) == bool(prefix)


@given(st.permutations(list(WEIGHTS)), st.sampled_from(["_orig_mod", "_fsdp_wrapped_module"]))
def test_what_torch_inserts_comes_out_of_the_middle_of_names(order, inserted):
    middle = {name.replace(".", f".{inserted}."): WEIGHTS[name] for name in order}
    tensors, _, notes = clean_names(middle)
    assert is_network(tensors, {name: WEIGHTS[name] for name in order})
    assert notes == [f"removed '{inserted}.' from names"]


@pytest.mark.parametrize(
    "beside",
    [
        {"fc.weight": torch.ones(2, 4), "fc.bias": torch.ones(2)},  # a head beside the backbone
        {"normalize.mean": torch.ones(3)},  # part of what the network computes
        {"model2.weight": torch.ones(1)},
    ],
)
def test_a_prefix_stays_when_other_weights_stand_beside_it(beside):
    tensors, removed, _ = clean_names(prefixed("model.") | beside)
    assert set(tensors) == set(prefixed("model.") | beside)
    assert removed == ""


def test_weights_of_the_loss_are_left_out_and_named():
    beside = {"loss_fn.weight": torch.ones(3), "train_metric.total": torch.ones(1)}
    tensors, removed, notes = clean_names(prefixed("model.") | beside)
    assert is_network(tensors)
    assert removed == "model."
    assert notes[0] == "left out 2 tensors (loss_fn.weight, ...) beside the network"


def test_a_part_called_like_a_loss_stays_where_nothing_is_wrapped():
    tensors, removed, _ = clean_names({"backbone.weight": torch.ones(2), "metric_head.weight": torch.ones(2)})
    assert set(tensors) == {"backbone.weight", "metric_head.weight"}
    assert removed == ""


def test_counters_of_profilers_are_left_out():
    counted = dict(WEIGHTS) | {"total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)}
    tensors, _, notes = clean_names(counted)
    assert is_network(tensors)
    assert notes == ["left out 2 counters (total_ops, ...)"]


def test_two_networks_that_differ_only_in_what_torch_inserts_are_kept_apart():
    both = prefixed("a.") | prefixed("a._orig_mod.")
    tensors, _, _ = clean_names(both)
    assert len(tensors) == len(both)


@pytest.mark.parametrize("value", [None, 3, "text", [WEIGHTS], {}, {"epoch": 3}, {"optimizer": OPTIMIZER}])
def test_what_holds_no_weights_is_refused(value):
    with pytest.raises(ModelError, match="not a dictionary of tensors"):
        find_weights(value, "x.pt")


def test_a_choice_between_unknown_names_is_left_to_the_user():
    with pytest.raises(ModelError) as caught:
        find_weights({"run": {"student": WEIGHTS, "teacher": OTHER}}, "x.pt")
    assert "'run.student', 'run.teacher'" in caught.value.message
    assert "['run']['student']" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "mentioned"),
    [
        ({"arch": "resnet50", "state_dict": WEIGHTS}, ("resnet50",)),
        ({"args": Namespace(model="vit_b_16", lr=1)}, ("vit_b_16",)),
        ({"hyper_parameters": {"backbone": "resnet18", "model": 3}}, ("resnet18",)),
        ({"model": WEIGHTS}, ()),
        (WEIGHTS, ()),
        (nn.Linear(2, 2), ()),
    ],
)
def test_what_the_file_says_about_the_architecture_is_found(value, mentioned):
    assert mentioned_names(value) == mentioned
