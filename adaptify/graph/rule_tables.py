"""Which operation follows which rule. What is in no table is unknown: its channels are frozen."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from adaptify.graph import adapter_rules, rules
from adaptify.graph.adapters import ChannelGather, ChannelScatter
from adaptify.graph.propagation import Propagation, Rule


def find_rule(propagation: Propagation, node: fx.Node) -> Rule | None:
    """Return the rule for the operation of `node`, or None when it is unknown."""
    if node.op == "call_module":
        return _module_rule(propagation.root.get_submodule(str(node.target)))
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    return _FUNCTIONS.get(node.target) or _LIBRARY.get(_qualified(node.target))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Names that functions of torch and torch.nn.functional share with methods of tensors; the variants in place
# (relu_, add_) follow the same rules.
_SHARED: Mapping[Rule, tuple[str, ...]] = {
    rules.elementwise: _names("""
        relu relu6 gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu
        softplus softsign logsigmoid threshold tanhshrink hardshrink softshrink rrelu abs neg exp log
        log1p expm1 sqrt rsqrt square reciprocal sin cos erf clamp clamp_min clamp_max clip sign round
        floor ceil nan_to_num dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
        positive add sub mul div true_divide subtract multiply divide pow maximum minimum where lerp
        addcmul addcdiv rsub floor_divide remainder fmod eq ne lt gt le ge
    """),
    rules.move: _names("""
        view reshape flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t squeeze
        unsqueeze expand repeat chunk split unbind narrow select roll flip pixel_shuffle pixel_unshuffle
        channel_shuffle
    """),
    rules.window: _names("""
        max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d lp_pool2d interpolate upsample
    """),
    rules.reduce: _names("mean sum amax amin var std"),
    rules.along: _names("softmax log_softmax softmin normalize cumsum"),
    rules.same: tuple(rules.SAME),
}

_MODULES: Mapping[Rule, tuple[str, ...]] = {
    rules.convolution: _names("Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"),
    rules.linear: _names("Linear"),
    rules.per_channel: _names("""
        BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d
    """),
    rules.prelu: _names("PReLU"),
    rules.group_norm: _names("GroupNorm"),
    rules.layer_norm: _names("LayerNorm RMSNorm"),
    rules.along_module: _names("Softmax LogSoftmax Softmin"),
    rules.glu: _names("GLU"),
    rules.elementwise: _names("""
        Identity ReLU ReLU6 GELU SiLU Mish Sigmoid Tanh Hardswish Hardsigmoid Hardtanh LeakyReLU ELU SELU
        CELU Softplus Softsign LogSigmoid Threshold Tanhshrink Hardshrink Softshrink RReLU Dropout
        Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
    """),
    rules.window: _names("""
        MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d
        AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d LPPool2d Upsample
        UpsamplingNearest2d UpsamplingBilinear2d ZeroPad2d ConstantPad2d ReflectionPad2d ReplicationPad2d
    """),
    rules.move: _names("Flatten Unflatten PixelShuffle PixelUnshuffle ChannelShuffle"),
}

_LIBRARY: Mapping[str, Rule] = {
    "torchvision.ops.stochastic_depth.stochastic_depth": rules.elementwise,
    "torchvision.ops.stochastic_depth.StochasticDepth": rules.elementwise,
    "timm.layers.drop.DropPath": rules.elementwise,
    "timm.layers.drop.drop_path": rules.elementwise,
    "timm.layers.norm_act.BatchNormAct2d": rules.per_channel,
    "timm.layers.conv2d_same.Conv2dSame": rules.convolution,
}
"""Functions and modules of model libraries, by qualified name: nothing is imported for them."""


def _functions() -> dict[Any, Rule]:
    table: dict[Any, Rule] = {}
    for rule, names in _SHARED.items():
        for owner in (torch, F):
            for name in names:
                for variant in (name, f"{name}_"):
                    if hasattr(owner, variant):
                        table[getattr(owner, variant)] = rule
    arithmetic = _names("add sub mul truediv floordiv pow neg iadd isub imul itruediv eq ne lt gt le ge")
    table.update({getattr(operator, name): rules.elementwise for name in arithmetic})
    return table | {
        operator.getitem: rules.getitem,
        getattr: rules.get_attribute,
        torch.cat: rules.cat,
        torch.concat: rules.cat,
        torch.stack: rules.stack,
        torch.index_select: rules.index_select,
        F.pad: rules.pad,
        F.glu: rules.glu,
        F.layer_norm: rules.layer_norm,
        F.batch_norm: rules.functional_batch_norm,
    }


_FUNCTIONS: Mapping[Any, Rule] = _functions()
_METHODS: Mapping[str, Rule] = {
    **{variant: rule for rule, names in _SHARED.items() for name in names for variant in (name, f"{name}_")},
    **dict.fromkeys(("size", "dim", "ndimension"), rules.inspect),
}
_MODULE_TYPES: Mapping[type[nn.Module], Rule] = {
    **{getattr(nn, name): rule for rule, names in _MODULES.items() for name in names if hasattr(nn, name)},
    ChannelGather: adapter_rules.gather,
    ChannelScatter: adapter_rules.scatter,
}


def _module_rule(module: nn.Module) -> Rule | None:
    """The rule of a module by its exact type; a subclass, a hook or a parametrisation may do anything."""
    if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"):
        return None
    if any(_module_rule(child) is not rules.elementwise for child in module.children()):
        return None
    return _MODULE_TYPES.get(type(module)) or _LIBRARY.get(_qualified(type(module)))


def _qualified(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
