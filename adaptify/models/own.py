"""The networks of this project, under the prefix `adaptify:`."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from adaptify.input_spec import InputSpec
from adaptify.models import cifar_resnet, msdnet, ranet
from adaptify.models.source import Kwargs, call, with_channels

# The public CIFAR checkpoints were trained with the mean and deviation of ImageNet.
_CIFAR = InputSpec(height=32, width=32)
_IMAGENET = InputSpec(resize=256)
# Mean and deviation of the UCI digits, scaled to [0, 1].
_DIGITS = InputSpec(channels=1, height=8, width=8, mean=(0.3053,), std=(0.3760,))

_NETWORKS = {
    "cifar_resnet20": (cifar_resnet.cifar_resnet20, _CIFAR),
    "cifar_resnet32": (cifar_resnet.cifar_resnet32, _CIFAR),
    "cifar_resnet44": (cifar_resnet.cifar_resnet44, _CIFAR),
    "cifar_resnet56": (cifar_resnet.cifar_resnet56, _CIFAR),
    "cifar_resnet110": (cifar_resnet.cifar_resnet110, _CIFAR),
    "digits_resnet": (cifar_resnet.digits_resnet, _DIGITS),
    "msdnet_cifar100_anytime": (msdnet.msdnet_cifar100_anytime, _CIFAR),
    "msdnet_cifar100_batch4": (msdnet.msdnet_cifar100_batch4, _CIFAR),
    "msdnet_cifar100_batch8": (msdnet.msdnet_cifar100_batch8, _CIFAR),
    "msdnet_cifar100_batch12": (msdnet.msdnet_cifar100_batch12, _CIFAR),
    "msdnet_imagenet_step4": (msdnet.msdnet_imagenet_step4, _IMAGENET),
    "msdnet_imagenet_step7": (msdnet.msdnet_imagenet_step7, _IMAGENET),
    "ranet_cifar100_anytime": (ranet.ranet_cifar100_anytime, _CIFAR),
    "ranet_cifar100_batch1": (ranet.ranet_cifar100_batch1, _CIFAR),
    "ranet_cifar100_batch2": (ranet.ranet_cifar100_batch2, _CIFAR),
    "ranet_cifar100_batch3": (ranet.ranet_cifar100_batch3, _CIFAR),
    "ranet_imagenet_anytime": (ranet.ranet_imagenet_anytime, _IMAGENET),
    "ranet_imagenet_batch1": (ranet.ranet_imagenet_batch1, _IMAGENET),
    "digits_msdnet": (msdnet.digits_msdnet, _DIGITS),
}


class Own:
    """Source of the networks that the papers use and other libraries lack."""

    prefix = "adaptify"
    searchable = True

    def names(self) -> tuple[str, ...]:
        """All names, without the prefix."""
        return tuple(_NETWORKS)

    def knows(self, name: str) -> bool:
        """Whether `name` can be built."""
        return name in _NETWORKS

    def titles(self) -> Iterable[tuple[str, str]]:
        """Names of public files, which do not name the data set."""
        return ((name.removeprefix("cifar_"), name) for name in _NETWORKS)

    def defaults(self, name: str) -> Kwargs:
        """None: the constructors state their own."""
        return {}

    def variants(self, name: str) -> tuple[Kwargs, ...]:
        """Both kinds of shortcut, for a residual network."""
        return ({}, {"shortcut": "B"}) if "resnet" in name else ({},)

    def training_only(self, name: str) -> Kwargs:
        """None."""
        return {}

    def input(self, name: str, kwargs: Kwargs, file: str) -> InputSpec:
        """The images `name` was trained on in public checkpoints."""
        spec = _NETWORKS[name][1]
        return with_channels(spec, kwargs.get("in_channels", spec.channels))

    def build(self, name: str, kwargs: Kwargs) -> nn.Module:
        """Build the network with random weights."""
        return call(_NETWORKS[name][0], f"adaptify:{name}", kwargs)
