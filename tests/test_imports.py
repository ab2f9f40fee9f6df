"""Imports run one way, from the jobs down through the floors of facelab to the models; heavy libraries stay in the files
that own them."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FACELAB = ROOT / "platform" / "facelab"


# The house of facelab from the ground up: a room imports from the floors below it, never from its own or from above.
FLOORS = [
    {"errors", "seeding", "images", "filters", "submitted"},
    {"storage", "cluster", "version"},
    {"config"},
    {"tracking"},
    {"job"},
    {"data", "trained"},
    {"samples", "metrics"},
    {"synthesis", "training", "evaluation"},
    {"reports"},
    {"experiments", "submission"},
]
FILES = [*FACELAB.rglob("*.py"), *(ROOT / "models").glob("*.py")]


@cache
def modules_of(file: Path) -> set[str]:
    """Dotted names that a file imports anywhere, also inside functions; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports_of(file: Path) -> set[str]:
    """Their top-level names."""
    return {name.split(".")[0] for name in modules_of(file)}


def files_importing(name: str) -> set[str]:
    return {str(file.relative_to(ROOT)) for file in FILES if name in imports_of(file)}


def module_name(file: Path) -> str:
    base = ROOT if file.is_relative_to(ROOT / "models") else ROOT / "platform"
    return ".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Of facelab.data.source: data."""
    return module.split(".")[1]


def test_models_import_only_torch():
    allowed = set(sys.stdlib_module_names) | {"torch", "torchvision", "models"}
    for file in (ROOT / "models").glob("*.py"):
        assert imports_of(file) <= allowed, file


def test_facelab_does_not_import_jobs():
    assert files_importing("jobs") == set()


def test_every_room_stands_on_the_floors_below_it():
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {path.stem for path in FACELAB.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == floor.keys()
    for file in FACELAB.rglob("*.py"):
        if file.parent == FACELAB and file.stem == "__init__":
            continue
        own = room_of(module_name(file))
        for name in modules_of(file):
            if name.startswith("facelab.") and (other := room_of(name)) in floor and other != own:
                assert floor[other] < floor[own], f"{file.relative_to(ROOT)} imports {name}"


def test_no_files_import_each_other_in_a_circle():
    files = {module_name(file): file for file in FILES}
    graph = {name: {other for other in modules_of(file) if other in files} - {name} for name, file in files.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names it


def test_every_room_says_in_a_phrase_what_it_is_for():
    for place in (file for file in FACELAB.rglob("__init__.py") if file.parent != FACELAB):
        phrase = (ast.get_docstring(ast.parse(place.read_text())) or "").partition(". ")[0]
        assert re.fullmatch(r"[A-Z][^.\n]{9,60}\.?", phrase), place
        assert " and " not in phrase, place


def test_an_import_inside_a_function_says_why():
    for file in FILES:
        lines = file.read_text().splitlines()
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for node in ast.walk(function):
                    if isinstance(node, (ast.Import, ast.ImportFrom)):
                        assert "  # " in lines[node.lineno - 1], f"{file.relative_to(ROOT)}:{node.lineno}"


def test_heavy_libraries_stay_where_they_belong():
    assert files_importing("ray") == {
        "platform/facelab/cluster.py",
        "platform/facelab/data/work.py",
        "platform/facelab/experiments/graph.py",
        "platform/facelab/experiments/trial_steps.py",
        "platform/facelab/experiments/tuning.py",
        "platform/facelab/submission/client.py",
        "platform/facelab/submission/probe.py",
        "platform/facelab/submission/submit.py",
        "platform/facelab/training/ray_train.py",
    }
    assert {Path(name).parent.name for name in files_importing("mlflow")} == {"tracking"}
    assert files_importing("boto3") | files_importing("botocore") | files_importing("s3fs") == {
        "platform/facelab/storage.py"
    }
    assert files_importing("unittest") == set()


def test_heavy_libraries_are_loaded_by_who_needs_them():
    """The training loop needs no Ray nor MLflow; no job waits for torchvision before it looks through its networks."""
    jobs = ", ".join(f"jobs.{file.stem}" for file in (ROOT / "jobs").glob("[a-z]*.py"))
    code = (
        "import facelab.training.launch, facelab.trained.store, facelab.metrics, sys;"
        "assert not {'ray', 'mlflow'} & set(sys.modules);"
        f"import {jobs};"
        "assert 'torchvision' not in sys.modules"
    )
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
    """MLflow rebuilds an environment from MODEL_REQUIREMENTS alone: every import that facelab.trained.pyfunc runs is in
    it, and nothing else."""
    from facelab.tracking.registry import MODEL_REQUIREMENTS

    code = "import facelab.trained.pyfunc, sys; print(*(m for m in sys.modules if m.startswith(('facelab', 'models'))))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    names: set[str] = set()
    for module in loaded.split():
        place = (ROOT if module.startswith("models") else ROOT / "platform") / module.replace(".", "/")
        names |= imports_of(next(f for f in (place.with_suffix(".py"), place / "__init__.py") if f.exists()))
    names -= set(sys.stdlib_module_names) | {"facelab", "models"}
    distributions = {metadata.packages_distributions()[name][0].lower() for name in names}
    assert distributions == set(MODEL_REQUIREMENTS)
