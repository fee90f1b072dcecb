"""Bringing images to the input size: scale until they cover it, then cut out the centre.

The geometry is torchvision's `Resize` and `CenterCrop`; an image that has the input size already
is left exactly as it is. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from adaptify.input_spec import InputSpec


def scaled_size(height: int, width: int, input: InputSpec) -> tuple[int, int]:
    """Size to which an image of (height, width) is scaled before the centre crop.

    The shorter side becomes `input.resize`, or more where the input would not be covered. Without
    `input.resize` the image is scaled straight to the input size.
    """
    if input.resize is None or (height, width) == (input.height, input.width):
        return input.height, input.width
    short = min(height, width)
    scaled = (height * input.resize // short, width * input.resize // short)
    if scaled[0] >= input.height and scaled[1] >= input.width:
        return scaled
    factor = max(input.height / height, input.width / width)
    return max(round(height * factor), input.height), max(round(width * factor), input.width)


def crop_offset(height: int, width: int, input: InputSpec) -> tuple[int, int]:
    """Top and left of the centre crop of the input's size in a scaled image."""
    return round((height - input.height) / 2), round((width - input.width) / 2)


def fit_image(image: Image.Image, size: tuple[int, int], input: InputSpec) -> Image.Image:
    """Scale `image` to `size` (bilinear, antialiased) and cut out the centre of the input's size."""
    height, width = size
    if (image.height, image.width) != size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if size == (input.height, input.width):
        return image
    top, left = crop_offset(height, width, input)
    return image.crop((left, top, left + input.width, top + input.height))


def fit_batch(images: Tensor, input: InputSpec) -> Tensor:
    """The same for a batch of float images: (B, C, h, w) to (B, C, H, W)."""
    height, width = scaled_size(images.shape[2], images.shape[3], input)
    if (height, width) != tuple(images.shape[2:]):
        images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    top, left = crop_offset(height, width, input)
    return images[:, :, top : top + input.height, left : left + input.width].contiguous()
