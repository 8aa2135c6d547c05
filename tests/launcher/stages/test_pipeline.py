import json

import pytest
import yaml
from splits import summary_of

from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.fingerprint import hash_value
from launcher.stages.pipeline import Pipeline, build_pipeline

ALL = ["prepare", "tokenizer", "teacher", "student", "evaluation", "report"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


class Run:
    """A run folder in which stages can be finished without being run."""

    def __init__(self, folder):
        self.folder = RunFolder(folder)

    def pipeline(self, *overrides):
        return Pipeline(load_recipe("mini", overrides), self.folder)

    def finish(self, *overrides, names=ALL, mark=""):
        pipeline = self.pipeline(*overrides)
        for node in pipeline.nodes:
            if node.name in names and not pipeline.status_of(node).done:
                pipeline.started(node, pipeline.status_of(node))
                self.leave_output(node, mark)
                pipeline.ended(node, "done")

    def leave_output(self, node, mark=""):
        stage = self.folder.stage(node.name)
        if node.kind == "prepare":
            for split in ("train", "test"):
                summary = summary_of(f"{split}{mark}")
                write(self.folder.corpus / split / "shards.json", json.dumps(summary))
        elif node.kind == "tokenizer":
            for name in ("tokenizer.model", "tokenizer.json", "features.json"):
                write(self.folder.tokenizer / name, f"{name}{mark}")
        elif node.kind == "evaluate":
            write(stage.evaluation_file, "{}")
        elif node.kind == "report":
            write(self.folder.report_file, "report")
        else:
            write(stage.model / "model.safetensors", f"{node.name}{mark}")

    def to_run(self, *overrides):
        return [node.name for node, stage_status in self.pipeline(*overrides).statuses() if not stage_status.done]

    def reason(self, name, *overrides):
        return next(
            stage_status.reason for node, stage_status in self.pipeline(*overrides).statuses() if node.name == name
        )


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_the_pipeline_begins_with_the_corpus_and_ends_with_the_report():
    assert [node.name for node in build_pipeline(load_recipe("mini"))] == ALL


def test_stages_that_learn_without_transcripts_wait_for_the_features_and_not_for_the_tokenizer(tmp_path):
    listener = {"name": "listener", "kind": "self_supervised", "steps": 5}
    teacher = {"name": "teacher", "kind": "pretrain", "steps": 5, "initialize_from": "listener"}
    values = {"name": "r", "corpus": {"name": "aelita"}, "batches": {}}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**values, "stages": [listener, teacher]}))
    nodes = {node.name: node.inputs for node in build_pipeline(load_recipe(path))}
    assert list(nodes) == ["prepare", "features", "tokenizer", "listener", "teacher", "report"]
    assert nodes["listener"] == ("corpus/train", "features")
    assert nodes["teacher"] == ("corpus/train", "tokenizer", "listener")
    path.write_text(yaml.safe_dump({**values, "stages": [listener]}))
    assert [node.name for node in build_pipeline(load_recipe(path))] == ["prepare", "features", "listener", "report"]


def test_a_start_is_no_setting_so_that_stages_without_one_are_what_they_were():
    teacher = next(node for node in build_pipeline(load_recipe("mini")) if node.name == "teacher")
    assert "initialize_from" not in teacher.settings.values
    assert teacher.inputs == ("corpus/train", "tokenizer")


def test_everything_runs_in_a_new_folder_and_nothing_in_a_finished_one(run):
    assert run.to_run() == ALL
    run.finish()
    assert run.to_run() == []


def test_the_steps_that_are_left_are_those_of_what_is_to_run(run):
    """seeds: [1, 2] makes four trainings: teacher-1, teacher-2, student-1, student-2."""
    overrides = ["seeds=[1, 2]", "stages.teacher.steps=30", "stages.student.steps=7"]
    run.finish(*overrides, names=["prepare", "tokenizer"])
    assert run.pipeline(*overrides).later_steps("teacher-1") == 30 + 7 + 7
    run.finish(*overrides, names=["teacher-2", "student-2"])
    assert run.pipeline(*overrides).later_steps("teacher-1") == 7


def test_looking_changes_nothing(run, tmp_path):
    run.to_run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.student.steps=77", ["student", "evaluation", "report"]),
        ("stages.teacher.optimizer.clip_norm=4.0", ["teacher", "student", "evaluation", "report"]),
        ("batches.seconds=3", ["teacher", "student", "evaluation", "report"]),
        ("stages.student.batches={lanes: 4, seconds: 5}", ["student", "evaluation", "report"]),
        ("augment.speeds=[1.0]", ["teacher", "student", "evaluation", "report"]),
        ("cluster.precision=bf16", ["teacher", "student", "evaluation", "report"]),
        ("tokenizer.kind=bpe", ["tokenizer", "teacher", "student", "evaluation", "report"]),
        ("features.mel_bins=40", ["tokenizer", "teacher", "student", "evaluation", "report"]),
        ("corpus.span_s=5", ALL),
        ("seed=2", ALL),
        ("stages.evaluation.models=[student]", ["evaluation", "report"]),
        ("stages.evaluation.search={kind: joint, beam: 4}", ["evaluation", "report"]),
    ],
)
def test_a_changed_setting_reruns_what_depends_on_it_and_nothing_else(run, override, expected):
    run.finish()
    assert run.to_run(override) == expected


@pytest.mark.parametrize(
    "override",
    [
        "cluster.processes=1",
        "cluster.deepspeed=zero1",
        "cluster.expert_parallel=1",
        "cluster.max_restarts=9",
        "tracking.wandb.mode=disabled",
        "stages.teacher.checkpoint.every_steps=7",
        "stages.teacher.validate_every=7",
        "stages.teacher.log_every=7",
        "stages.student.deepspeed=zero1",
    ],
)
def test_what_cannot_change_a_result_reruns_nothing(run, override):
    run.finish()
    overrides = [override] if override != "cluster.processes=1" else [override, "cluster.expert_parallel=1"]
    assert run.to_run(*overrides) == []


def test_what_changed_is_said(run):
    run.finish()
    before = load_recipe("mini").training_stage("student").steps
    assert run.reason("student", "stages.student.steps=77") == f"changed: steps {before} -> 77"


def test_a_teacher_that_came_out_differently_reruns_its_student(run):
    run.finish()
    write(run.folder.stage("teacher").model / "model.safetensors", "another teacher")
    assert run.to_run() == ["teacher", "student", "evaluation", "report"]
    assert run.reason("teacher") == "its output is gone or was changed"
    run.finish(names=["teacher"], mark=" again")
    assert run.to_run() == ["student", "evaluation", "report"]
    assert run.reason("student") == "changed: input teacher"


def test_a_corpus_that_came_out_the_same_reruns_nothing_after_it(run):
    run.finish()
    run.finish("corpus.span_s=5", names=["prepare"])
    assert run.to_run("corpus.span_s=5") == []


def test_a_stage_whose_output_was_deleted_runs_again(run):
    run.finish()
    run.folder.stage("student").model.joinpath("model.safetensors").unlink()
    assert run.to_run() == ["student", "evaluation", "report"]


def test_a_stage_that_was_cut_off_is_not_done(run):
    run.finish(names=["prepare", "tokenizer"])
    pipeline = run.pipeline()
    node = pipeline.nodes[2]
    pipeline.started(node, pipeline.status_of(node))
    run.leave_output(node)
    assert run.to_run() == ["teacher", "student", "evaluation", "report"]
    assert run.reason("teacher") == "not finished yet"


def test_a_corpus_folder_elsewhere_with_the_same_files_reruns_nothing(tmp_path):
    hashes = []
    for place in ("here", "there"):
        write(tmp_path / place / "recordings" / "0_ann_0.wav", "audio")
        recipe = load_recipe("digits", [f"corpus.root={tmp_path / place}"])
        pipeline = Pipeline(recipe, RunFolder(tmp_path / "run"))
        hashes.append(pipeline.status_of(pipeline.nodes[0]).fingerprint)
    write(tmp_path / "there" / "recordings" / "1_ann_0.wav", "more audio")
    hashes.append(pipeline.status_of(pipeline.nodes[0]).fingerprint)
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_content_of_a_searchs_files_counts_as_an_input(run, tmp_path):
    path = tmp_path / "lm.arpa"
    search = f"stages.evaluation.search={{kind: prefix_beam, language_model: {{path: {path}}}}}"
    assert run.reason("evaluation", search).startswith("waits for")
    write(path, "a model")
    run.finish(search)
    assert run.to_run(search) == []
    write(path, "another model")
    assert run.to_run(search) == ["evaluation", "report"]
    assert run.reason("evaluation", search) == f"changed: input {path}"


def test_a_setting_that_a_newer_version_adds_reruns_nothing_while_it_has_its_default(run):
    """A record of an older version lacks the setting; its stage is the same unless the setting is used."""
    run.finish()
    state = json.loads(run.folder.state_file.read_text())
    record = state["stages"]["teacher"]
    del record["settings"]["model"]["encoder"]["stochastic_depth"]
    del record["settings"]["model"]["encoder"]["experts"]
    record["fingerprint"] = hash_value({key: record[key] for key in ("settings", "inputs")})
    write(run.folder.state_file, json.dumps(state))
    assert run.to_run() == []
    assert "teacher" in run.to_run("stages.teacher.model.encoder.stochastic_depth=0.1")
    # All of an option's own settings have their defaults, and yet it was not there before.
    # A student cannot start from a teacher with experts.
    other_start = "stages.student.initialize_from_teacher=false"
    assert "teacher" in run.to_run("stages.teacher.model.encoder.experts={}", other_start)


def test_a_stage_that_an_older_version_began_goes_on_and_is_then_done(run):
    run.finish(names=ALL[:2])
    pipeline = run.pipeline()
    node = next(node for node in pipeline.nodes if node.name == "teacher")
    pipeline.started(node, pipeline.status_of(node))
    state = json.loads(run.folder.state_file.read_text())
    record = state["stages"]["teacher"]
    del record["settings"]["model"]["encoder"]["stochastic_depth"]
    record["fingerprint"] = hash_value({key: record[key] for key in ("settings", "inputs")})
    write(run.folder.state_file, json.dumps(state))
    assert run.reason("teacher") == "not finished yet"
    run.finish()
    assert run.to_run() == []
