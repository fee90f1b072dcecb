"""Recipes: everything a run needs to be made again, as checked settings.

A recipe is a YAML file with the sections of `schema`. Settings come from the defaults, then the file, then
the command line's options, then its `key=value` words.
"""

from adaptify.recipe.resolution import check, dump_recipe, resolve, resolve_settings, write_recipe
from adaptify.recipe.schema import (
    CalibrateSection,
    DataSection,
    ModelSection,
    Recipe,
    known_keys,
    recipe_type,
)
from adaptify.recipe.source import read_settings

__all__ = [
    "CalibrateSection",
    "DataSection",
    "ModelSection",
    "Recipe",
    "check",
    "dump_recipe",
    "known_keys",
    "read_settings",
    "recipe_type",
    "resolve",
    "resolve_settings",
    "write_recipe",
]
