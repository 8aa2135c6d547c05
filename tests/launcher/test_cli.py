"""The command line, with `fake_chorus.py` where a run trains and evaluates."""

import errno
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import yaml
from paths import HELPERS

from launcher.cli import main as chorus
from launcher.errors import Preempted
from launcher.processes.watchdog import processes_of
from launcher.run_folder import RunFolder, read_json
from launcher.stages.pipeline import Pipeline

FAKE_CHORUS = HELPERS / "fake_chorus.py"
ROOT = FAKE_CHORUS.parents[2]
HEAVY = ("torch", "deepspeed", "wandb", "matplotlib", "pydantic", "numpy", "rich", "yaml")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """A corpus of twelve utterances of one second of noise."""
    folder = tmp_path_factory.mktemp("corpus")
    noise = np.random.default_rng(1)
    rows = []
    for number in range(12):
        soundfile.write(folder / f"{number}.wav", 0.1 * noise.standard_normal(16000), 16000)
        split = "train" if number < 8 else "dev" if number < 10 else "test"
        rows.append({"audio": f"{number}.wav", "text": f"word{'s' * number} here", "split": split})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path, manifest):
    """mini on the manifest's corpus, with a number of steps that the tests can name."""
    values = yaml.safe_load((ROOT / "launcher/recipes/mini.yaml").read_text())
    corpus = {"name": "folder", "manifest": str(manifest), "shard_seconds": 3}
    for stage in values["stages"][:2]:
        stage["steps"] = 600
    # The fake processes evaluate as every evaluation does: one is enough.
    values["stages"] = values["stages"][:3]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | {"name": "tiny", "corpus": corpus}))
    return path


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    yield folder
    for process in processes_of(folder):
        process.kill()


@pytest.fixture
def start(recipe, run, capsys):
    """`chorus run` on the recipe in this process; returns exit code, standard output and standard error."""
    fake = runpy.run_path(str(FAKE_CHORUS))["main"]

    def call(*overrides, command=("run", str(recipe), "--run-dir", str(run.path)), **behaviours):
        settings = [part for override in overrides for part in ("--set", override)]
        code = fake(behaviours, [*command, *settings])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def launch_apart(recipe, run):
    """`chorus run` on the recipe as a process of its own."""
    started = []

    def call(**behaviours):
        command = [
            sys.executable,
            str(FAKE_CHORUS),
            json.dumps(behaviours),
            "run",
            str(recipe),
            "--run-dir",
            str(run.path),
        ]
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def wait_for_step(run, stage, step):
    for _ in range(400):
        if max(run.stage(stage).checkpoint_steps(), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"{stage} did not come to step {step}")


def started(run):
    return [event["stage"] for event in run.events() if event["event"] == "stage_started"]


@pytest.mark.alone
def imported_by(*arguments):
    """The modules that a command has imported when it is done."""
    code = (
        "import sys, launcher.cli as c\n"
        "try: c.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(output.stderr.splitlines()[-1].split())


def test_help_imports_little_and_nothing_heavy():
    """How long it takes depends on what else runs here; how much it imports does not."""
    modules = imported_by("--help")
    assert not {*HEAVY} & {name.partition(".")[0] for name in modules}
    # 138 with Python 3.11, in less than a tenth of a second.
    assert len(modules) < 170


def test_a_plan_imports_no_compiler_and_nothing_that_only_trainings_use(tmp_path):
    modules = imported_by("plan", "mini", "--run-dir", str(tmp_path))
    assert "launcher.planning.table" in modules
    compiler = {"torch._dynamo", "torch._inductor", "sympy", "networkx"}
    assert not (compiler | {"deepspeed", "pandas", "transformers", "matplotlib", "wandb", "sklearn"}) & modules
    # 1,730 with torch 2.14, of which it brings 1,300 by itself; with its compiler they were 2,600.
    assert len(modules) < 2000


def test_a_run_does_every_stage_and_a_second_one_starts_nothing(start, run):
    code, output, _ = start()
    assert code == 0
    assert started(run) == ["prepare", "tokenizer", "teacher", "student", "evaluation", "report"]
    assert read_json(run.results_file)["models"]["student"]["test"]["cer"] == 0.05
    assert "[3/6] teacher: not started yet\nteacher: learns from transcripts for 600 steps, from step 0;" in output
    assert "teacher: step 5/600" in output
    assert "teacher: done in " in output
    ending = "\n\nmodel" + output.split("\n\nmodel")[-1]
    assert "5.00%" in ending.split("student")[-1]
    assert ending.endswith(f"\nReport: {run.report_file}\n")

    code, output, _ = start()
    assert code == 0
    assert "[3/6] teacher: done already" in output
    assert output.endswith(f"Everything is done; nothing was started.{ending}")
    assert len(started(run)) == 6

    code, output, _ = start("cluster.processes=1", "cluster.expert_parallel=1")
    assert "Everything is done" in output

    code, output, _ = start("stages.student.steps=9", student={"steps": 9})
    assert started(run)[6:] == ["student", "evaluation", "report"]
    assert "student: changed: steps 600 -> 9" in output
    assert (run.path / "student.old-1" / "model" / "model.safetensors").read_text() == "student after 5 steps"
    assert (run.stage("student").model / "model.safetensors").read_text() == "student after 9 steps"

    code, output, _ = start(command=("evaluate", f"{run.path}/student", "--json"))
    assert code == 0
    assert list(json.loads(output)["models"]) == ["student"]


def test_a_lost_process_ends_the_run_with_exit_code_5_and_its_log(start, run):
    dying = {"at": 1, "do": "die", "rank": 1}
    code, _, error = start("cluster.max_restarts=0", teacher={"attempts": [dying]})
    assert code == 5
    assert error.startswith("chorus: Stage teacher failed and its 0 restarts")
    assert "rank 1 starts" in error
    assert "Traceback" not in error
    assert start(command=("status", str(run.path), "--json"))[0] == 0
    assert start()[0] == 0


def test_half_trained_work_is_set_aside_only_when_told_and_taken_up_again(start, recipe, run):
    command = ("run", str(recipe), "--run-dir", str(run.path))
    other = "stages.teacher.optimizer.clip_norm=4.0"
    once = "cluster.max_restarts=0"
    dying = {"attempts": [{"at": at, "do": "die", "rank": 0} for at in (3, 2)]}
    assert start(once, teacher=dying)[0] == 5
    steps = run.stage("teacher").checkpoint_steps()
    recipe_before = run.recipe_file.read_bytes()

    # An option that was forgotten, or given by mistake.
    code, output, error = start(once, other, teacher=dying)
    assert code == 2
    assert error.count("\n") == 1
    assert f"half trained, up to step {steps[-1]}, under other settings or inputs: optimizer.clip_norm" in error
    assert "--set-aside teacher" in error
    assert "[1/6]" not in output
    assert run.recipe_file.read_bytes() == recipe_before
    assert run.stage("teacher").checkpoint_steps() == steps
    assert start(once, other, command=(*command, "--set-aside", "pupil"))[0] == 2

    code, output, _ = start(once, other, teacher=dying, command=(*command, "--set-aside", "teacher"))
    assert code == 5
    assert run.stage("teacher.old-1").checkpoint_steps() == steps
    # The former command goes on where the former work was.
    code, output, _ = start()
    assert code == 0
    assert "teacher: goes on from teacher.old-1" in output
    assert f"from step {steps[-1]};" in output
    assert not run.stage("teacher.old-1").path.exists()
    assert not run.stage("teacher").record_file.exists()
    # Finished work comes back without being done again.
    assert start(other)[0] == 0
    events = len(started(run))
    code, output, _ = start()
    assert code == 0
    assert "teacher" not in started(run)[events:]


def test_a_finished_or_stopped_stage_is_extended_and_the_later_ones_follow(start, recipe, run):
    command = ("run", str(recipe), "--run-dir", str(run.path))
    dying = {"attempts": [{"at": 2, "do": "die", "rank": 0}]}
    assert start("cluster.max_restarts=0", command=(*command, "--extend", "stages.teacher.steps=9"))[0] == 2
    assert start("cluster.max_restarts=0", teacher=dying)[0] == 5
    longer = (*command, "--extend", "stages.teacher.steps=700")
    code, output, _ = start(command=longer)  # of a stopped one
    assert code == 0
    assert "teacher: goes on from step" in output
    before = len(started(run))

    further = (
        *command,
        "--extend",
        "stages.teacher.steps=800",
        "--extend",
        "stages.teacher.optimizer.betas=[0.8, 0.9]",
    )
    code, output, _ = start(command=further, teacher={"steps": 8})  # of a finished one
    assert code == 0
    assert "from step 5;" in output
    assert started(run)[before:] == ["teacher", "student", "evaluation", "report"]
    record = read_json(run.state_file)["stages"]["teacher"]
    assert [former["settings"]["steps"] for former in record["extended"]] == [600, 700]
    assert (record["settings"]["steps"], record["status"]) == (800, "done")
    assert [event["from_step"] for event in run.events() if event["event"] == "stage_extended"][1] == 5
    assert not run.stage("teacher.old-1").path.exists()
    code, output, _ = start(command=further)
    assert "nothing was started" in output

    for refused in ("stages.teacher.steps=3", "stages.teacher.model.encoder.width=8", "batches.seconds=3"):
        assert start(command=(*command, "--extend", refused))[0] == 2
    assert start("batches.seconds=3", command=further)[0] == 2


def test_a_stage_that_left_the_recipe_and_came_back_under_other_settings_is_no_work_of_these(start, run):
    assert start()[0] == 0
    without = ("stages.student=null", "stages.evaluation.models=[teacher]")
    assert start(*without)[0] == 0
    # As it was: nothing of it is done again.
    before = len(started(run))
    assert start()[0] == 0
    assert "student" not in started(run)[before:]
    assert start(*without)[0] == 0
    code, output, _ = start("stages.student.optimizer.clip_norm=4.0")
    assert code == 0
    assert "student: starts anew; its former work is in" in output
    assert "for 600 steps, from step 0;" in output

    # Checkpoints of which nothing says how they were trained.
    state = read_json(run.state_file)
    del state["stages"]["student"]
    run.state_file.write_text(json.dumps(state))
    code, _, error = start()
    assert code == 2
    assert "does not say under which settings they were trained" in error
    assert "--set-aside student" in error


def test_a_kill_after_work_was_set_aside_loses_neither_way_back(start, recipe, run, monkeypatch):
    dying = {"attempts": [{"at": 3, "do": "die", "rank": 0}]}
    assert start("cluster.max_restarts=0", teacher=dying)[0] == 5
    step = run.stage("teacher").checkpoint_steps()[-1]
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "forget", lambda *arguments: (_ for _ in ()).throw(Preempted("killed")))
        command = ("run", str(recipe), "--run-dir", str(run.path), "--set-aside", "teacher")
        assert start("stages.teacher.optimizer.clip_norm=4.0", command=command)[0] == 75
    assert not run.stage("teacher").path.exists()
    code, output, _ = start()
    assert code == 0
    assert "teacher: goes on from teacher.old-1" in output
    assert f"from step {step};" in output


def test_a_stage_that_was_extended_is_not_begun_anew_for_a_forgotten_option(start, recipe, run):
    command = ("run", str(recipe), "--run-dir", str(run.path))
    longer = (*command, "--extend", "stages.teacher.steps=700")
    assert start()[0] == 0
    assert start(command=longer, teacher={"steps": 8})[0] == 0
    code, output, error = start()
    assert code == 2
    assert "was extended up to step" in error
    assert "steps 700 -> 600" in error
    assert "[1/6]" not in output
    assert start("stages.teacher.steps=700")[0] == 0

    # Told to, it is set aside, and the extension is there again when it is asked for.
    assert start(command=(*command, "--set-aside", "teacher"))[0] == 0
    assert "extended" not in read_json(run.state_file)["stages"]["teacher"]
    code, output, _ = start(command=longer)
    assert code == 0
    assert "teacher: goes on from teacher.old-1" in output
    assert len(read_json(run.state_file)["stages"]["teacher"]["extended"]) == 1


def test_a_forgotten_option_of_a_stage_before_a_half_trained_one_changes_nothing(start, run):
    dying = {"attempts": [{"at": 3, "do": "die", "rank": 0}]}
    assert start("cluster.max_restarts=0", student=dying)[0] == 5
    before = len(started(run))
    changes = {
        "stages.teacher.optimizer.clip_norm=4.0": "teacher: optimizer.clip_norm",
        "tokenizer.pieces=12": "tokenizer: tokenizer.pieces",
    }
    for option, change in changes.items():
        code, _, error = start(option)
        assert code == 2
        assert f"Stage student in {run.path} is half trained" in error
        assert change in error
    assert len(started(run)) == before


def test_work_that_was_moved_back_by_hand_goes_on(start, recipe, run):
    dying = {"attempts": [{"at": 2, "do": "die", "rank": 0}] * 2}
    once = "cluster.max_restarts=0"
    other = "stages.teacher.optimizer.clip_norm=4.0"
    assert start(once, teacher=dying)[0] == 5
    command = ("run", str(recipe), "--run-dir", str(run.path), "--set-aside", "teacher")
    assert start(once, other, teacher=dying, command=command)[0] == 5
    shutil.move(run.stage("teacher").path, run.path / "elsewhere")
    shutil.move(run.stage("teacher.old-1").path, run.stage("teacher").path)
    step = run.stage("teacher").checkpoint_steps()[-1]
    code, output, _ = start()
    assert code == 0
    assert f"from step {step};" in output


def test_a_run_that_goes_on_can_be_followed_and_stopped_and_taken_up_again(start, run, launch_apart):
    process = launch_apart(teacher={"steps": 1000})
    wait_for_step(run, "teacher", 4)
    status = json.loads(start(command=("status", str(run.path), "--json"))[1])
    assert status["process"] == process.pid
    teacher = next(stage for stage in status["stages"] if stage["name"] == "teacher")
    assert teacher["status"] == "running"
    assert 0 < teacher["step"] < 600 == teacher["steps"]
    assert teacher["eta_s"] > 0
    assert teacher["checkpoint_step"] >= 4

    code, _, error = start()
    assert code == 2
    assert f"in use by process {process.pid}" in error

    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "Stage teacher is stopped" in error
    assert "Run the same command again to go on: chorus" in error
    assert len(error.strip().splitlines()) == 1
    assert "stopped" in start(command=("status", str(run.path)))[1]

    step = max(run.stage("teacher").checkpoint_steps())
    code, output, _ = start(teacher={"steps": step + 3})
    assert code == 0
    assert f"from step {step}" in output
    assert started(run).count("prepare") == 1


SIGNAL_ON_IMPORT = """
import os, signal, sys

class SignalOnImport:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, SignalOnImport())
from launcher.cli import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(
    ("module", "number"), [("launcher.commands.run", "SIGTERM"), ("pydantic", "SIGINT"), ("torch", "SIGUSR1")]
)
def test_a_run_that_is_stopped_while_it_still_imports_ends_like_any_stopped_run(run, module, number):
    arguments = ["run", "mini", "--run-dir", str(run.path)]
    code = SIGNAL_ON_IMPORT.format(module=module, signal=number, arguments=arguments)
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    stopped = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert stopped.returncode == 75
    command = f"chorus {' '.join(arguments)}"
    message = f"chorus: The run was asked to stop. Run the same command again to go on: {command}\n"
    assert stopped.stderr == message
    assert not run.path.exists()


def test_a_killed_run_is_taken_up_where_it_was(start, run, launch_apart):
    process = launch_apart(teacher={"steps": 1000})
    wait_for_step(run, "teacher", 3)
    process.kill()
    process.wait()
    status = json.loads(start(command=("status", str(run.path), "--json"))[1])
    assert status["process"] is None
    assert status["stages"][2]["status"] == "interrupted"
    code, output, _ = start(teacher={"steps": 20})
    assert code == 0
    assert "that an earlier launcher had left behind" in output
    assert started(run).count("prepare") == 1


def test_plan_shows_sizes_and_commands_and_starts_nothing(run, capsys):
    run_dir = ("--run-dir", str(run.path))
    assert chorus(["plan", "mini", *run_dir, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not run.path.exists()
    teacher, student = plan["stages"][2:4]
    assert teacher["effective_encoder_parameters"] == teacher["encoder_parameters"] > student["encoder_parameters"]
    assert "launcher.worker" in teacher["commands"][0]["command"]
    assert not any(stage["done"] for stage in plan["stages"])
    assert chorus(["plan", "mini", *run_dir]) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("memory per process", "GFLOPs per s of audio", "experts", "zero3"))
    # Where no terminal is, a stage and its state stand in one row.
    (row,) = [line for line in shown.splitlines() if line.startswith("student ") and "distill" in line]
    assert row.rstrip().endswith("waits for corpus/train, tokenizer, teacher")


def test_a_plan_adds_up(run, capsys):
    changes = ["--set", "cluster.processes=2", "--set", "cluster.expert_parallel=2"]
    assert chorus(["plan", "mini", "--run-dir", str(run.path), "--json", *changes]) == 0
    teacher, student = json.loads(capsys.readouterr().out)["stages"][2:4]
    for stage in (teacher, student):
        parts = stage["parts"].values()
        assert sum(part["unique"] for part in parts) == stage["parameters"]
        assert sum(part["operations_per_s"] for part in parts) == pytest.approx(stage["operations_per_s"])
        memory = stage["memory_bytes"]
        between = sum(memory[kind] for kind in ("weights", "master", "moments", "teacher", "framework"))
        assert between + memory["activations"] < memory["total"] < sum(memory.values()) - memory["total"]
        assert memory["activations"] > 0
        assert stage["traffic_bytes"]["gradients"] > 0
        assert 0 < stage["communication_share"] < 1
    assert student["memory_bytes"]["teacher"] == 4 * teacher["parameters"]
    more = student["training_operations_per_s"] - 3 * student["operations_per_s"]
    assert more == pytest.approx(teacher["operations_per_s"], rel=0.1)  # and CTC once more, at a layer before the last
    choices = {(row["deepspeed"], row["expert_parallel"]): row["memory_bytes"] for row in student["memory_choices"]}
    assert choices["zero2", 2] == student["memory_bytes"]
    assert set(choices) == {("zero0", 1), *((f"zero{stage}", size) for stage in (1, 2, 3) for size in (1, 2))}
    assert choices["zero2", 2]["weights"] < choices["zero2", 1]["weights"]


@pytest.mark.parametrize(
    ("command", "code", "fragment"),
    [
        (["run", "mini", "--set", "stages.teacher.stesp=3"], 2, "did you mean 'steps'?"),
        (["run", "mini", "--processes", "3"], 2, "Choose one of 1, 2 processes"),
        (["run", "digits", "--set", "corpus.root=/nowhere"], 3, "/nowhere, which does not exist"),
        (["status", "/nowhere"], 2, "is not a run folder"),
        (["evaluate", "/nowhere/student"], 2, "is not a run folder"),
        (
            ["run", "mini", "--set", "stages.evaluation.search={kind: prefix_beam, beam: 4, n_best: 9}"],
            2,
            "stages.evaluation.search: n_best is 9 and beam 4",
        ),
        (["run", "mini", "--set", "stages.evaluation.search={kind: joint, bean: 4}"], 2, "did you mean 'beam'?"),
        (["run", "mini", "--set", "stages.evaluation.search.kind=jiont"], 2, "did you mean 'joint'?"),
        (
            [
                "run",
                "mini",
                *("--set", "stages.evaluation.search.kind=joint"),
                *("--set", "stages.student.model.decoder=null", "--set", "stages.teacher.model.decoder=null"),
            ],
            2,
            "model teacher of stage evaluation has none",
        ),
        (
            ["run", "mini", "--set", "stages.evaluation.search={kind: rescoring, reverse_weight: 0.3}"],
            2,
            "right_to_left_layers is 0",
        ),
        (
            ["run", "mini", "--set", "stages.evaluation.search={kind: joint, language_model: {path: /nowhere/a.arpa}}"],
            3,
            "stages.evaluation.search.language_model.path is /nowhere/a.arpa",
        ),
        (["report", "/nowhere"], 2, "is not a run folder"),
        (["transcribe", "/nowhere/student", "a.wav"], 4, "holds no finished model"),
        (["shards", "verify", "/nowhere"], 3, "no shards at /nowhere"),
        (["prepare", "folder", "--out", "/nowhere"], 2, "manifest is missing"),
        (["prepare", "fsdd", "--out", "/nowhere", "--root", "/nowhere", "--min-digits", "9"], 2, "swap them"),
    ],
)
def test_a_users_mistake_is_one_paragraph_with_its_exit_code(capsys, tmp_path, monkeypatch, command, code, fragment):
    monkeypatch.chdir(tmp_path)
    assert chorus(command) == code
    error = capsys.readouterr().err
    assert error.startswith("chorus: ")
    assert fragment in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("run_dir", "words"),
    [
        ("file/run", "Not a directory. A file stands where a folder belongs"),
        ("name" * 80, "File name too long. Choose a shorter name"),
        ("/proc/run", "cannot be used"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_one_paragraph(recipe, tmp_path, capsys, monkeypatch, run_dir, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    # What the system says of /proc differs from one to the next.
    if run_dir == "/proc/run":
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/proc/run/.state.json.tmp")
        monkeypatch.setattr(RunFolder, "locked", lambda self: (_ for _ in ()).throw(full))
    assert chorus(["run", str(recipe), "--run-dir", run_dir]) == 2
    error = capsys.readouterr().err
    assert error.startswith("chorus: ")
    assert words in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("redirection", "code", "errors"),
    [
        ("<&- >&- 2>&-", 0, ""),
        ("| true", 0, ""),
        (
            "> /dev/full",
            2,
            "chorus: The output of this command, or a file that it writes, cannot be used: No space",
        ),
    ],
)
def test_output_that_nobody_takes_is_no_traceback(tmp_path, redirection, code, errors):
    (tmp_path / "text.txt").write_text("one two three four\n")
    command = f"{sys.executable} -m launcher.cli language-model {tmp_path}/text.txt --out {tmp_path}/model.arpa"
    script = f"set -o pipefail; {command} {redirection}"
    ended = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == code
    assert ended.stderr.startswith(errors)
    assert len(ended.stderr.splitlines()) == bool(errors)


def test_a_run_whose_output_nobody_reads_any_more_goes_on(recipe, run):
    command = [sys.executable, str(FAKE_CHORUS), "{}", "run", str(recipe), "--run-dir", str(run.path)]
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert started(run)[-1] == "report"


def test_a_folder_that_is_no_run_folder_is_not_written_to(start, run):
    run.path.mkdir()
    (run.path / "thesis.tex").write_text("")
    code, _, error = start()
    assert code == 2
    assert "holds thesis.tex" in error
    assert [path.name for path in run.path.iterdir()] == ["thesis.tex"]


def test_the_folder_of_another_recipe_is_refused(start, run):
    run.path.mkdir()
    run.state_file.write_text(json.dumps({"format": 1, "recipe": "other", "stages": {}}))
    code, _, error = start()
    assert code == 2
    assert "holds a run of recipe 'other'" in error


def test_prepared_shards_can_be_verified_counted_and_trained_from(start, manifest, tmp_path, capsys):
    shards = tmp_path / "shards"
    prepare = [
        "prepare",
        "folder",
        "--out",
        str(shards),
        "--manifest",
        str(manifest),
        "--shard-seconds",
        "3",
        "--json",
    ]
    assert chorus(prepare) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["utterances"] == 8
    assert chorus(["shards", "verify", str(shards)]) == 0
    assert chorus(["shards", "stats", str(shards / "train"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("intact\n")[-1])["train"]["utterances"] == 8
    assert start(f"corpus={{shards: {shards}}}")[0] == 0

    shard = next((shards / "dev").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert chorus(["shards", "verify", str(shards)]) == 3
    assert f"{shard.name}: the SHA-256 is not the recorded one" in capsys.readouterr().out


def test_prepare_shows_where_every_row_went_and_the_first_reasons(manifest, tmp_path, capsys):
    rows = manifest.read_text().splitlines()
    rows += ['{"audio": "gone-1.wav", "text": "t"}', '{"audio": "gone-2.wav", "text": "t"}', "not JSON \\u001b[31m"]
    other = manifest.with_name("with-faults.jsonl")
    other.write_text("\n".join(rows) + "\n")
    command = ["prepare", "folder", "--out", str(tmp_path / "shards"), "--manifest", str(other)]
    assert chorus(command) == 0
    printed = capsys.readouterr().out
    num_used = len(rows) - 3
    assert f"{len(rows)} rows in: {num_used} used, 3 rejected: 2 no such file (first: line {num_used + 1}: " in printed
    assert "1 not JSON (first: line" in printed
    assert f"{tmp_path / 'shards' / 'rejected.jsonl'} says why of each rejected row" in printed
    assert chorus([*command, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["rows"], counts["used"], counts["rejected"]) == (len(rows), num_used, 3)
    assert [(reason["kind"], reason["rows"]) for reason in counts["reasons"]] == [("no such file", 2), ("not JSON", 1)]


def test_doctor_names_versions_accelerator_and_login(capsys):
    assert chorus(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["deepspeed"].startswith("0.19")
    assert {"accelerator", "processes", "disk", "wandb"} <= found.keys()


def test_the_search_options_name_every_search_of_a_recipe():
    from typing import get_args

    from launcher.commands.search_options import SEARCH_KINDS
    from launcher.recipe import SearchConfig

    kinds = [get_args(config.model_fields["kind"].annotation)[0] for config in get_args(get_args(SearchConfig)[0])]
    assert list(SEARCH_KINDS) == kinds


def test_a_run_over_many_hosts_is_evaluated_again_without_them(start, run):
    assert start()[0] == 0
    values = yaml.safe_load(run.recipe_file.read_text())
    values["cluster"] |= {"launcher": "ssh", "hostfile": "/nowhere/hosts"}
    run.recipe_file.write_text(yaml.safe_dump(values))
    run.stage("evaluation").evaluation_file.unlink()
    assert start(command=("evaluate", str(run.path)))[0] == 0
    assert read_json(run.stage("evaluation").launch_file)["launcher"] == "local"
    assert yaml.safe_load(run.recipe_file.read_text()) == values


def test_an_evaluation_is_repeated_with_another_search_and_nothing_else_is(start, run):
    assert start()[0] == 0
    words = run.path.parent / "words.txt"
    words.write_text("hello\n")
    evaluate = ("evaluate", str(run.path))
    assert "done already" in start(command=evaluate)[1]
    code, output, _ = start(command=(*evaluate, "--search", "joint", "--beam", "4", "--hotwords", str(words)))
    assert code == 0
    assert "search.kind greedy -> joint" in output
    search = yaml.safe_load(run.recipe_file.read_text())["stages"][2]["search"]
    assert (search["kind"], search["beam"], search["hotwords"]["path"]) == ("joint", 4, str(words))
    assert "done already" in start(command=evaluate)[1]
    code, output, _ = start("stages.evaluation.search.beam=5", command=evaluate)
    assert (code, "search.beam 4 -> 5" in output) == (0, True)
    assert started(run).count("evaluation") == 3
    code, _, error = start(command=(*evaluate, "--device", "cuda:7"))
    assert (code, "PyTorch sees" in error or "sees none here" in error) == (2, True)
    code, output, _ = start(command=(*evaluate, "--device", "cpu"))
    assert code == 0
    assert "device" in output, output
    assert started(run).count("evaluation") == 4
    assert started(run).count("student") == 1
    code, _, error = start("stages.student.steps=7", command=evaluate)
    assert (code, "changes more than the evaluations" in error) == (2, True)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (("--beam", "0"), "search.beam is 0"),
        (("--language-model", "/nowhere/lm.arpa"), "search.language_model.path is /nowhere/lm.arpa"),
        (("--search", "joint", "--set", "ctc_wait=0.3"), "did you mean 'ctc_weight'?"),
        (("--language-model-weight", "0.3"), "search.language_model: a language model is read from a path"),
    ],
)
def test_search_options_are_checked_before_a_model_is_read(tmp_path, capsys, options, fragment):
    (tmp_path / "model.safetensors").write_text("no model")
    assert chorus(["transcribe", str(tmp_path), "a.wav", *options]) in (2, 3)
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1
