"""What `pip install` brings: the built file alone, tried from a folder where no checkout is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data/", "launcher/", "model/", "ds_configs/")
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE")

# The sources of a release have no git, and a wheel of them is built by whoever packs them.
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    names = listed.decode().split("\0")
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of what is tracked: what else lies about a checkout must not be what makes it work."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        if name.startswith(PACKAGES + BUILD_FILES):
            target = folder / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder, folder / "tree"], check=True, timeout=300)
    shutil.rmtree(folder / "tree")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel):
    """A folder with the wheel's content, as pip lays it out."""
    site = wheel.parent / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    subprocess.run([*pip, wheel], check=True, timeout=300)
    return site


def test_every_file_of_the_packages_is_in_the_wheel_and_none_of_the_tests(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert packed == {name for name in tracked_files() if name.startswith(PACKAGES)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--version"], "chorus "),
        (["plan", "mini"], "student"),
        (["new", "talks", "--like", "mini"], "recipe of your own"),
    ],
)
def test_the_built_file_works_where_no_checkout_is(installed, arguments, said, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    program = "import sys, launcher.cli; print(launcher.cli.__file__); sys.exit(launcher.cli.main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", program, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    # Not from the checkout, which the developers' environment has too.
    assert done.stdout.startswith(str(installed))


def test_the_installed_command_is_ours(installed):
    script = (installed / "bin" / "chorus").read_text()
    assert "from launcher.cli import main" in script
