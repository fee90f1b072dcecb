"""How a network is trained: the settings that all methods with a training loop share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from adaptify.settings import Section

_Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Finite(Section):
    model_config = ConfigDict(allow_inf_nan=False)


class Schedule(_Finite):
    """How the learning rate changes from optimizer step to optimizer step.

    Attributes:
        kind: `constant`; `multistep`, times `gamma` at each milestone; `cosine`, down to 0 along half a
            period; `exponential`, smoothly down to `gamma` times the rate at the end of the run.
        milestones: Fractions of the run, for `multistep`.
        gamma: The factor of `multistep` and `exponential`.
        warmup: Epochs in which the rate rises linearly first.
    """

    kind: Literal["constant", "multistep", "cosine", "exponential"] = "cosine"
    milestones: tuple[_Fraction, ...] = (0.5, 0.75)
    gamma: float = Field(default=0.1, gt=0, le=1)
    warmup: float = Field(default=0.0, ge=0)


class Distill(_Finite):
    """Learning from what the untouched checkpoint says (Hinton et al., 2015).

    Attributes:
        weight: Factor of the distillation term.
        temperature: T: both distributions are softened by dividing their logits by it.
    """

    weight: float = Field(gt=0)
    temperature: float = Field(gt=0)


class LoopOptions(_Finite):
    """The `train` section of methods that train the network.

    Attributes:
        epochs: Passes over the training images; 0 trains nothing.
        batch_size: Images in one forward pass, of all processes together where several share the work.
        optimizer: `sgd` or `adamw`.
        lr: Learning rate that the schedule scales.
        momentum: Of SGD.
        nesterov: Whether SGD looks ahead.
        weight_decay: L2 penalty for SGD, decoupled decay for AdamW.
        decay_vectors: Whether weight decay acts on biases and the parameters of normalisation too.
        gate_lr: Learning rate of gates; None: `lr`.
        schedule: How the learning rates change.
        label_smoothing: Share of the target that is spread over all classes.
        ema: Decay of an exponential moving average of the weights, per step, that is used in place of them.
        clip: Largest norm of the gradient of all parameters.
        bf16: Whether to compute in bfloat16 where that is safe (autocast).
        channels_last: Whether to store images and filters channel by channel; quicker for convolutions.
        compile: Whether to compile the network with `torch.compile`.
        accumulate: Batches whose gradients make one step.
        micro_batches: Parts in which a batch goes through the network, one after the other, for the same step
            with less memory. What looks at a whole batch (BatchNorm, what gates are to spend) sees one part.
        augment: Whether to change the training images at random.
        distill: Learning from the untouched checkpoint; None: from the labels alone.
        recalibrate: Batches from which the statistics of BatchNorm are taken anew when training is done
            (at most one pass over the training images); 0 leaves them as they are.
        keep: Weights of the `last` epoch, or of the one that was `best` on held-out images.
        tensorboard: Whether to write the metrics for TensorBoard too.
    """

    epochs: int = Field(default=10, ge=0)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_vectors: bool = True
    gate_lr: float | None = Field(default=None, gt=0)
    schedule: Schedule = Schedule()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    ema: float | None = Field(default=None, gt=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    bf16: bool = False
    channels_last: bool = True
    compile: bool = False
    accumulate: int = Field(default=1, ge=1)
    micro_batches: int = Field(default=1, ge=1)
    augment: bool = True
    distill: Distill | None = None
    recalibrate: int = Field(default=200, ge=0)
    keep: Literal["last", "best"] = "last"
    tensorboard: bool = False
