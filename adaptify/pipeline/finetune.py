"""Training a pruned network on."""

from __future__ import annotations

from adaptify.data import Data
from adaptify.methods import FitContext
from adaptify.pipeline.folder import FINETUNE
from adaptify.recipe import Recipe
from adaptify.runtime.adaptive import AdaptiveModel
from adaptify.training.history import History
from adaptify.training.loop import train
from adaptify.training.objective import Classification, Distillation
from adaptify.training.options import LoopOptions


def train_on(
    model: AdaptiveModel,
    teacher: AdaptiveModel,
    data: Data,
    recipe: Recipe,
    context: FitContext,
    gates: History | None,
) -> History | None:
    """Train the pruned network for the epochs that were asked for, and take BatchNorm's statistics anew.

    Args:
        model: The pruned network, trained in place.
        teacher: The network before, to distil from.
        data: The images.
        recipe: The settings.
        context: Where and how to train.
        gates: The training of the gates that chose what was pruned, if there was one.

    Returns:
        The training; None if there is nothing to do.
    """
    if not isinstance(recipe.train, LoopOptions):
        return None
    options = LoopOptions.model_validate(
        recipe.train.model_dump(include=set(LoopOptions.model_fields)) | {"epochs": recipe.prune.finetune}
    )
    if not options.epochs and not options.recalibrate:
        return None
    distillation = None
    if options.distill is not None:
        distillation = Distillation.of(options.distill, teacher, context.device)
    # The metrics of gates that were trained before have a file of their own.
    beside = gates is not None and gates.rows and options.epochs
    return train(
        model,
        data,
        options,
        objective=Classification(options.label_smoothing, distillation),
        device=context.device,
        seed=context.seed,
        folder=context.folder / FINETUNE if beside else context.folder,
        states=context.states_of("finetune"),
        batch_size=context.batch_size,
        progress=context.progress,
    )
