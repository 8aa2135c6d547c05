"""The import rules that keep the rooms apart."""

import ast
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "data": ("model", "launcher", "deepspeed", "torch.distributed"),
    "model": ("data", "launcher", "deepspeed", "torch.distributed"),
    "launcher": (),
    # A finished model is used without anything that trained it.
    "launcher/inference": ("launcher.training", "deepspeed"),
}
# Where DeepSpeed itself may be imported.
DEEPSPEED_FILES = {Path("launcher/training/parallel.py"), Path("launcher/training/expert_parallel.py")}
# Folders whose children (a folder or a file each) must not import each other in a circle.
FLOORS = ("data", "model", "launcher", "launcher/training")


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


def sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no sources"
    return files


def rooms(floor: str) -> dict[str, list[Path]]:
    """The sources of each child of a folder, by the child's dotted name; the folder's own __init__ is no child."""
    children: dict[str, list[Path]] = {}
    for path in sources(floor):
        child = path.relative_to(ROOT / floor).parts[0].removesuffix(".py")
        if child != "__init__":
            children.setdefault(f"{floor.replace('/', '.')}.{child}", []).append(path)
    return children


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_a_folder_imports_only_what_its_layer_allows(folder):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in sorted(imports(path))
        for forbidden in FORBIDDEN[folder]
        if within(name, forbidden)
    ]
    assert wrong == []


@pytest.mark.parametrize("floor", FLOORS)
def test_no_two_rooms_import_each_other_directly_or_through_others(floor):
    children = rooms(floor)
    needs: dict[str, set[str]] = {}
    for room, files in children.items():
        names = {name for path in files for name in imports(path)}
        needs[room] = {other for other in children if other != room and any(within(name, other) for name in names)}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' -> '.join(error.args[1])}")


def test_deepspeed_is_imported_by_the_engine_and_by_expert_parallelism_only():
    users = {
        path.relative_to(ROOT)
        for package in ("data", "model", "launcher")
        for path in sources(package)
        if any(within(name, "deepspeed") for name in imports(path))
    }
    assert users == DEEPSPEED_FILES


def test_the_sampler_reads_nothing_and_needs_no_torch():
    names = imports(ROOT / "data" / "sampling" / "sampler.py")
    assert not any(within(name, package) for name in names for package in ("torch", "pathlib", "os", "io", "fsspec"))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_git_ignores_no_source_file():
    """A name such as shards/ in .gitignore is that of a room too: a clone would lack it, and nothing here would say."""
    files = [str(path.relative_to(ROOT)) for folder in (*FLOORS[:3], "tests") for path in sources(folder)]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT,
        input="\n".join(files),
        text=True,
        capture_output=True,
    )
    assert ignored.stdout.splitlines() == []
