"""Recipes: merges written down as YAML, in merganser's own form or in mergekit's."""

from merganser.recipe.build import as_saved, before_steps, build
from merganser.recipe.experts import Mixture
from merganser.recipe.form import Model, Recipe, load

__all__ = ["Mixture", "Model", "Recipe", "as_saved", "before_steps", "build", "load"]
