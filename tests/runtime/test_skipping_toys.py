"""Small networks in which blocks are at unusual places: right behind the images, on other layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from skipping_nets import CPU, WAYS, draw, forced, images_for, place, row_difference, set_cost, traced_net
from torch import Tensor, nn

from adaptify.runtime.skipping.model import SkippingModel


class Plain(nn.Module):
    """x + f(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.relu(self.inner(x)))


class Augmented(Plain):
    """The same, written as x += f(x)."""

    def forward(self, x: Tensor) -> Tensor:
        x += torch.sigmoid(self.outer(torch.relu(self.inner(x))))
        return x


class Rectified(Plain):
    """relu(x + f(x)): what is left without f changes what is below 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class Tokens(nn.Module):
    """A block on (N, H, W, C) that views what it gets as a row of tokens, which not every layout allows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        count, height, width, channels = x.shape
        branch = self.outer(torch.relu(self.inner(x.view(count, height * width, channels))))
        return x + branch.view(count, height, width, channels)


class ToChannelsLast(nn.Module):
    """(N, C, H, W) to (N, H, W, C), in memory too."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous()


class MeanOfTokens(nn.Module):
    """(N, H, W, C) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, x.shape[-1]).mean(1)


class Flat(nn.Module):
    """A block on vectors."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(features, 8), nn.Linear(8, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.relu(self.inner(x)))


def head() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]


# From images (4, 8, 8) to 5 scores.
NETS: Mapping[str, Callable[[], nn.Module]] = {
    "no stem": lambda: nn.Sequential(Plain(4), Plain(4), Plain(4), *head()),
    "a stem that does nothing": lambda: nn.Sequential(nn.Identity(), Plain(4), Plain(4), Plain(4), *head()),
    "a stem that only drops": lambda: nn.Sequential(nn.Dropout(0.1), Plain(4), Plain(4), Plain(4), *head()),
    "blocks that add in place": lambda: nn.Sequential(Augmented(4), Augmented(4), Augmented(4), *head()),
    "a ReLU that blocks leave behind": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), Rectified(4), Rectified(4), nn.MaxPool2d(2), Rectified(4), *head()
    ),
    "images as vectors": lambda: nn.Sequential(
        Plain(4), Plain(4), nn.Flatten(), Flat(256), nn.Linear(256, 5)
    ),
    "only vectors": lambda: nn.Sequential(nn.Flatten(), Flat(256), Flat(256), Flat(256), nn.Linear(256, 5)),
    "channels last in the shape": lambda: nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1),
        ToChannelsLast(),
        *(Tokens(16) for _ in range(3)),
        MeanOfTokens(),
        nn.Linear(16, 5),
    ),
}


# What decides masks looks at maps.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in NETS
        for kind in ("masks", "layers by stage", "saliences", "parallel saliences")
        if (name, kind) != ("only vectors", "masks")
    ],
)
def test_images_stay_as_they_are_and_skipping_is_masking(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = place(traced_net(NETS[name](), (4, 8, 8)), kind)
    fast = SkippingModel(model, CPU)
    with torch.inference_mode():
        for cost in WAYS.values():
            set_cost(fast, cost)
            for rows in (1, 5):
                gates = draw(model, rows, seed=rows, patterns=2)
                for layout in (torch.contiguous_format, torch.channels_last):
                    images = images_for(model, rows).contiguous(memory_format=layout)
                    before = images.clone()
                    for opened in (gates, gates, draw(model, rows, seed=9), 0 * gates, gates):
                        found = fast.decide(images, forced(model, opened)).logits
                        assert torch.equal(images, before)
                        wanted = model.decide(before.clone(), forced(model, opened)).logits
                        assert row_difference(found, wanted) <= 1e-5


class Grouped(nn.Module):
    """x + f(x) with a convolution of some groups inside; its offsets are not 0."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.relu(self.grouped(torch.relu(self.inner(x)))))


@pytest.mark.parametrize("kind", ["saliences", "parallel saliences"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_program_in_which_a_single_group_is_left_is_masked_as_the_whole(groups: int, kind: str) -> None:
    """A convolution with one group reads its channels, and one with more passes them on."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), Grouped(groups), Grouped(groups), *head())
    model = place(traced_net(net, (4, 8, 8)), kind)
    fast = SkippingModel(model, CPU)
    set_cost(fast, WAYS["narrow"])
    count = sum(site.gates for site in model.sites) // 2
    images = images_for(model, 3)

    def gates(*opened: int, scale: float = 1.0) -> Tensor:
        """The layers and some of their channels."""
        mask = torch.zeros(count)
        mask[[0, *opened]] = 1.0
        mask[list(opened)] *= scale
        return mask.repeat(3, 2)

    with torch.inference_mode():
        for opened in (gates(1), gates(1), gates(1, scale=0.5), gates(), gates(1, 2), gates(2), gates(1)):
            wanted = model.decide(images, forced(model, opened)).logits
            found = fast.decide(images, forced(model, opened)).logits
            assert row_difference(found, wanted) <= 1e-5
