"""Starts the runs of a sweep, so many at a time, and keeps the account of them.

Each run is a `chorus run` of its own, in a session of its own: a sweep that is killed does not take its runs with it,
and one that goes on waits for those that still run. Whatever ends a run, `chorus run` goes on from where it was.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.devices import accelerator, num_gpus
from launcher.errors import ConfigError, Preempted, exit_code
from launcher.formatting import HOUR_S, duration
from launcher.monitoring.progress import Display
from launcher.processes.stop_request import StopRequest
from launcher.processes.supervisor import last_lines
from launcher.processes.worker_command import python_environment
from launcher.recipe import Recipe
from launcher.sweep.stopping import ValidationCurve, judge
from launcher.sweep.trials import SweepFolder, Trial

POLL_S = 0.5
# Validations come every few minutes.
JUDGE_S = 5.0
# What a kill may cost of the account of the budget.
SAVE_S = 10.0
LOG_LINES_SHOWN = 5
STOPPED = exit_code(Preempted())

# The command of a run, given the run and its place among those at the same time.
MakeCommand = Callable[[Trial], list[str]]


@dataclass
class _Running:
    """A run that works. `process` is None for one that an earlier sweep has started, which is only waited for."""

    trial: Trial
    slot: int
    process: "subprocess.Popen[bytes] | None"
    counted_until_s: float
    is_stopping: bool = False


@dataclass(frozen=True)
class Limits:
    """`budget_s`: of all runs together, None for no limit. `stop_after`: share of a stage's steps, None for never."""

    parallel: int = 1
    budget_s: float | None = None
    stop_after: float | None = None


@dataclass
class Scheduler:
    """Brings the runs of a sweep to their ends; `run` returns when nothing is left to do within the budget.

    prepare: gives a run what it shares before it starts. save: keeps what is known of the runs.
    """

    folder: SweepFolder
    trials: Sequence[Trial]
    recipes: Mapping[str, Recipe]
    judged: Mapping[str, Sequence[str]]
    limits: Limits
    make_command: MakeCommand
    prepare: Callable[[Trial], None]
    save: Callable[[], None]
    stop: StopRequest
    display: Display
    _running: list[_Running] = field(default_factory=list)
    _curves: dict[str, dict[str, ValidationCurve]] = field(default_factory=dict)
    _next_judgement_s: float = 0.0
    _next_save_s: float = 0.0

    def run(self) -> None:
        """Preempted after a stop, when what ran has saved."""
        self._adopt()
        try:
            while True:
                self._count_time()
                self._collect()
                if self.stop.count:
                    break
                self._stop_hopeless()
                if self._is_budget_used():
                    self._end_all("the budget is used up")
                else:
                    self._start_next()
                if not self._running:
                    break
                time.sleep(POLL_S)
        finally:
            self._end_all("the sweep was asked to stop")
            self._count_time()
            self.save()
        self.stop.check()

    def _adopt(self) -> None:
        for trial in self.trials:
            if trial.state in ("running", "interrupted") and self.folder.trial(trial).holder() is not None:
                self.display.say(f"{trial.name}: runs already, since an earlier start of the sweep")
                self._running.append(_Running(trial, self._free_slot(), None, time.monotonic()))
                trial.state = "running"
            elif trial.state == "running":
                trial.state = "interrupted"
                trial.reason = "the sweep was killed"

    def _free_slot(self) -> int:
        taken = {running.slot for running in self._running}
        return min(set(range(len(taken) + 1)) - taken)

    def _count_time(self) -> None:
        now_s = time.monotonic()
        for running in self._running:
            running.trial.seconds += now_s - running.counted_until_s
            running.counted_until_s = now_s
        if now_s >= self._next_save_s:
            self._next_save_s = now_s + SAVE_S
            self.save()

    def _is_budget_used(self) -> bool:
        if self.limits.budget_s is None:
            return False
        return sum(trial.seconds for trial in self.trials) >= self.limits.budget_s

    def _start_next(self) -> None:
        for trial in self.trials:
            if len(self._running) >= self.limits.parallel:
                return
            if trial.state in ("waiting", "interrupted"):
                self._start(trial)

    def _start(self, trial: Trial) -> None:
        self.prepare(trial)
        slot = self._free_slot()
        log = self.folder.log(trial)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **python_environment(os.environ)}
        environment["WANDB_RUN_GROUP"] = os.environ.get("WANDB_RUN_GROUP") or self.folder.path.name
        environment |= _devices(slot, self.limits.parallel, self.recipes[trial.name].cluster.processes)
        with log.open("ab") as output, _cores(slot, self.limits.parallel):
            process = subprocess.Popen(
                self.make_command(trial),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        trial.state = "running"
        trial.reason = ""
        self._running.append(_Running(trial, slot, process, time.monotonic()))
        number = sum(other.state not in ("waiting", "interrupted") for other in self.trials)
        self.display.say(f"[{number}/{len(self.trials)}] {trial.name}: started; it writes to {log}")
        self.save()

    def _collect(self) -> None:
        for running in list(self._running):
            trial = running.trial
            if running.process is None:
                if self.folder.trial(trial).holder() is None:
                    # Nobody knows its exit code: started again, it ends at once where all is done.
                    trial.state = "interrupted"
                    self._running.remove(running)
                continue
            code = running.process.poll()
            if code is None:
                continue
            self._running.remove(running)
            self._end(running, code)
            self.save()

    def _end(self, running: _Running, code: int) -> None:
        trial = running.trial
        trial.exit_code = code
        if code == 0:
            trial.state = "done"
            trial.reason = ""
            self.display.say(f"{trial.name}: done in {duration(trial.seconds)}")
        elif running.is_stopping and code in (STOPPED, -signal.SIGTERM):
            # What stopped it has given it its state and reason.
            self.display.say(f"{trial.name}: {trial.state.replace('_', ' ')}: {trial.reason}")
        else:
            trial.state = "failed"
            trial.reason = f"chorus run ended with {code}"
            lines = last_lines(self.folder.log(trial), LOG_LINES_SHOWN)
            self.display.say(f"{trial.name}: failed with exit code {code}; the end of its log:\n{lines}")

    def _stop_hopeless(self) -> None:
        from_share = self.limits.stop_after
        if from_share is None or time.monotonic() < self._next_judgement_s:
            return
        self._next_judgement_s = time.monotonic() + JUDGE_S
        self._refresh_curves()
        for running in list(self._running):
            trial = running.trial
            if running.is_stopping or running.process is None:
                continue
            recipe = self.recipes[trial.name]
            for name in self.judged[trial.name]:
                stage = recipe.training_stage(name)
                verdict = judge(trial.name, name, stage.steps, self._curves.get(stage.unseeded_name, {}), from_share)
                if verdict is not None:
                    trial.state = "stopped_early"
                    trial.reason = verdict.describe()
                    self._terminate(running)
                    break

    def _refresh_curves(self) -> None:
        """The validations of every run, by the name of the stage without its seed."""
        for trial in self.trials:
            run = self.folder.trial(trial)
            for name in self.judged[trial.name]:
                unseeded_name = self.recipes[trial.name].training_stage(name).unseeded_name
                curves = self._curves.setdefault(unseeded_name, {})
                if trial.name not in curves:
                    curves[trial.name] = ValidationCurve(run.stage(name).metrics_file, run.path)
                curves[trial.name].refresh()

    def _terminate(self, running: _Running) -> None:
        running.is_stopping = True
        if running.process is not None and running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)

    def _end_all(self, reason: str) -> None:
        """Ask what runs to save and leave, and wait for it: `chorus run` has deadlines of its own for that."""
        for running in self._running:
            if not running.is_stopping:
                running.trial.state = "interrupted"
                running.trial.reason = reason
            self._terminate(running)
        # Runs of an earlier start are not ours to end: they go on, and the next start waits for them.
        self._running = [running for running in self._running if running.process is not None]
        while self._running:
            self._count_time()
            self._collect()
            time.sleep(POLL_S)


def check_machine_for(recipe: Recipe, parallel: int) -> None:
    """ConfigError where so many runs cannot be at the same time on this machine."""
    cluster = recipe.cluster
    if parallel < 1:
        raise ConfigError(f"--parallel is {parallel}. Give the number of runs at the same time, 1 or more.")
    if cluster.kind not in ("local", "ssh"):
        raise ConfigError(
            f"A sweep starts its runs itself, which --launcher {cluster.kind} leaves to others. Use local, or ssh; or "
            "start the sweep inside of a job."
        )
    if parallel == 1:
        return
    if cluster.kind == "ssh":
        raise ConfigError(
            "Runs over ssh take all hosts of the hostfile, so that only one can be at a time: --parallel 1."
        )
    if cluster.master_port is not None:
        raise ConfigError(
            f"cluster.master_port is {cluster.master_port}, on which only one run can listen at a time. Leave it out, "
            "or give --parallel 1."
        )
    needed = parallel * cluster.processes
    if accelerator() != "cpu" and needed > num_gpus():
        raise ConfigError(
            f"--parallel {parallel} with {cluster.processes} processes each needs {needed} GPUs, and there are "
            f"{num_gpus()}. Give fewer."
        )


def _devices(slot: int, parallel: int, processes: int) -> dict[str, str]:
    """The GPUs of a run, so that those at the same time have different ones; nothing without GPUs."""
    if parallel == 1 or accelerator() == "cpu":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = [device.strip() for device in visible.split(",") if device.strip()]
    if not devices:
        devices = [str(number) for number in range(num_gpus())]
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot * processes : (slot + 1) * processes])}


class _cores:  # noqa: N801 (used as a function)
    """Within it, what is started inherits a share of this process's cores: runs that each take all of them would wait
    for each other."""

    def __init__(self, slot: int, parallel: int) -> None:
        self._slot = slot
        self._parallel = parallel
        self._former: set[int] | None = None

    def __enter__(self) -> None:
        # macOS has no affinity.
        if self._parallel == 1 or not hasattr(os, "sched_getaffinity"):
            return
        cores = sorted(os.sched_getaffinity(0))
        share = cores[self._slot % self._parallel :: self._parallel]
        if share:
            self._former = set(cores)
            os.sched_setaffinity(0, share)

    def __exit__(self, *_: object) -> None:
        if self._former is not None:
            os.sched_setaffinity(0, self._former)


def run_command(recipe: str, folder: SweepFolder, trial: Trial) -> list[str]:
    """The `chorus run` of a run."""
    command = [sys.executable, "-m", "launcher.cli", "run", recipe, "--run-dir", str(folder.trial(trial).path)]
    for override in trial.overrides:
        command += ["--set", override]
    return command


def budget_seconds(hours: float | None) -> float | None:
    """ConfigError for a budget that is none."""
    if hours is None:
        return None
    if not 0 < hours < float("inf"):
        raise ConfigError(f"--budget is {hours:g}. Give hours above 0.")
    return hours * HOUR_S
