"""Real runs to do harm to: a small teacher on speech of the embedded corpus, started as a user starts it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml
from safetensors.torch import load_file
from torch import Tensor

from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.shards import write_split
from launcher.run_folder import RunFolder

STAGE = "teacher"
SPLITS = {"train": 60, "dev": 4}
WAIT_S = 300.0


def write_shards(folder: Path) -> Path:
    selected = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases",)), seed=1).utterances
    for split, number in SPLITS.items():
        utterances = [utterance for utterance in selected if utterance.split == split][:number]
        write_split(utterances, folder / split, sample_rate_hz=16000, shard_seconds=20, seed=1, workers=1)
    return folder


def write_recipe(path: Path, shards: Path, steps: int, **cluster) -> Path:
    """Shared blocks with experts over both processes, a save every third step and a validation every fourth."""
    encoder = {
        "layers": 2,
        "groups": 1,
        "width": 32,
        "heads": 2,
        "feedforward_width": 48,
        "kernel_size": 5,
        "subsampling": {"channels": 4},
        "experts": {"count": 2, "router": {"jitter": 0.01, "bias_rate": 0.001}},
    }
    stage = {
        "name": STAGE,
        "kind": "pretrain",
        "model": {"encoder": encoder, "decoder": {"layers": 1, "heads": 2, "feedforward_width": 32}},
        "optimizer": {"peak_learning_rate": 2e-3, "warmup_steps": 4},
        "steps": steps,
        "log_every": 1,
        "validate_every": 4,
        "checkpoint": {"every_steps": 3},
    }
    recipe = {
        "name": "faults",
        "corpus": {"name": "shards", "shards": str(shards)},
        "batches": {"lanes": 4, "seconds": 6},
        "stages": [stage],
        "cluster": {"processes": 2, "expert_parallel": 2, "max_restarts": 100, **cluster},
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


class Victim:
    """One run folder and the launcher that works on it."""

    def __init__(self, recipe: Path, folder: Path):
        self.recipe, self.run, self.stage = recipe, RunFolder(folder), RunFolder(folder).stage(STAGE)
        self.launcher: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "launcher.cli", "run", str(self.recipe), "--run-dir", str(self.run.path)]
        self.run.path.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "WANDB_MODE": "disabled"}
        with (self.run.path / ".output").open("ab") as output:
            self.launcher = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def output(self) -> str:
        return (self.run.path / ".output").read_text(errors="replace")

    def finish(self, expected: int = 0, timeout_s: float = WAIT_S) -> None:
        assert self.launcher is not None
        assert self.launcher.wait(timeout_s) == expected, self.output()[-4000:]

    def wait(self, reached: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
        """Wait while the launcher lives; False when it has left first."""
        assert self.launcher is not None
        until = time.monotonic() + timeout_s
        while not reached():
            if self.launcher.poll() is not None:
                return False
            assert time.monotonic() < until, self.output()[-4000:]
            time.sleep(0.02)
        return True

    def beats(self) -> list[dict]:
        """The heartbeats of processes that are alive."""
        return [beat for beat in self.stage.read_heartbeats() if psutil.pid_exists(beat["pid"])]

    def events(self, name: str) -> list[dict]:
        return [event for event in self.run.events() if event["event"] == name]

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.stage.model / "model.safetensors")

    def kill_everything(self) -> None:
        """SIGKILL to the launcher and all it has started, as when a machine goes down."""
        assert self.launcher is not None
        tree = [psutil.Process(self.launcher.pid), *psutil.Process(self.launcher.pid).children(recursive=True)]
        for process in tree:
            process.send_signal(signal.SIGKILL)
        self.launcher.wait()
        psutil.wait_procs(tree, timeout=10)
