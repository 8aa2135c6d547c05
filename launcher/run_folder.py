"""The layout of a run folder, and writes that a kill at any moment cannot tear.

RunFolder and StageFolder name every file that a run leaves behind; nothing else in Chorus spells these names.
JSON files are written beside their place, flushed to the disk and renamed. `events.jsonl` is only appended
to. A run folder is locked by one launcher at a time; the lock dies with its process.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from data.files import replacing
from launcher.errors import ConfigError

# The kinds of stages that train a model, for what must not wait for a recipe to be imported.
TRAINING_KINDS = ("self_supervised", "pretrain", "distill")
CHECKPOINT_NAME = re.compile(r"step-(\d{8})")
# Looking whether a folder is held (`RunFolder.holder`) holds it for an instant itself.
LOCK_ATTEMPTS = 5
LOCK_ATTEMPT_S = 0.1


def _lock_among_hosts(file: BinaryIO) -> None:
    """Take a lock that other hosts respect, if that is possible soon; a record is not worth waiting longer for."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            # Unlike flock, lockf reaches other hosts from every version of NFS.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            time.sleep(LOCK_ATTEMPT_S)
        except OSError:
            # This file system has no locks.
            return


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees either its old content or all of the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    write_text(path, f"{text}\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write a file of JSON lines atomically."""
    lines = []
    for row in rows:
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_json(path: Path) -> Any:
    """Read a JSON file; None when it does not exist, ValueError when another program tore it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


class StageFolder:
    """The files of one training or evaluation stage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.launcher_log = self.logs / "launcher.log"
        self.model = path / "model"
        self.heartbeats = path / "heartbeats"
        self.profile = path / "profile"
        self.stop_file = path / "stop"
        self.done_file = path / "done.json"
        self.launch_file = path / "launch.json"
        self.record_file = path / "set-aside.json"  # what state.json said of work that was set aside
        self.hostfile = path / "hostfile"
        self.wandb_file = path / "wandb.json"
        self.wandb = path / "wandb"
        self.tensorboard = path / "tensorboard"
        self.evaluation_file = path / "evaluation.json"

    def hypotheses_file(self, model: str) -> Path:
        """The reference and one model's hypothesis of each utterance of an evaluation."""
        return self.path / "hypotheses" / f"{model}.jsonl"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def export(self, step: int) -> Path:
        """Return where `chorus export` puts the model of a checkpoint unless it is told another place."""
        return self.path / "export" / f"step-{step:08d}"

    def units_file(self, teacher: str) -> Path:
        """The clusters of a teacher's states that a student predicts."""
        return self.path / "units" / f"{teacher}.safetensors"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank:02d}.log"

    def error_file(self, rank: int) -> Path:
        """The error that ended a process of the present attempt (processes/worker_error.py)."""
        return self.logs / f"error-{rank:02d}.json"

    def error_files(self) -> list[Path]:
        """Return the error files in place, by rank."""
        return sorted(self.logs.glob("error-*.json"))

    def heartbeat_file(self, rank: int) -> Path:
        return self.heartbeats / f"rank-{rank:02d}.json"

    def names(self) -> set[str]:
        """Return the names of what is in the folder, read anew.

        Listing it matters: a network file system remembers for a while that a file was not there.
        """
        if not self.path.is_dir():
            return set()
        return {path.name for path in self.path.iterdir()}

    def loss_file(self, rank: int) -> Path:
        """What the agent of another host leaves when a process there is gone."""
        return self.heartbeats / f"lost-{rank:02d}"

    def read_losses(self) -> set[int]:
        """Return the ranks whose hosts say that they are gone."""
        ranks = set()
        for path in self.heartbeats.glob("lost-*"):
            ranks.add(int(path.name.removeprefix("lost-")))
        return ranks

    def checkpoint_steps(self) -> list[int]:
        """Return the steps of the checkpoints in place, oldest first, whether intact or not."""
        if not self.checkpoints.is_dir():
            return []
        steps = []
        for entry in self.checkpoints.iterdir():
            match = CHECKPOINT_NAME.fullmatch(entry.name)
            if match:
                steps.append(int(match[1]))
        return sorted(steps)

    def read_heartbeats(self) -> list[dict[str, Any]]:
        """Return the last heartbeat of every rank: rank, pid, host, step, section, time."""
        heartbeats = []
        for path in sorted(self.heartbeats.glob("rank-*.json")):
            heartbeat = read_json(path)
            if heartbeat:
                heartbeats.append(heartbeat)
        return heartbeats


def is_folder(model: str) -> bool:
    """Whether a model is named by its folder (with a slash), not by the stage of this run that makes it."""
    return "/" in model


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.recipe_file = self.path / "recipe.yaml"
        self.state_file = self.path / "state.json"
        self.events_file = self.path / "events.jsonl"
        self.results_file = self.path / "results.json"
        self.report_file = self.path / "report.html"
        self.batch_script = self.path / "job.sbatch"
        self.node_commands_file = self.path / "nodes.txt"
        self.lock_file = self.path / "run.lock"
        self.token_file = self.path / ".token"  # by which its processes are known (processes/run_processes.py)
        self.tokenizer = self.path / "tokenizer"
        self.features_file = self.tokenizer / "features.json"
        self.statistics_file = self.path / "features.json"  # the same, for stages that have no tokenizer
        self.corpus = self.path / "corpus"

    def order_file(self, node: int) -> Path:
        """What a host is to do that nobody can log in to (processes/shared_folder.py)."""
        return self.path / "nodes" / f"node-{node:02d}.json"

    def token_counts_file(self, split: str) -> Path:
        """What the tokenizer makes of a split's transcripts, counted (data/token_counts.py)."""
        return self.tokenizer / f"counts-{split}.npz"

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.path / name)

    def model_folder(self, model: str) -> Path:
        """The folder of a finished model that is named by its path or by its stage."""
        if is_folder(model):
            return Path(model)
        return self.stage(model).model

    def append_event(self, event: str, **details: Any) -> None:
        """Append one line to events.jsonl: what happened, when (seconds since the epoch), and its details."""
        record = {"time": round(time.time(), 3), "event": event, **details}
        line = json.dumps(record, ensure_ascii=False)
        with self.events_file.open("ab+") as file:
            # Over NFS an append is a look for the end and then a write, between which another host may write; taking a
            # lock also makes the client look again. Closing the file gives it back.
            _lock_among_hosts(file)
            num_bytes = file.seek(0, os.SEEK_END)
            if num_bytes > 0:
                file.seek(-1, os.SEEK_END)
                # A kill cut the last line short. It stays a line of its own, which readers skip.
                if file.read(1) != b"\n":
                    line = f"\n{line}"
            # One write, so that lines of this host's processes do not mix where there are no locks.
            file.write(f"{line}\n".encode())

    def events(self) -> list[dict[str, Any]]:
        """Return the events so far; a line that a kill cut short, or that is no event, is skipped."""
        if not self.events_file.exists():
            return []
        events = []
        # Bytes: a cut in the middle of a character must not cost the other lines.
        for line in self.events_file.read_bytes().split(b"\n"):
            with suppress(ValueError):
                event = json.loads(line)
                # Lines of other programs are no events.
                if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                    continue
                if "time" in event:
                    events.append(event)
        return events

    def holder(self) -> int | None:
        """Return the process id of the launcher that holds the run folder, None when nobody does.

        A lock of the kernel's, not a file that exists: it ends with the process, whatever ended that.
        """
        try:
            with self.lock_file.open("r+", encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read().strip() or 0)
        except FileNotFoundError:
            pass
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder for this process; ConfigError naming the process that holds it already."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a+", encoding="utf-8") as file:
            is_locked = False
            for _ in range(LOCK_ATTEMPTS):
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    is_locked = True
                    break
                time.sleep(LOCK_ATTEMPT_S)
            if not is_locked:
                file.seek(0)
                raise ConfigError(
                    f"The run folder {self.path} is in use by process {file.read().strip()}. "
                    f"Wait for it, stop it (kill -TERM), or choose another folder with --run-dir."
                )
            # Mode a+ left the number of the process before this one in place, to name it.
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
