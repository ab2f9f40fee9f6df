"""How each dataset lies on disk. docs/datasets.md says how to use them."""

from facelab.data.recipes.aflw import Aflw
from facelab.data.recipes.archive import Tar, Zip
from facelab.data.recipes.celeba import CelebA
from facelab.data.recipes.folder import Folder
from facelab.data.recipes.lfw import Lfw
from facelab.data.recipes.ls3d_w import Ls3dW
from facelab.data.recipes.parquet import Parquet
from facelab.data.recipes.recipe import Recipe
from facelab.data.recipes.vggface2 import VggFace2
from facelab.data.recipes.webdataset import WebDataset
from facelab.data.recipes.wider_face import WiderFace

RECIPES: dict[str, type[Recipe]] = {
    "folder": Folder,
    "vggface2": VggFace2,
    "celeba": CelebA,
    "aflw": Aflw,
    "ls3d_w": Ls3dW,
    "wider_face": WiderFace,
    "lfw": Lfw,
    "zip": Zip,
    "tar": Tar,
    "webdataset": WebDataset,
    "parquet": Parquet,
}
"""Name -> what finds its images below a URI, with the options it has."""
