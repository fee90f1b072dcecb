"""Puts the folder `recipes` into the package, as `adaptify/recipes`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["adaptify*"]), "adaptify.recipes"],
    package_dir={"adaptify.recipes": "recipes"},
)
