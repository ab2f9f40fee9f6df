"""Imports run one way, jobs -> facelab -> models, and heavy libraries stay in the files that own them."""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FACELAB = ROOT / "platform" / "facelab"


def imports_of(file: Path) -> set[str]:
    """Top-level names that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def files_importing(name: str) -> set[str]:
    return {
        str(f.relative_to(ROOT))
        for f in [*FACELAB.rglob("*.py"), *(ROOT / "models").glob("*.py")]
        if name in imports_of(f)
    }


def test_models_import_only_torch():
    allowed = set(sys.stdlib_module_names) | {"torch", "torchvision", "models"}
    for file in (ROOT / "models").glob("*.py"):
        assert imports_of(file) <= allowed, file


def test_facelab_does_not_import_jobs():
    assert files_importing("jobs") == set()


def test_heavy_libraries_stay_where_they_belong():
    assert files_importing("ray") == {
        "platform/facelab/cluster.py",
        "platform/facelab/data/prepare.py",
        "platform/facelab/data/sample_set.py",
        "platform/facelab/evaluation/run.py",
        "platform/facelab/synthesis.py",
        "platform/facelab/training/ray_train.py",
        "platform/facelab/tuning.py",
    }
    assert files_importing("mlflow") == {"platform/facelab/tracking.py"}


def test_the_training_loop_needs_no_ray_nor_mlflow():
    code = "import facelab.training.worker, facelab.metrics, sys; assert not {'ray', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_platform_is_still_pythons_own():
    code = "import platform; assert platform.python_version(); import facelab, models"
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env={"PYTHONPATH": "platform:.", "PATH": "/usr/bin"}
    )


def test_platform_on_ray_workers(ray_local):
    import ray

    @ray.remote
    def version() -> str:
        import platform

        return platform.python_version()

    assert ray.get(version.remote()) == sys.version.split()[0]


@pytest.mark.parametrize("word", ["regis" + "try.local", "/wo" + "rk/", ".lib" + "rary"])
def test_nothing_of_a_workplace_is_named(word):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if (ROOT / name).suffix in (".py", ".md", ".toml", ".yaml", ".lock", "") and (ROOT / name).is_file():
            assert word not in (ROOT / name).read_text(errors="ignore"), name


def test_a_registered_model_asks_for_all_that_it_imports():
    """MLflow rebuilds an environment from MODEL_REQUIREMENTS alone: every import that facelab.trained.pyfunc runs is in it."""
    from facelab.tracking.runs import MODEL_REQUIREMENTS

    code = "import facelab.trained.pyfunc, sys; print(*(m for m in sys.modules if m.startswith(('facelab', 'models'))))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    names: set[str] = set()
    for module in loaded.split():
        place = (ROOT if module.startswith("models") else ROOT / "platform") / module.replace(".", "/")
        names |= imports_of(next(f for f in (place.with_suffix(".py"), place / "__init__.py") if f.exists()))
    names -= set(sys.stdlib_module_names) | {"facelab", "models"}
    distributions = {metadata.packages_distributions()[name][0].lower() for name in names}
    assert distributions <= set(MODEL_REQUIREMENTS) | {"mlflow"}
