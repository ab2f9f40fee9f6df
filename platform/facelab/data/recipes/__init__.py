"""How each dataset lies on disk."""

from collections.abc import Callable

from facelab.data.recipes.folder import find as folder
from facelab.data.source import Source

RECIPES: dict[str, Callable[[str], Source]] = {"folder": folder}
"""Name -> what finds its images below a URI."""
