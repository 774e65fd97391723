"""What the package as a whole promises: who imports whom, what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adamas

ROOT = Path(adamas.__file__).parent
# Each may import those before it, of the package's own modules.
ALONE = ["equations", "bias", "rounding", "memory", "norm", "interrupts", "text"]
FRONT_ENDS = ["arraystate", "arraychecks", "arrays", "optimizers", "torch"]
ORDER = [*ALONE, "hyper", "formats", "footprint", "reference", "native", *FRONT_ENDS, "lab", "cli"]
HEAVY = {
    "torch",
    "sklearn",
    "pandas",
    "rich",
    "typer",
    "plotly",
    "safetensors",
    "scipy",
    "ml_dtypes",
    "triton",
    "optuna",
    "sqlalchemy",
}
MODULES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Absolute names of what a file imports, anywhere in it."""
    package = ["adamas", *path.relative_to(ROOT).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert part in ORDER or part.startswith("__"), f"say here whom {part} may import"
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "adamas" and rest and rest[0] in ORDER and not part.startswith("__"):
            assert rest[0] == part or part not in ALONE, f"{part} imports {name}"
            assert ORDER.index(rest[0]) <= ORDER.index(part), f"{part} imports {name}"
        if top in HEAVY:
            assert part in ("torch", "lab"), f"{part} imports {name}"
        if top == "triton":
            assert path.parent.name == "gpu", f"{path} imports {name}"


def test_import_needs_numpy_alone() -> None:
    code = "import sys, adamas; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not HEAVY & set(result.stdout.split())


def test_the_kernels_tests_are_skipped_without_triton() -> None:
    """As on systems that it is not built for: none of them fails to be collected."""
    folder = Path(__file__).parent / "gpu"
    code = "import sys, pytest; sys.modules['triton'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    options = "--collect-only", "-q", "-p", "no:cacheprovider"
    result = subprocess.run(
        [sys.executable, "-c", code, *options, folder], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
    assert "need Triton" in result.stdout


def test_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").exists()
    assert (ROOT / "_core.pyi").exists()


def test_the_stub_names_what_the_module_has() -> None:
    stub = ast.parse((ROOT / "_core.pyi").read_text())
    named = {n.name for n in stub.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    from adamas import _core

    assert named == {name for name in dir(_core) if not name.startswith("_")}
