"""What holds for the whole tree: free imports, honest ``__all__``, readable sizes, no traces of one machine."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pyhisto", "qupath_ext")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MAX_LINES = 450
MAX_HELP_CPU_SECONDS = 0.3

HEAVY = {
    *("torch", "monai", "jpype", "paquo"),
    *("geopandas", "h5py", "matplotlib", "numba", "numpy", "openslide", "pandas", "pyarrow", "scipy", "shapely"),
    *("skimage", "sklearn", "tifffile"),
}

HELP = """
from qupath_ext.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def python(code: str) -> str:
    """Run code in a fresh interpreter and return the last line it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def loaded_by(code: str) -> set[str]:
    """Return the top-level names of all modules that are loaded after `code`."""
    report = "\nimport json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    return set(json.loads(python(code + report)))


def dotted(path: Path) -> str:
    """Return the name under which a file of the tree is imported."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def public_names(path: Path) -> list[str] | None:
    """Return ``__all__`` of a module as it is written there; None if it has none."""
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def has_public_names(path: Path) -> bool:
    """Return whether a module must list its public names: all do but packages that only hold modules."""
    body = ast.parse((ROOT / path).read_text("utf-8")).body
    return path.name != "__init__.py" or any(isinstance(node, ast.FunctionDef | ast.ImportFrom) for node in body)


def order(name: str) -> tuple[int, str]:
    """Sort key of ``__all__``: CONSTANTS, Classes, functions."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name.lstrip("_")[0].isupper() else 2
    return kind, name


def shipped_files() -> Iterator[Path]:
    """Yield the files under version control; those of the source folders where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        yield from (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    else:
        yield from (
            path for folder in (*PACKAGES, "tests", "scripts", "projects") for path in (ROOT / folder).rglob("*")
        )


@pytest.mark.parametrize("code", [f"import {package}" for package in PACKAGES])
def test_importing_a_package_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code) & (HEAVY | {"click"}) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ki67", "--help"], ["demo", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_by(HELP.format(arguments=arguments)) & HEAVY == set()


def test_help_takes_little_cpu_time() -> None:
    code = HELP.format(arguments=["--help"]) + "\nimport time; print(time.process_time())"
    assert min(float(python(code)) for _ in range(3)) < MAX_HELP_CPU_SECONDS


@pytest.mark.parametrize("module", [path for path in MODULES if has_public_names(path)], ids=dotted)
def test_public_names_are_listed_sorted_and_exist(module: Path) -> None:
    names = public_names(module)
    assert names is not None, "no __all__"
    assert names == sorted(set(names), key=order)
    found = importlib.import_module(dotted(module))
    assert [name for name in names if not hasattr(found, name)] == []


def test_modules_are_short_enough_to_read() -> None:
    lengths = {str(path): len((ROOT / path).read_text("utf-8").splitlines()) for path in MODULES}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()] == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    place = re.compile(rb"(?<![\w.>}])/(?:home|root|tmp|work|Users)/\w")
    found = [
        f"{path.relative_to(ROOT)}: {match.group().decode()}"
        for path in shipped_files()
        if path.is_file()
        for match in place.finditer(path.read_bytes())
    ]
    assert found == []
