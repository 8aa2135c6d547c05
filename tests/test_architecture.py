"""The import rules that keep the rooms apart."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "data": ("model", "launcher", "deepspeed", "torch.distributed"),
    "model": ("data", "launcher", "deepspeed", "torch.distributed"),
    "launcher": (),
}
# Where DeepSpeed itself may be imported.
DEEPSPEED_ROOM = Path("launcher/training/parallel.py")


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no sources"
    return files


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_a_package_imports_only_what_its_layer_allows(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in sorted(imports(path))
        for forbidden in FORBIDDEN[package]
        if within(name, forbidden)
    ]
    assert wrong == []


def test_deepspeed_is_imported_in_one_file_only():
    users = [
        path.relative_to(ROOT)
        for package in FORBIDDEN
        for path in sources(package)
        if any(within(name, "deepspeed") for name in imports(path))
    ]
    assert users == [DEEPSPEED_ROOM]


def test_the_plan_reads_nothing_and_needs_no_torch():
    names = imports(ROOT / "data" / "plan.py")
    assert not any(within(name, package) for name in names for package in ("torch", "pathlib", "os", "io", "fsspec"))
