"""The layout of a run folder, and writes that a kill at any moment cannot tear.

RunFolder and StageFolder name every file that a run leaves behind; nothing else in Chorus spells these names.
JSON files are written beside their place, flushed to the disk and renamed. `events.jsonl` is only appended
to. A run folder is locked by one launcher at a time; the lock dies with its process.
"""

import errno
import fcntl
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data import files
from data.redaction import redact
from launcher.errors import ConfigError
from launcher.run_links import check_links

# The kinds of stages that train a model, for what must not wait for a recipe to be imported.
TRAINING_KINDS = ("self_supervised", "pretrain", "distill", "adapt")
CHECKPOINT_NAME = re.compile(r"step-(\d{8})")
# Of a checkpoint's folder: the file that is written last, and says which others belong to it.
CHECKPOINT_MANIFEST = "manifest.json"
HEARTBEAT_NAME = re.compile(r"rank-(\d+)\.json")
MAX_HEARTBEAT_BYTES = 2**16
MAX_COUNT = 2**63 - 1
# What the system's calls take; Linux gives numbers up to 2^22.
MAX_PROCESS_ID = 2**31 - 1
MAX_EVENT_BYTES = 2**22
# A run of weeks writes some megabytes.
MAX_EVENTS_BYTES = 2**30
PROCESS_ID_BYTES = 20
# The steps that events of these names carry; the last two are names of earlier versions.
EVENT_STEPS = {
    "update_skipped": ("step",),
    "rolled_back": ("step", "to_step"),
    "update_left_out": ("step",),
    "weights_taken_back": ("step", "to_step"),
}
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


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a file so that a reader sees either its old content or all of the new one; `private`: this user alone."""
    with files.replacing(path) as temporary:
        if private:
            temporary.chmod(0o600)
        # What is no UTF-8 in the name of a file becomes the escape that JSON has for it.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    write_text(path, f"{text}\n", private)


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write a file of JSON lines atomically."""
    lines = []
    for row in rows:
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_json(path: Path) -> Any:
    """Read a JSON file; None when it does not exist, ValueError when another program tore it."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        return None


def open_no_link(path: Path) -> BinaryIO:
    """Open a file of a run to append to and to read, made where there is none; ConfigError when it is a link, or no
    regular file.

    A folder from somebody else may hold links, through which other files of this user would be written.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ConfigError(
            f"{path} is a link, which a run's own file never is: writing to it would change a file elsewhere. Remove "
            "the link, and look who put it there."
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path} is a pipe or a device, which a run's own file never is. Remove it.")
    return os.fdopen(descriptor, "ab+")


def is_event(event: Any) -> bool:
    """Whether a line of events.jsonl is one of ours, with the numbers that are computed with; others are skipped."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or not is_number(event.get("time")):
        return False
    if not isinstance(event.get("stage", ""), str):
        return False
    return all(is_count(event.get(key)) for key in EVENT_STEPS.get(event["event"], ()))


@dataclass(frozen=True)
class _ReadHeartbeat:
    """What a heartbeat file held, and which writing of it that was."""

    version: tuple[int, int, int]
    record: Any


def _is_heartbeat(record: Any, rank: int) -> bool:
    """Whether a file holds the heartbeat of that rank, and not what another program left under its name."""
    if not isinstance(record, dict) or record.get("rank") != rank:
        return False
    for key, kind in {"pid": int, "host": str, "step": int, "section": str}.items():
        if type(record.get(key)) is not kind:
            return False
    if not is_count(record["step"]):
        return False
    if type(record.get("exit_code", 0)) is not int:
        return False
    return 0 < record["pid"] <= MAX_PROCESS_ID


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number; a truth value is none."""
    # JSON has whole numbers beyond those that can be computed with.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_count(value: Any) -> bool:
    """Whether a value of JSON is a number of steps, or of anything else that is counted."""
    return type(value) is int and 0 <= value <= MAX_COUNT


class StageFolder:
    """The files of one training or evaluation stage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.latest_file = self.checkpoints / "latest"  # the name of the newest checkpoint
        self.logs = path / "logs"
        self.launcher_log = self.logs / "launcher.log"
        self.model = path / "model"
        self.adapter = path / "adapter"  # what an adaptation changed of its base
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
        self._read_heartbeats: dict[str, _ReadHeartbeat] = {}

    def hypotheses_file(self, model: str) -> Path:
        """The reference and one model's hypothesis of each utterance of an evaluation."""
        return self.path / "hypotheses" / f"{model}.jsonl"

    @property
    def hardest_file(self) -> Path:
        """The hardest utterances of an evaluation, with audio and word times (inference/analysis.py)."""
        return self.path / "analysis" / "hardest.json"

    def experts_file(self, model: str) -> Path:
        """What the experts of an evaluated model were chosen for."""
        return self.path / "analysis" / "experts" / f"{model}.json"

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

    def quarantine_file(self, rank: int) -> Path:
        """The utterances that a process passed over (quarantine.py)."""
        return self.logs / f"quarantined-{rank:02d}.jsonl"

    def quarantine_files(self) -> list[Path]:
        """Return those of all processes, by rank."""
        return sorted(self.logs.glob("quarantined-*.jsonl"))

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
            rank = path.name.removeprefix("lost-")
            # Not int() of anything: a file of another name is nobody's loss.
            if re.fullmatch("[0-9]{2,7}", rank):
                ranks.add(int(rank))
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
        """Return the last heartbeat of every rank: rank, pid, host, step, section, time.

        One listing says which files are new; the others are not opened again. Hundreds of processes are looked at
        several times a second, and each writes about once.
        """
        if not self.heartbeats.is_dir():
            return []
        heartbeats: dict[str, _ReadHeartbeat] = {}
        with os.scandir(self.heartbeats) as entries:
            for entry in entries:
                match = HEARTBEAT_NAME.fullmatch(entry.name)
                if match is None or entry.name != self.heartbeat_file(int(match[1])).name:
                    continue
                with suppress(OSError, ValueError):
                    status = entry.stat()
                    # Each heartbeat is a new file under the same name.
                    version = (status.st_ino, status.st_mtime_ns, status.st_size)
                    heartbeat = self._read_heartbeats.get(entry.name)
                    if heartbeat is None or heartbeat.version != version:
                        record = files.read_json(Path(entry.path), MAX_HEARTBEAT_BYTES)
                        heartbeat = _ReadHeartbeat(version, record)
                    if _is_heartbeat(heartbeat.record, int(match[1])):
                        heartbeats[entry.name] = heartbeat
        self._read_heartbeats = heartbeats
        records = [heartbeat.record for heartbeat in heartbeats.values()]
        return sorted(records, key=lambda record: record["rank"])


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
        # The store that this folder is uploaded to (remote_run/identity.py), and how far that is
        # (remote_run/uploading.py).
        self.store_file = self.path / ".store.json"
        self.upload_file = self.path / ".upload.json"
        self.tokenizer = self.path / "tokenizer"
        self.features_file = self.tokenizer / "features.json"
        self.infeasible_file = self.tokenizer / "infeasible.jsonl"  # training utterances that CTC could not write
        self.statistics_file = self.path / "features.json"  # the same, for stages that have no tokenizer
        self.corpus = self.path / "corpus"

    def order_file(self, node: int) -> Path:
        """What a host is to do that nobody can log in to (processes/shared_folder.py)."""
        return self.path / "nodes" / f"node-{node:02d}.json"

    def token_counts_file(self, split: str, label: str = "") -> Path:
        """What the tokenizer makes of the transcripts of a split, in one corpus of a mixture where there is a label,
        counted (data/sampling/token_counts.py)."""
        if label:
            return self.tokenizer / f"counts-{split}-{label}.npz"
        return self.tokenizer / f"counts-{split}.npz"

    def languages_file(self, label: str) -> Path:
        """The languages of the training utterances of a corpus of a mixture (data/sampling/languages.py)."""
        # Hidden: a stage may have any other name.
        return self.path / ".languages" / f"{label}.npz"

    def language_model_file(self, name: str) -> Path:
        """A language model of the training transcripts (inference/language_model.py)."""
        return self.path / ".language-models" / f"{name}.arpa"

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
        line = redact(json.dumps(record, ensure_ascii=False))
        with files.naming(self.events_file), open_no_link(self.events_file) as file:
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
            file.write(f"{line}\n".encode(errors="backslashreplace"))

    def events(self) -> list[dict[str, Any]]:
        """Return the events so far; a line that a kill cut short, or that is no event, is skipped."""
        events = []
        try:
            # Bytes: a cut in the middle of a character must not cost the other lines.
            with files.open_regular(self.events_file) as file:
                num_bytes = os.fstat(file.fileno()).st_size
                if num_bytes > MAX_EVENTS_BYTES:
                    raise ValueError(f"{self.events_file.name} has {num_bytes} bytes, more than {MAX_EVENTS_BYTES}")
                while True:
                    # What is longer comes in pieces, none of which is an event.
                    line = file.readline(MAX_EVENT_BYTES)
                    if not line:
                        return events
                    with suppress(ValueError):
                        event = files.parse_json(line)
                        if is_event(event):
                            events.append(event)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise ConfigError(f"The events of the run in {self.path} cannot be read: {error}. Remove it.") from None

    def holder(self) -> int | None:
        """Return the process id of the launcher that holds the run folder, None when nobody does.

        A lock of the kernel's, not a file that exists: it ends with the process, whatever ended that.
        """
        try:
            # To read is enough: whoever may look at a run of somebody else must not need to write.
            with files.open_regular(self.lock_file) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    process = file.read(PROCESS_ID_BYTES).strip()
                    return int(process) if process.isdigit() else 0
        except PermissionError:
            raise ConfigError(
                f"{self.lock_file} cannot be read, so that nobody can tell whether the run goes on. Have its owner "
                "make the run folder readable (chmod -R g+rX)."
            ) from None
        # Nobody holds what is no file.
        except (OSError, ValueError):
            pass
        return None

    @contextmanager
    def locked(self) -> Iterator[list[Path]]:
        """Hold the run folder for this process, and yield its links to folders on other disks.

        ConfigError naming the process that holds it already, or a link through which files elsewhere would be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open_no_link(self.lock_file) as file:
            is_locked = False
            for _ in range(LOCK_ATTEMPTS):
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    is_locked = True
                    break
                time.sleep(LOCK_ATTEMPT_S)
            if not is_locked:
                file.seek(0)
                process = file.read(PROCESS_ID_BYTES).decode("ascii", "replace").strip()
                raise ConfigError(
                    f"The run folder {self.path} is in use by process {process}. "
                    f"Wait for it, stop it (kill -TERM), or choose another folder with --run-dir."
                )
            # Mode a+ left the number of the process before this one in place, to name it.
            with files.naming(self.lock_file):
                file.truncate(0)
                # Past the buffer: what finds no room must not be tried again on closing.
                os.write(file.fileno(), str(os.getpid()).encode())
            yield check_links(self.path)
