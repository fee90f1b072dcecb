"""Architectures: those of this project, torchvision, timm and the user, behind one kind of name."""

from adaptify.models.registry import Architecture, names, resolve

__all__ = ["Architecture", "names", "resolve"]
