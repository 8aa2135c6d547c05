"""Every command, with something else in the place of each file that it reads: exit 0, or one paragraph and its code."""

import itertools
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from made_shards import some_speech, write_set
from run_folders import write_run
from small_models import KINDS, write_small_model
from small_runs import recipe_values

from launcher.cli import main
from launcher.errors import ConfigError
from launcher.executor import Executor
from launcher.recipe import dump, load_recipe
from launcher.run_folder import RunFolder, write_text

LIMIT_S = 120
# Above what this process has mapped: libraries map much, and a file of holes is mapped whole.
MEMORY_BYTES = 4 * 2**30
HOLES_BYTES = 2**45

COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "status": lambda root: ["status", f"{root}/run"],
    "compare": lambda root: ["compare", f"{root}/run", "--out", f"{root}/out.md"],
    "sync": lambda root: ["sync", f"{root}/run"],
    "models": lambda root: ["models", f"{root}/run"],
    "plan": lambda root: ["plan", f"{root}/small.yaml", "--run-dir", f"{root}/new"],
    "run": lambda root: ["run", f"{root}/small.yaml", "--run-dir", f"{root}/new"],
    "submit": lambda root: ["submit", f"{root}/small.yaml", "--to", "slurm", "--run-dir", f"{root}/new", "--dry-run"],
    "publish": lambda root: ["publish", f"{root}/run/student", "--dry-run", "--out", f"{root}/published"],
    "export": lambda root: ["export", f"{root}/model", "--format", "huggingface", "--out", f"{root}/exported"],
    "evaluate": lambda root: ["evaluate", f"{root}/model", f"{root}/list.jsonl", "--out", f"{root}/evaluated"],
    "pseudo-label": lambda root: ["pseudo-label", f"{root}/set", "--model", f"{root}/model", "--out", f"{root}/made"],
    "transcribe": lambda root: ["transcribe", f"{root}/model", f"{root}/a.wav", "--out", f"{root}/texts"],
    "serve": lambda root: ["serve", f"{root}/model", "--port", "0"],
    "verify": lambda root: ["shards", "verify", f"{root}/set"],
    "stats": lambda root: ["shards", "stats", f"{root}/set"],
    "play": lambda root: ["shards", "play", f"{root}/set", "test/u000", "--out", f"{root}/played.wav"],
    "reshard": lambda root: ["shards", "reshard", f"{root}/set", "--out", f"{root}/other", "--shard-seconds", "5"],
    "merge": lambda root: ["shards", "merge", *[f"{root}/set"] * 2, "--prefixes", "a,b", "--out", f"{root}/merged"],
}
RUN = ("run/recipe.yaml", "run/state.json", "run/events.jsonl", "run/teacher/metrics.jsonl", "run/student/model")
MODEL = tuple(f"model/{name}" for name in ("model.json", "model.safetensors", "features.json", "tokenizer"))
TOKENIZER = ("model/tokenizer/tokenizer.json", "model/tokenizer/tokenizer.model")
SET = ("set", *(f"set/test/{name}" for name in ("index.npz", "shards.json", "transcripts.jsonl", "shard-000000.tar")))
FILES: dict[str, tuple[str, ...]] = {
    "status": RUN,
    "compare": ("run/recipe.yaml", "run/state.json", "run"),
    "sync": ("run/state.json", "run/teacher/wandb", "run"),
    "models": RUN,
    "plan": ("small.yaml", "new/state.json", "new"),
    "run": ("small.yaml", "new/state.json", "new/recipe.yaml", "new/run.lock", "new", *SET),
    "submit": ("small.yaml", "new/job.sbatch", "new"),
    "publish": ("run/recipe.yaml", "run/state.json", "run/student/model/model.json"),
    "export": (*MODEL, *TOKENIZER),
    "evaluate": ("list.jsonl", "a.wav", *MODEL),
    "pseudo-label": (*SET, *MODEL, "made"),
    "transcribe": (*MODEL, *TOKENIZER, "a.wav"),
    "serve": (*MODEL, *TOKENIZER),
    "verify": SET,
    "stats": SET,
    "play": (*SET, "played.wav"),
    "reshard": (*SET, "other"),
    "merge": SET,
}
PLANTED = ("pipe", "folder", "device", "circle", "holes", "bytes", "nothing", "link")
CASES = [(command, file) for command, files in FILES.items() for file in files]
# Each file with one thing in the default run, and over all of them each thing many times.
SAMPLE = [(*case, kind) for case, kind in zip(CASES, itertools.cycle(PLANTED), strict=False)]
REST = [(*case, kind) for case in CASES for kind in PLANTED if (*case, kind) not in SAMPLE]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, a model, a set of shards, a recipe, a list and a recording, all as they should be."""
    root = tmp_path_factory.mktemp("whole")
    for split, prefix in (("test", "u"), ("train", "t")):
        write_set(root / "set" / split, some_speech(3, prefix))
    write_small_model(root / "model", next(iter(KINDS)))
    run = write_run(root / "run", stages=("teacher", "student"), done=100)
    shutil.rmtree(run.stage("student").model)
    shutil.copytree(root / "model", run.stage("student").model)
    write_text(run.recipe_file, dump(load_recipe("mini")))
    (root / "small.yaml").write_text(yaml.safe_dump(recipe_values(Path("set"))))
    (root / "list.jsonl").write_text('{"audio": "a.wav", "text": "a b"}\n')
    shutil.copy(root / "set/recordings-test/u000.wav", root / "a.wav")
    # A run that has not begun: whatever lies there was planted.
    (root / "new").mkdir()
    assert RunFolder(root / "run").state_file.is_file()
    return root


def plant(path: Path, kind: str, elsewhere: Path) -> None:
    """Put something else in the place of a file or folder, or where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
            (path / "file").write_text("{}")
        case "device":
            path.symlink_to("/dev/zero")
        case "circle":
            path.symlink_to(path.name)
        case "holes":
            with path.open("wb") as file:
                # As much as the file system takes: some end at 16 TiB.
                for num_bytes in (HOLES_BYTES, HOLES_BYTES // 4, HOLES_BYTES // 1024):
                    try:
                        file.truncate(num_bytes)
                        break
                    except OSError:
                        continue
        case "bytes":
            path.write_bytes(bytes(range(256)) * 20)
        case "link":
            path.symlink_to(elsewhere)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bounds of time and memory on this process while a command runs in it."""

    def fail(*_: object) -> None:
        raise AssertionError("it was waited for")

    uvicorn = pytest.importorskip("uvicorn")
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    before = signal.signal(signal.SIGALRM, fail)
    old_limits = resource.getrlimit(resource.RLIMIT_AS)
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + MEMORY_BYTES, old_limits[1]))
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, old_limits)
    signal.signal(signal.SIGALRM, before)


def refuse(*_: object) -> None:
    raise ConfigError("A stage would begin now.")


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(
    ("command", "file", "kind"), [*SAMPLE, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)]
)
def test_a_command_ends_with_success_or_one_paragraph_whatever_lies_in_the_place_of_a_file(
    whole: Path,
    tmp_path: Path,
    command: str,
    file: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "work"
    shutil.copytree(whole, root, symlinks=True)
    victim = tmp_path / "victim"
    victim.write_text("before")
    plant(root / file, kind, victim)
    # Paths of its recipe are from here; and nothing that belongs to a run is started.
    monkeypatch.chdir(root)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(Executor, "_perform", refuse)
    capsys.readouterr()

    code = main(COMMANDS[command](str(root)))

    said = capsys.readouterr().err.strip()
    assert code in (0, 2, 3, 4)
    if code in (2, 4):
        assert "chorus: " in said
        paragraph = said[said.rindex("chorus: ") :]
        assert "\n\n" not in paragraph
        assert len(paragraph) < 3000
    assert victim.read_text() == "before"
