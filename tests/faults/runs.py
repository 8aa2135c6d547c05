"""Real runs to do harm to: a small teacher on speech of the embedded corpus, started as a user starts it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml
from safetensors.torch import load_file
from small_runs import kill_everything, recipe_values
from torch import Tensor

from launcher.run_folder import RunFolder

STAGE = "teacher"
WAIT_S = 300.0


def write_recipe(path: Path, shards: Path, steps: int, **cluster) -> Path:
    """Shared blocks with experts over both processes, a save every third step and a validation every fourth."""
    values = recipe_values(shards)
    often = {"steps": steps, "log_every": 1, "validate_every": 4, "checkpoint": {"every_steps": 3}}
    stage = values["stages"][0] | {"name": STAGE} | often
    cluster = {"processes": 2, "expert_parallel": 2, "max_restarts": 100, **cluster}
    path.write_text(yaml.safe_dump(values | {"name": "faults", "stages": [stage], "cluster": cluster}))
    return path


class Victim:
    """One run folder and the launcher that works on it."""

    def __init__(self, recipe: Path, folder: Path):
        self.recipe, self.run, self.stage = recipe, RunFolder(folder), RunFolder(folder).stage(STAGE)
        self.launcher: subprocess.Popen | None = None

    def start(self, **environment: str) -> None:
        command = [sys.executable, "-m", "launcher.cli", "run", str(self.recipe), "--run-dir", str(self.run.path)]
        self.run.path.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "WANDB_MODE": "disabled", **environment}
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

    def interrupt(self, step: int) -> None:
        """Start, and kill everything once a checkpoint of `step` or later is there."""
        self.start()
        assert self.wait(lambda: max(self.stage.checkpoint_steps(), default=0) >= step)
        self.kill_everything()

    def kill_everything(self) -> None:
        assert self.launcher is not None
        kill_everything(self.launcher)


def assert_same_weights(victim: Victim, undisturbed: Victim) -> None:
    expected, found = undisturbed.weights(), victim.weights()
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert values.equal(found[name]), name
