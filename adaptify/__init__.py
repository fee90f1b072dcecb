"""adaptify makes a pretrained network spend less compute."""

from adaptify.version import VERSION

__version__ = VERSION

__all__ = ["__version__"]
