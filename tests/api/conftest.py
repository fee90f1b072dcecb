"""A trained network without a name, its loaders, and a finished run of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from plain_net import PlainNet, digits, trained
from torch.utils.data import DataLoader

import adaptify


class Lab(NamedTuple):
    """What a user has."""

    net: PlainNet
    train: DataLoader[Any]
    test: DataLoader[Any]


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train, test = digits()
    torch.manual_seed(0)
    loader: DataLoader[Any] = DataLoader(train, 64, shuffle=True)
    yield Lab(trained(loader), loader, DataLoader(test, 128))
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def run(lab: Lab) -> adaptify.Run:
    """Exits behind two stages; only to be read."""
    return retrofitted(lab)


def retrofitted(lab: Lab, **options: Any) -> adaptify.Run:
    """Exits behind two stages."""
    settings = {"gates": {"sites": ["first", "second"]}, "train": {"epochs": 2}}
    return adaptify.retrofit(
        lab.net, method="dgate", train=lab.train, test=lab.test, max_drop=5, settings=settings, **options
    )
