"""Runs the stages of a pipeline that are not done, one after another.

A stage whose settings or inputs changed since it was worked on starts anew; its folder is moved aside
(STAGE.old-1), never deleted, and taken up again when its settings and inputs come back. A stage that is half trained
is moved aside only when that is asked for: a forgotten option should not begin days of work anew. Shards and tokenizer
are derived data and are replaced in place; a finished model carries its own.
"""

import glob
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from launcher.devices import accelerator
from launcher.errors import ConfigError, Preempted
from launcher.formatting import duration
from launcher.monitoring.progress import Display
from launcher.processes.launchers import Launcher, make_launcher
from launcher.processes.start_profile import describe_start, read_start_profile
from launcher.processes.stop_request import StopRequest
from launcher.processes.supervisor import Job, supervise
from launcher.processes.watchdog import Deadlines
from launcher.recipe import (
    AdaptStage,
    ClusterConfig,
    DistillStage,
    EvaluateStage,
    Recipe,
    SelfSupervisedStage,
    dump,
)
from launcher.recipe.corpora import reads_the_same
from launcher.report import write_report
from launcher.run_files import read_done, read_set_aside, read_state
from launcher.run_folder import TRAINING_KINDS, RunFolder, StageFolder, write_json, write_text
from launcher.stages.context import StageContext
from launcher.stages.pipeline import Pipeline, StageNode, StageStatus
from launcher.stages.preparation import count_joining_tokens, make_tokenizer, measure_features, prepare_corpus
from launcher.stages.results import describe_quarantined, merge_results
from launcher.stages.start_checks import batches_of_one, check_prepared
from launcher.training.teachers.cache_match import choose_caches, describe_choice, find_caches, folder_for_caches

# More models than these are counted and not named.
MAX_NAMED_MODELS = 4
SLURM_LOG = re.compile(r"slurm-\d+\.log")


def claim_folder(recipe: Recipe, run: RunFolder) -> None:
    """Refuse (ConfigError) a folder that holds something else than a run of this recipe."""
    state = read_state(run)
    if state is not None:
        if state["recipe"] != recipe.name:
            raise ConfigError(
                f"The folder {run.path} holds a run of recipe {state['recipe']!r}, not of {recipe.name!r}. "
                f"Choose another folder with --run-dir."
            )
        return

    # What a launcher may have left that was killed before its first stage.
    run_names = {
        run.lock_file.name,
        run.recipe_file.name,
        run.events_file.name,
        run.batch_script.name,
        run.node_commands_file.name,
        run.order_file(1).parent.name,
    }
    for path in run.path.iterdir():
        if path.name in run_names or SLURM_LOG.fullmatch(path.name):
            continue
        # Half-written files, and what file systems and desktops leave in any folder.
        if path.name.startswith("."):
            continue
        raise ConfigError(
            f"The folder {run.path} is not a run folder: it holds {path.name} and no state.json. "
            f"Choose a new or empty folder with --run-dir."
        )


class Executor:
    """Brings a run to its end, with the recipe's launcher or another; `run` may be called again at any time."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        stop: StopRequest,
        display: Display,
        launcher: Launcher | None = None,
        may_set_aside: Collection[str] = (),
        extended: Collection[str] = (),
    ) -> None:
        """`may_set_aside` names the half-trained stages whose work may be moved aside, `extended` those that go on from
        what they have under other steps or another optimizer."""
        self._recipe = recipe
        self._run = run
        self._stop = stop
        self._display = display
        self._pipeline = Pipeline(recipe, run)
        self._may_set_aside = may_set_aside
        self._extended = extended
        self.launcher = launcher or make_launcher(recipe.cluster)

    def run(self, only: frozenset[str] | None = None) -> list[str]:
        """Run what is not done, or of that only the stages named; return the names of the stages that ran."""
        ran = []
        nodes = self._pipeline.nodes
        for number, node in enumerate(nodes, start=1):
            if only is not None and node.name not in only:
                continue
            heading = f"[{number}/{len(nodes)}] {node.name}"
            # Asked anew for each stage: it may depend on what the ones before it have just left.
            status = self._pipeline.status_of(node)
            if status.done:
                self._display.say(f"{heading}: done already")
                continue
            self._stop.check()
            self._display.say(f"{heading}: {status.reason}")
            started = time.monotonic()
            self._run_stage(node, status)
            self._display.say(f"{node.name}: done in {duration(time.monotonic() - started)}")
            ran.append(node.name)
        return ran

    def check_half_trained(self) -> None:
        """Refuse (ConfigError) to begin anew what is half trained, before anything is started or written."""
        for node in self._pipeline.nodes:
            if node.kind not in TRAINING_KINDS:
                continue
            folder = self._run.stage(node.name)
            record = read_set_aside(folder)
            # Somebody moved it back by hand, or setting it aside was cut off.
            if record is not None:
                self._pipeline.adopt(node, record)
                folder.record_file.unlink()
            if node.name in self._extended:
                self._check_extension(node)
            else:
                self._refuse_half_trained(node, self._pipeline.status_of(node))

    def _check_extension(self, node: StageNode) -> None:
        """Refuse (ConfigError) to extend a stage that has no work, or whose other settings or inputs changed."""
        record = self._pipeline.record(node.name)
        status = self._pipeline.status_of(node)
        if self._find_further(node, status):
            return
        last_step = max(self._run.stage(node.name).checkpoint_steps(), default=0)
        if not record or not last_step:
            raise ConfigError(
                f"--extend names stage {node.name}, which has no checkpoint in {self._run.path} to go on from. Give "
                "its settings with --set."
            )
        changed = self._pipeline.changes(node, status.inputs)
        others = [key for key in changed if not _can_be_extended(key)]
        if self._only_joins(node, others):
            others = []
        if others:
            raise ConfigError(
                f"--extend goes on with stage {node.name} under other steps or another optimizer, and "
                f"{', '.join(others)} changed too. Give these as they were; with --set, such a stage begins anew."
            )
        steps = node.settings.values["steps"]
        if changed and steps < last_step:
            raise ConfigError(
                f"--extend gives stage {node.name} {steps} steps, but it has done {last_step} already. Give more."
            )

    def _extend(self, node: StageNode, status: StageStatus) -> None:
        """Let the stage's work count under its new settings; its record keeps what was trained under former ones."""
        record = self._pipeline.record(node.name)
        # Again: what a stage learns from may have changed since the run began.
        self._check_extension(node)
        changes = ", ".join(self._pipeline.changes(node, status.inputs).values())
        if not changes or self._find_further(node, status):
            return
        last_step = max(self._run.stage(node.name).checkpoint_steps())
        former = {"up_to_step": last_step, "fingerprint": record["fingerprint"], "settings": record["settings"]}
        settings = node.settings.comparable_to(record["settings"])
        new_record = record | {
            "status": "stopped",
            "fingerprint": status.fingerprint,
            "settings": settings,
            # A corpus that joins is a new input.
            "inputs": status.inputs,
            "extended": [*record.get("extended", []), former],
        }
        self._pipeline.adopt(node, new_record)
        self._run.append_event("stage_extended", stage=node.name, from_step=last_step, changes=changes)
        self._display.say(f"{node.name}: goes on from step {last_step} with {changes}")

    def _refuse_half_trained(self, node: StageNode, status: StageStatus) -> None:
        """Refuse (ConfigError) to begin anew a stage that is half trained, or that was extended, unless told to."""
        folder = self._run.stage(node.name)
        steps = folder.checkpoint_steps()
        if not steps or node.name in self._may_set_aside:
            return
        begin_anew = (
            f"to begin it anew and keep that work in {_unused_name(folder.path).name}, add --set-aside {node.name}."
        )
        record = self._pipeline.record(node.name)
        if not record:
            raise ConfigError(
                f"Stage {node.name} in {self._run.path} has checkpoints up to step {max(steps)}, and "
                f"{self._run.state_file.name} does not say under which settings they were trained. Put back the "
                f"{self._run.state_file.name} that does; {begin_anew}"
            )
        changes = self._pipeline.changes(node, status.inputs)
        # Where work of these settings was set aside before, the run goes on with that: nothing is begun anew.
        if changes and self._find_set_aside(node, status):
            return

        if record["status"] == "done":
            # A finished stage follows the recipe. But one that was extended is asked for by options that are not in it.
            if changes and record.get("extended") and all(map(_can_be_extended, changes)):
                raise ConfigError(
                    f"Stage {node.name} in {self._run.path} was extended up to step {max(steps)}, and this command has "
                    f"other settings: {', '.join(changes.values())}. To keep its work, give the settings that it has; "
                    f"{begin_anew}"
                )
            return
        # Of stages before it too: it would be refused when they have been trained anew.
        changes = self._pipeline.changes_before(node) | changes
        if changes and not self._only_joins(node, changes):
            raise ConfigError(
                f"Stage {node.name} in {self._run.path} is half trained, up to step {max(steps)}, under other settings "
                f"or inputs: {', '.join(changes.values())}. To go on from there, give the settings that it has; "
                f"{begin_anew}"
            )

    def _only_joins(self, node: StageNode, changes: Iterable[str]) -> bool:
        """Whether all that changed are corpora that join after what a stage has done: its work stays what it was."""
        for key in changes:
            if not key.startswith(("mixture", "input corpus/train/", "prepare.joining.")):
                return False
        before = self._pipeline.record(node.name).get("settings", {}).get("mixture")
        after = node.settings.values.get("mixture")
        last_step = max(self._run.stage(node.name).checkpoint_steps(), default=0)
        return last_step > 0 and reads_the_same(before, after, last_step)

    def _find_further(self, node: StageNode, status: StageStatus) -> StageFolder | None:
        """Return work that was set aside under a stage's present settings and inputs, and has come further than the
        stage's own: what an extension would do is done there."""
        aside = self._find_set_aside(node, status)
        if aside is None:
            return None
        own_step = max(self._run.stage(node.name).checkpoint_steps(), default=0)
        if max(aside.checkpoint_steps(), default=0) <= own_step:
            return None
        return aside

    def _find_set_aside(self, node: StageNode, status: StageStatus) -> StageFolder | None:
        """Return the folder of work that was set aside under the stage's present settings and inputs."""
        if node.kind not in TRAINING_KINDS or status.fingerprint is None:
            return None
        for path in sorted(self._run.path.glob(f"{glob.escape(node.name)}.old-*")):
            folder = StageFolder(path)
            record = read_set_aside(folder)
            # Without its record nobody can tell under which settings it was trained.
            if record is None:
                continue
            if self._pipeline.matches(node, record, status.inputs):
                return folder
        return None

    def write_recipe(self) -> None:
        """Leave the resolved recipe in the run folder, where the processes read it."""
        write_text(self._run.recipe_file, dump(self._recipe))

    def _run_stage(self, node: StageNode, status: StageStatus) -> None:
        if status.fingerprint is None:
            # Names a split that is missing, and those there are.
            check_prepared(self._recipe, self._run)
            raise ConfigError(
                f"Stage {node.name} {status.reason}, which this run folder does not have yet. Run the whole recipe."
            )
        changes = {}
        if node.kind in TRAINING_KINDS and self._pipeline.record(node.name):
            changes = self._pipeline.changes(node, status.inputs)
        if node.name in self._extended or (changes and self._only_joins(node, changes)):
            self._extend(node, status)
        self._set_aside(node, status)
        if self._take_up(node, status):
            return
        self._pipeline.started(node, status)
        self._run.append_event("stage_started", stage=node.name, reason=status.reason)
        outcome = "failed"
        try:
            self._perform(node)
            outcome = "done"
        except Preempted:
            outcome = "stopped"
            raise
        finally:
            self._pipeline.ended(node, outcome)
            self._run.append_event(f"stage_{outcome}", stage=node.name)

    def _set_aside(self, node: StageNode, status: StageStatus) -> None:
        """Move the work of other settings or inputs out of the way, and say where it is."""
        record = self._pipeline.record(node.name)
        if record and record["fingerprint"] == status.fingerprint:
            return
        # Shards and tokenizer are derived data, and are replaced in place.
        if node.kind not in (*TRAINING_KINDS, "evaluate"):
            return
        folder = self._run.stage(node.name)
        if _has_work(folder):
            if node.kind in TRAINING_KINDS:
                self._refuse_half_trained(node, status)
            aside = _unused_name(folder.path)
            if record:
                # Before the rename, so that the folder under its new name says what it is.
                write_json(folder.record_file, record)
            folder.path.rename(aside)
            self._run.append_event("stage_set_aside", stage=node.name, folder=aside.name, reason=status.reason)
            self._display.say(f"{node.name}: starts anew; its former work is in {aside}")
        self._pipeline.forget(node)

    def _take_up(self, node: StageNode, status: StageStatus) -> bool:
        """Go on from work that was set aside under the same settings and inputs; return whether it is done already."""
        record = self._pipeline.record(node.name)
        folder = self._run.stage(node.name)
        # A kill may have come between setting work aside and recording that: a record alone is no work.
        if record and self._pipeline.matches(node, record, status.inputs) and _has_work(folder):
            return False
        aside = self._find_set_aside(node, status)
        if aside is None:
            return False
        if folder.path.exists():
            # Of other settings, and without work worth keeping: the launcher's logs at most.
            folder.path.rename(_unused_name(folder.path))
        record_there = read_set_aside(aside) or {}
        aside.path.rename(folder.path)
        self._pipeline.adopt(node, record_there)
        folder.record_file.unlink()
        self._run.append_event("stage_taken_up", stage=node.name, folder=aside.name)
        self._display.say(f"{node.name}: goes on from {aside.name}, which has these settings and inputs")
        return self._pipeline.status_of(node).done

    def _perform(self, node: StageNode) -> None:
        match node.kind:
            case "prepare":
                with self._stop.interrupting():
                    prepare_corpus(self._recipe, self._run, self._display)
            case "features":
                with self._stop.interrupting():
                    measure_features(self._recipe, self._run, self._display)
            case "tokenizer":
                with self._stop.interrupting():
                    make_tokenizer(self._recipe, self._run, self._display)
            case "evaluate":
                self._evaluate(node.name)
            case "report":
                with self._stop.interrupting():
                    write_report(self._run.path)
            case _:
                self._train(node.name)

    def _train(self, name: str) -> None:
        context = StageContext.training(self._recipe, self._run, name)
        stage = context.stage
        folder = context.folder
        cluster = self._recipe.cluster

        if cluster.kind == "local":
            place = accelerator()
        else:
            place = str(self.launcher.topology)
        processes = f"{cluster.processes} processes"
        if cluster.processes == 1:
            processes = "1 process"
        source = "transcripts"
        if isinstance(stage, DistillStage):
            source = " and ".join(teacher.model for teacher in stage.named_teachers)
        elif isinstance(stage, SelfSupervisedStage):
            source = "recordings alone"
        elif isinstance(stage, AdaptStage):
            source = f"transcripts, as {stage.base} adapted,"
        first_step = max(folder.checkpoint_steps(), default=0)
        self._display.say(
            f"{name}: learns from {source} for {stage.steps} steps, from step {first_step}; "
            f"starting {processes} ({place})"
        )
        sentence = batches_of_one(self._recipe, self._run, stage)
        if sentence:
            self._display.say(f"{name}: {sentence}")
        if not isinstance(stage, SelfSupervisedStage | AdaptStage):
            with self._stop.interrupting():
                count_joining_tokens(self._recipe, self._run, self._display)
        if isinstance(stage, DistillStage):
            self._settle_caches(StageContext(self._recipe, self._run, stage))

        def is_done() -> bool:
            return read_done(folder).get("status") == "done"

        job = Job(
            folder,
            lambda: self.launcher.training(self._run, name),
            processes=cluster.processes,
            succeeded=is_done,
            steps=stage.steps,
            later_steps=self._pipeline.later_steps(name),
            restarts=cluster.max_restarts,
            deadlines=_deadlines(cluster),
            end_elsewhere=lambda terminate_s: self.launcher.end_elsewhere(self._run, name, terminate_s),
        )
        try:
            supervise(job, self._run, self._stop, self._display)
        finally:
            # Where a stage is stopped too: the start was long before.
            if cluster.profile_start:
                self._show_start(folder)

    def _show_start(self, folder: StageFolder) -> None:
        parts = read_start_profile(folder.profile / "start-00.json")
        if parts:
            self._display.say(f"\n{describe_start(parts)}\n")

    def _settle_caches(self, context: StageContext[DistillStage]) -> None:
        """Say which teachers are read from a cache, after storing their outputs where the stage makes caches;
        ConfigError where reading is required and cannot be."""
        if context.stage.distill.cache.use == "make":
            missing = [choice for choice in find_caches(context).values() if not choice.folder]
            if missing:
                with self._stop.interrupting():
                    # Imports torch, which a launcher that stores nothing does without.
                    from launcher.training.write_teacher_cache import cache_teachers

                    for report in cache_teachers(context, folder_for_caches(context), self._display):
                        self._display.say(f"{context.name}: {report.describe()}")
        for teacher, choice in choose_caches(context).items():
            sentence = describe_choice(teacher, choice)
            if sentence:
                self._display.say(f"{context.name}: {sentence}")

    def _evaluate(self, name: str) -> None:
        stage = self._recipe.stage(name)
        assert isinstance(stage, EvaluateStage)
        cluster = self._recipe.cluster
        folder = self._run.stage(name)
        if len(stage.models) <= MAX_NAMED_MODELS:
            models = " and ".join(stage.models)
        else:
            models = f"{len(stage.models)} models"
        self._display.say(f"{name}: {models} recognise the split {stage.split}")

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
        supervise(job, self._run, self._stop, self._display)
        results = merge_results(self._recipe, self._run)
        for sentence in describe_quarantined(results, stage):
            self._display.say(f"{name}: {sentence}; {folder.logs} and the report name them")


def _deadlines(cluster: ClusterConfig) -> Deadlines:
    return Deadlines(
        startup_s=cluster.startup_deadline_s,
        stall_s=cluster.stall_deadline_s,
        validation_s=cluster.validation_deadline_s,
        save_s=cluster.save_deadline_s,
        evaluation_s=cluster.evaluation_deadline_s,
        stop_s=cluster.stop_deadline_s,
    )


def _can_be_extended(key: str) -> bool:
    """Whether weights and moments of a checkpoint keep their meaning when this setting of their stage changes."""
    return key == "steps" or key.startswith("optimizer.")


def _has_work(folder: StageFolder) -> bool:
    """Whether a stage's folder holds more than logs."""
    return bool(folder.checkpoint_steps()) or folder.model.exists() or folder.evaluation_file.exists()


def _unused_name(folder: Path) -> Path:
    """The next free name for work that is set aside: STAGE.old-1, STAGE.old-2 and so on."""
    number = 1
    while True:
        candidate = folder.with_name(f"{folder.name}.old-{number}")
        if not candidate.exists():
            return candidate
        number += 1
