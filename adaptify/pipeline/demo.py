"""`demo`: the whole way on the embedded digits: train a small network, retrofit it, report."""

from __future__ import annotations

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from adaptify.data import Split, open_data
from adaptify.errors import UsageError
from adaptify.files import atomic_write
from adaptify.models.registry import resolve
from adaptify.progress import SILENT, Progress

ARCHITECTURE = "adaptify:digits_resnet"
DATA = "digits"
_EPOCHS = 20
_BATCH = 64


def train_digits(
    checkpoint: Path, *, seed: int = 0, force: bool = False, progress: Progress = SILENT
) -> float:
    """Train a small residual network on the embedded digits and save its state dict.

    Returns:
        Its accuracy on the test digits, in [0, 1].

    Raises:
        UsageError: The file is there already.
        AdaptifyError: It cannot be written.
    """
    if checkpoint.exists() and not force:
        raise UsageError(f"{checkpoint} is there already", "Choose another --output, or use --force.")
    architecture = resolve(ARCHITECTURE)
    data = open_data(DATA, input=architecture.input, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = _EPOCHS * -(-len(data.train) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    model.train()
    with progress.stage("train a network on digits", total=_EPOCHS) as stage:
        for epoch in range(_EPOCHS):
            for images, labels in data.train.batches(_BATCH, shuffle=True, augment=True, seed=seed + epoch):
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            stage.advance(loss=loss.item())
    content = io.BytesIO()  # torch's own writer of files hides what the system says about a full disk
    torch.save(model.state_dict(), content)
    with atomic_write(checkpoint) as temporary:
        temporary.write_bytes(content.getbuffer())
    return accuracy(model, data.test)


def accuracy(model: nn.Module, split: Split) -> float:
    """Top-1 accuracy of a plain network on `split`, in [0, 1]."""
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in split.batches(256))
    return right / len(split)
