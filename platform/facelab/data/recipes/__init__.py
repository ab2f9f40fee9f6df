"""How each dataset lies on disk."""

from collections.abc import Callable

from facelab.data.recipes import folder
from facelab.data.source import Source

RECIPES: dict[str, Callable[[str], Source]] = {"folder": folder.find}
"""Name -> what finds its images below a URI."""
