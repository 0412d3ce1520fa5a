"""The package as a whole: its public names, its weight, and how its parts agree."""

from __future__ import annotations

import ast
import doctest
import inspect
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import medimg
from medimg import errors

ROOT = Path(medimg.__file__).parent
HEAVY = ("torch", "torchvision", "monai", "SimpleITK", "pandas", "matplotlib", "pytorch_lightning", "sklearn")


@pytest.fixture(scope="module")
def said_by_another_process() -> list[str]:
    """A line each: a window that was pickled, what is loaded then, and what after reading is imported."""
    code = f"""
import pickle, sys
print(pickle.loads({pickle.dumps(medimg.Window(40, 400))!r}))
import medimg
print([m for m in {HEAVY!r} if m in sys.modules])
from medimg import read, scan
print([m for m in {HEAVY!r} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture
def unloaded() -> Iterator[None]:
    """Medimg is imported anew, as by a process that has not."""

    def take() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] == "medimg"]
        return {name: sys.modules.pop(name) for name in names}

    before = take()
    yield
    take()
    sys.modules.update(before)


@pytest.mark.parametrize("name", sorted(set(medimg.__all__)))
def test_every_public_name_exists_and_has_a_docstring(name: str) -> None:
    value = getattr(medimg, name)
    assert name == "__version__" or value.__doc__


def test_stub_and_package_export_the_same() -> None:
    tree = ast.parse((ROOT / "__init__.pyi").read_text())
    stub = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert stub | {"__version__"} == set(medimg.__all__)


def test_the_reference_names_everything_public() -> None:
    reference = (ROOT.parent / "docs" / "reference.rst").read_text()
    for name in set(medimg.__all__) - {"__version__"}:
        assert f":: {name}\n" in reference or f"medimg.{name}" in reference, name


def public_classes_and_functions() -> list[str]:
    return sorted(set(medimg.__all__) - {"__version__", "adapt", "errors", "export", "phantom"})


@pytest.mark.parametrize("name", public_classes_and_functions())
def test_public_names_belong_to_the_package(name: str) -> None:
    value = getattr(medimg, name)
    assert value.__module__ == "medimg"
    if inspect.isclass(value):
        assert repr(value) == f"<class 'medimg.{name}'>"
    assert pickle.loads(pickle.dumps(value)) is value


def test_public_names_are_found_by_processes_that_import_nothing(said_by_another_process: list[str]) -> None:
    assert said_by_another_process[0] == repr(medimg.Window(40, 400))


def test_doctests_of_public_names_are_collected_at_home() -> None:
    found = doctest.DocTestFinder().find(sys.modules[medimg.Window.apply.__module__])
    with_examples = {test.name for test in found if test.examples}
    assert any(name.startswith("medimg.core.window.Window") for name in with_examples)
    found = doctest.DocTestFinder().find(sys.modules["medimg"])
    assert not [test.name for test in found if test.examples]


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nothing_here"):
        medimg.nothing_here  # type: ignore[attr-defined]  # noqa: B018
    assert "read" in dir(medimg)


def test_importing_loads_nothing_heavy(said_by_another_process: list[str]) -> None:
    assert said_by_another_process[1] == "[]"


def test_reading_loads_neither_torch_nor_pandas(said_by_another_process: list[str]) -> None:
    assert said_by_another_process[2] == "[]"


@pytest.mark.usefixtures("unloaded")
def test_evaluate_is_a_function_whether_or_not_its_package_is_loaded() -> None:
    assert callable(medimg.evaluate)
    import_module("medimg.evaluation.evaluate")
    anew = import_module("medimg")
    assert anew is not medimg
    assert callable(anew.evaluate)
    assert callable(anew.split)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = str(errors.__doc__)
    for name in errors.__all__:
        assert name in drawn
        assert issubclass(getattr(errors, name), errors.MedimgError | UserWarning)
    assert issubclass(errors.WeightsUnavailableError, OSError)
    assert issubclass(errors.MissingDependencyError, ImportError)


def test_axes_are_flipped_in_one_place_only() -> None:
    for path in sorted((ROOT / "core").glob("*.py")) + sorted((ROOT / "io").rglob("*.py")):
        if path.name != "geometry.py":
            text = path.read_text()
            assert "np.flip" not in text, path
            assert "diag([-1" not in text, path


def test_nothing_pickles() -> None:
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        if "pickle" not in text and "torch.load" not in text:
            continue
        tree = ast.parse(text)
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        assert "pickle" not in names, path
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr == "load" and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords), path


def test_the_conda_recipe_needs_what_pyproject_needs() -> None:
    names = {"torch": "pytorch", "isal": "python-isal", "matplotlib": "matplotlib-base"}  # as on conda-forge
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    recipe = (ROOT.parent / "packaging" / "conda-forge" / "recipe.yaml").read_text()
    run = recipe.partition("  run:\n")[2].partition("\n\n")[0]
    found = {line.strip().removeprefix("- ") for line in run.splitlines()}
    needed = [re.match(r"([\w-]+)(.*)", text) for text in project["dependencies"]]
    expected = {f"{names.get(m[1], m[1].lower())} {m[2]}" for m in needed if m}
    assert found == expected | {"python >=${{ python_min }}"}
    assert project["requires-python"] == ">=" + recipe.partition('python_min: "')[2].partition('"')[0]
    assert f'version: "{medimg.__version__}"' in recipe
