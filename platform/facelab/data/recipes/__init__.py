"""How each dataset lies on disk."""

from facelab.data.recipes.folder import Folder
from facelab.data.recipes.recipe import Recipe

RECIPES: dict[str, type[Recipe]] = {"folder": Folder}
"""Name -> what finds its images below a URI."""
