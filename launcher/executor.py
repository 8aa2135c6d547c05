"""Runs the stages of a pipeline that are not done, one after another.

A stage whose settings or inputs changed since it was worked on starts anew; its folder is moved aside
(STAGE.old-1), never deleted. Shards and tokenizer are derived data and are replaced in place; a finished
model carries its own.
"""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from launcher.errors import ConfigError, Preempted
from launcher.monitoring.progress import Display, duration
from launcher.processes import worker_command
from launcher.processes.launchers import Launcher, make_launcher
from launcher.processes.stop_request import StopRequest
from launcher.processes.supervisor import Job, supervise
from launcher.processes.watchdog import Deadlines
from launcher.recipe import (
    AnyTrainingStage,
    ClusterConfig,
    DistillStage,
    EvaluateStage,
    Recipe,
    SelfSupervisedStage,
    dump,
)
from launcher.run_folder import TRAINING_KINDS, RunFolder, read_json, write_text
from launcher.stages.context import StageContext
from launcher.stages.pipeline import Pipeline, StageNode, StageStatus
from launcher.stages.preparation import make_tokenizer, measure_features, prepare_corpus
from launcher.stages.results import merge_results
from launcher.training.teachers.cache_match import choose_caches, describe_choice, find_caches, folder_for_caches

# More models than these are counted and not named.
MOST_NAMED = 4
SLURM_LOG = re.compile(r"slurm-\d+\.log")


def claim_folder(recipe: Recipe, run: RunFolder) -> None:
    """Refuse (ConfigError) a folder that holds something else than a run of this recipe."""
    state = read_json(run.state_file)
    if state is None:
        # A launcher that was killed before its first stage has left these.
        files = (run.lock_file, run.recipe_file, run.events_file, run.batch_script, run.node_commands_file)
        ours = {*(file.name for file in files), run.order_file(1).parent.name}
        foreign = [path.name for path in run.path.iterdir() if path.name not in ours and not path.name.startswith(".")]
        foreign = [name for name in foreign if not SLURM_LOG.fullmatch(name)]
        if foreign:
            raise ConfigError(
                f"The folder {run.path} is not a run folder: it holds {foreign[0]} and no state.json. "
                f"Choose a new or empty folder with --run-dir."
            )
    elif state["recipe"] != recipe.name:
        raise ConfigError(
            f"The folder {run.path} holds a run of recipe {state['recipe']!r}, not of {recipe.name!r}. "
            f"Choose another folder with --run-dir."
        )


class Executor:
    """Brings a run to its end, with the recipe's launcher or another; `run` may be called again at any time."""

    def __init__(
        self, recipe: Recipe, run: RunFolder, stop: StopRequest, display: Display, launcher: Launcher | None = None
    ) -> None:
        self._recipe, self._run, self._stop, self._display = recipe, run, stop, display
        self._pipeline = Pipeline(recipe, run)
        self.launcher = launcher or make_launcher(recipe.cluster)

    def run(self, only: frozenset[str] | None = None) -> list[str]:
        """Run what is not done, or of that only the stages named; return the names of the stages that ran."""
        ran = []
        for number, node in enumerate(self._pipeline.nodes, start=1):
            if only is not None and node.name not in only:
                continue
            heading = f"[{number}/{len(self._pipeline.nodes)}] {node.name}"
            stage_status = self._pipeline.status_of(node)
            if stage_status.done:
                self._display.say(f"{heading}: done already")
                continue
            self._stop.check()
            self._display.say(f"{heading}: {stage_status.reason}")
            started = time.monotonic()
            self._run_node(node, stage_status)
            self._display.say(f"{node.name}: done in {duration(time.monotonic() - started)}")
            ran.append(node.name)
        return ran

    def write_recipe(self) -> None:
        """Leave the resolved recipe in the run folder, where the processes read it."""
        write_text(self._run.recipe_file, dump(self._recipe))

    def _run_node(self, node: StageNode, stage_status: StageStatus) -> None:
        if stage_status.fingerprint is None:
            raise ConfigError(
                f"Stage {node.name} {stage_status.reason}, which this run folder does not have yet. Run the whole "
                "recipe."
            )
        self._set_aside(node, stage_status)
        self._pipeline.started(node, stage_status)
        self._run.append_event("stage_started", stage=node.name, reason=stage_status.reason)
        try:
            self._action(node)()
        except Preempted:
            self._leave(node, "stopped")
            raise
        except Exception:
            self._leave(node, "failed")
            raise
        self._leave(node, "done")

    def _leave(self, node: StageNode, status: str) -> None:
        self._pipeline.ended(node, status)
        self._run.append_event(f"stage_{status}", stage=node.name)

    def _set_aside(self, node: StageNode, stage_status: StageStatus) -> None:
        """Move the work of other settings or inputs out of the way, and say where it is."""
        record = self._pipeline.record(node.name)
        if not record or record["fingerprint"] == stage_status.fingerprint:
            return
        folder = self._run.stage(node.name)
        has_work = folder.checkpoint_steps() or folder.model.exists() or folder.evaluation_file.exists()
        if node.kind in (*TRAINING_KINDS, "evaluate") and has_work:
            aside = _unused_name(folder.path)
            folder.path.rename(aside)
            self._run.append_event("stage_set_aside", stage=node.name, folder=aside.name, reason=stage_status.reason)
            self._display.say(f"{node.name}: starts anew; its former work is in {aside}")

    def _action(self, node: StageNode) -> Callable[[], None]:
        return {
            "prepare": lambda: self._in_process(prepare_corpus),
            "features": lambda: self._in_process(measure_features),
            "tokenizer": lambda: self._in_process(make_tokenizer),
            "evaluate": lambda: self._evaluate(node.name),
            "report": self._report,
        }.get(node.kind, lambda: self._train(node.name))

    def _in_process(self, work: Callable[[Recipe, RunFolder, Display], None]) -> None:
        with self._stop.interrupting():
            work(self._recipe, self._run, self._display)

    def _train(self, name: str) -> None:
        stage, cluster = self._recipe.training_stage(name), self._recipe.cluster
        folder = self._run.stage(name)
        job = Job(
            folder,
            lambda: self.launcher.training(self._run, name),
            processes=cluster.processes,
            succeeded=lambda: (read_json(folder.done_file) or {}).get("status") == "done",
            steps=stage.steps,
            later_steps=self._pipeline.later_steps(name),
            restarts=cluster.max_restarts,
            deadlines=_deadlines(cluster),
            end_elsewhere=lambda terminate_s: self.launcher.end_elsewhere(self._run, name, terminate_s),
        )
        self._display.say(
            f"{name}: learns from {_source(stage)} for {stage.steps} steps, "
            f"from step {max(folder.checkpoint_steps(), default=0)}; starting "
            f"{cluster.processes} process{'es' * (cluster.processes > 1)} ({self._where()})"
        )
        self._read_teachers(stage)
        supervise(job, self._run, self._stop, self._display)

    def _read_teachers(self, stage: AnyTrainingStage) -> None:
        """Say which teachers are read and not asked, after storing what they give where the stage makes caches;
        ConfigError where reading is required and cannot be."""
        if not isinstance(stage, DistillStage):
            return
        context = StageContext(self._recipe, self._run, stage)
        if stage.distill.cache.use == "make" and not all(choice.folder for choice in find_caches(context).values()):
            root = folder_for_caches(context)
            self._in_process(lambda recipe, run, display: _store_outputs(context, root, display))
        for teacher, choice in choose_caches(context).items():
            if said := describe_choice(teacher, choice):
                self._display.say(f"{stage.name}: {said}")

    def _where(self) -> str:
        return worker_command.accelerator() if self._recipe.cluster.kind == "local" else str(self.launcher.topology)

    def _evaluate(self, name: str) -> None:
        cluster, folder = self._recipe.cluster, self._run.stage(name)
        folder.evaluation_file.unlink(missing_ok=True)
        job = Job(
            folder,
            lambda: self.launcher.evaluation(self._run, name),
            processes=0,
            succeeded=folder.evaluation_file.is_file,
            steps=1,
            restarts=cluster.max_restarts,
            # There is nothing to save halfway through an evaluation.
            deadlines=replace(_deadlines(cluster), stop_s=0.0),
            end_elsewhere=lambda terminate_s: self.launcher.end_elsewhere(self._run, name, terminate_s),
        )
        stage = self._recipe.stage(name)
        assert isinstance(stage, EvaluateStage)
        who = " and ".join(stage.models) if len(stage.models) <= MOST_NAMED else f"{len(stage.models)} models"
        self._display.say(f"{name}: {who} recognise the split {stage.split}")
        supervise(job, self._run, self._stop, self._display)
        merge_results(self._recipe, self._run)

    def _report(self) -> None:
        from launcher.report import write_report

        with self._stop.interrupting():
            write_report(self._run.path)


def _source(stage: AnyTrainingStage) -> str:
    if isinstance(stage, DistillStage):
        return " and ".join(teacher.model for teacher in stage.named_teachers)
    return "recordings alone" if isinstance(stage, SelfSupervisedStage) else "transcripts"


def _store_outputs(context: StageContext[DistillStage], root: Path, display: Display) -> None:
    from launcher.training.write_teacher_cache import cache_teachers

    for report in cache_teachers(context, root, display):
        display.say(f"{context.name}: {report.describe()}")


def _deadlines(cluster: ClusterConfig) -> Deadlines:
    return Deadlines(
        startup_s=cluster.startup_deadline_s,
        stall_s=cluster.stall_deadline_s,
        validation_s=cluster.validation_deadline_s,
        save_s=cluster.save_deadline_s,
        stop_s=cluster.stop_deadline_s,
    )


def _unused_name(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return aside
