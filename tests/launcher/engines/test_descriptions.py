"""What `chorus submit` writes for each engine, as the published models of the engines read it."""

import importlib.util
import os
import shlex
from pathlib import Path

import pytest
import yaml

from launcher.cli import main as chorus

MINI = Path(__file__).parents[3] / "launcher/recipes/mini.yaml"
KUBERNETES = [
    "--to",
    "kubernetes",
    "--image",
    "registry.org/team/chorus:1",
    "--set",
    "cluster.kubernetes.volume=speech",
]
SKYPILOT = ["--to", "skypilot", "--image", "registry.org/team/chorus:1", "--set", "cluster.skypilot.volume=speech"]
SIZE = ["--nodes", "2", "--gpus-per-node", "2", "--set", "batches.lanes=4"]


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """`chorus submit` in a folder of its own; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*options: str, recipe: str = "mini") -> int:
        return chorus(["submit", recipe, *options])

    return call


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a stand-in for a program of an engine into PATH, which writes down its arguments."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def make(name: str, script: str = "") -> Path:
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.calls\n{script}\n')
        path.chmod(0o755)
        return tmp_path / f"{name}.calls"

    return make


def job_of(documents: list[dict]) -> dict:
    """The specification of the Job inside of each form."""
    by_kind = {document["kind"]: document for document in documents}
    if "Job" in by_kind:
        return by_kind["Job"]["spec"]
    if "JobSet" in by_kind:
        jobs = by_kind["JobSet"]["spec"]["replicatedJobs"]
    else:
        jobs = by_kind["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    return jobs[0]["template"]["spec"]


@pytest.mark.parametrize("form", ["trainjob", "jobset", "job"])
def test_a_job_of_kubernetes_starts_a_node_in_each_pod_and_knows_what_exit_codes_mean(submit, tmp_path, form):
    form_setting = f"cluster.kubernetes.form={form}"
    queue = ["--set", "cluster.kubernetes.queue=team", "--priority", "high", "--secret", "wandb"]
    options = [*KUBERNETES, *SIZE, "--set", form_setting, *queue, "--env", "GREETING=$(HOME) it's", "--dry-run"]
    assert submit(*options) == 0
    documents = list(yaml.safe_load_all((tmp_path / "jobs/mini.kubernetes.yaml").read_text()))
    job = job_of(documents)
    assert job["completions"] == job["parallelism"] == 2
    rules = job["podFailurePolicy"]["rules"]
    actions = {
        code: rule["action"] for rule in rules if "onExitCodes" in rule for code in rule["onExitCodes"]["values"]
    }
    assert actions == {2: "FailJob", 3: "FailJob", 4: "FailJob", 6: "FailJob", 75: "Ignore"}  # 5 counts as a restart
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 30 + 30  # cluster.stop_deadline_s, and the time to leave
    assert pod["restartPolicy"] == "Never"
    assert pod["priorityClassName"] == "high"
    container = pod["containers"][0]
    assert container["command"][:4] == ["chorus", "node", "mini", "--run-dir"]
    assert container["command"][4] == "/runs/mini"
    assert container["envFrom"] == [{"secretRef": {"name": "wandb"}}]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["GREETING"] == "$$(HOME) it's"  # Kubernetes puts nothing in
    # Kubeflow sets torchrun's variables itself.
    assert ("PET_NODE_RANK" in variables) == (form != "trainjob")
    assert documents[-1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_a_recipes_file_goes_along_as_it_is(submit, tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(MINI.read_text())
    assert submit(*KUBERNETES, "--dry-run", recipe=str(recipe)) == 0
    documents = list(yaml.safe_load_all((tmp_path / "jobs/mini.kubernetes.yaml").read_text()))
    assert documents[0]["data"]["recipe.yaml"] == MINI.read_text()
    assert job_of(documents)["template"]["spec"]["containers"][0]["command"][2] == "/etc/chorus/recipe.yaml"


def test_a_field_that_the_published_models_do_not_have_is_refused():
    from launcher.engines.kubernetes import _checked
    from launcher.errors import ConfigError

    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": {"template": {"spec": {}}}}
    job["spec"]["template"]["spec"] = {"containers": [{"name": "node", "imagee": "x"}]}
    with pytest.raises(ConfigError, match="fields that the installed"):
        _checked(job)


def test_a_task_of_skypilot_comes_back_on_fewer_gpus_after_a_stop_or_a_loss(submit, tmp_path):
    accelerators = ["--set", "cluster.skypilot.accelerators=[H100, A100]", "--set", "cluster.skypilot.fewer_gpus=true"]
    assert submit(*SKYPILOT, *SIZE, *accelerators, "--secret", "WANDB_API_KEY", "--env", "A=b c", "--dry-run") == 0
    text = (tmp_path / "jobs/mini.skypilot.yaml").read_text()
    task = yaml.safe_load(text)
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 5]
    choices = [choice["accelerators"] for choice in task["resources"]["ordered"]]
    assert choices == ["H100:2", "A100:2", "H100:1", "A100:1"]
    assert task["secrets"] == {"WANDB_API_KEY": None}
    words = shlex.split(task["run"])
    assert words[:4] == ["exec", "chorus", "node", "mini"]
    assert words[words.index("--engine") + 1] == "skypilot"


@pytest.mark.skipif(importlib.util.find_spec("sky") is None, reason="skypilot is not installed")
def test_skypilot_itself_takes_the_task_and_refuses_another():
    from launcher.engines.skypilot import validate
    from launcher.errors import ConfigError

    task = {"name": "a", "num_nodes": 1, "run": "true", "secrets": {"A": None}}
    assert validate(task)
    with pytest.raises(ConfigError, match="SkyPilot does not take"):
        validate(task | {"nodes": 2})


def test_a_job_of_slurm_is_the_batch_script_that_there_is(submit, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "local-0123456789")
    run = ["--run-dir", str(tmp_path / "run"), "--name", "speech", "--priority", "high", "--secret", "WANDB_API_KEY"]
    assert submit("--to", "slurm", *SIZE, *run, "--env", "A=b c", "--dry-run") == 0
    script = (tmp_path / "run/job.sbatch").read_text()
    assert script in capsys.readouterr().out
    for directive in ("--job-name=speech", "--nodes=2", "--gpus-per-node=2", "--qos=high"):
        assert f"#SBATCH {directive}\n" in script
    assert "export 'A=b c' " in script
    assert "local-0123456789" not in script


def test_a_job_is_checked_by_the_cluster_before_it_is_made(submit, program, tmp_path):
    calls = program("kubectl", "echo created")
    assert submit(*KUBERNETES, "--namespace", "asr") == 0
    checked, made = calls.read_text().splitlines()
    assert checked == f"{made} --dry-run=server"
    assert made == "--namespace=asr create -f jobs/mini.kubernetes.yaml"


def test_what_the_cluster_refuses_is_a_configuration_error(submit, program, capsys):
    program("kubectl", "echo 'no matches for kind TrainJob' >&2; exit 1")
    assert submit(*KUBERNETES) == 2
    assert "no matches for kind TrainJob" in capsys.readouterr().err


def test_the_value_of_a_secret_is_read_by_sky_and_not_from_its_arguments(submit, program, monkeypatch):
    calls = program("sky")
    monkeypatch.setenv("WANDB_API_KEY", "local-0123456789")
    assert submit(*SKYPILOT, "--secret", "WANDB_API_KEY") == 0
    assert "--secret WANDB_API_KEY jobs/mini.skypilot.yaml" in calls.read_text()
    monkeypatch.delenv("WANDB_API_KEY")
    assert submit(*SKYPILOT, "--secret", "WANDB_API_KEY") == 2


WRONG = {
    "no image": (["--to", "kubernetes", "--set", "cluster.kubernetes.volume=v"], "needs --image"),
    "no place that lasts": (["--to", "kubernetes", "--image", "a/b"], "cluster.kubernetes.volume"),
    "no such kind of GPU": ([*SKYPILOT, *SIZE], "cluster.skypilot.accelerators"),
    "another folder than the volume's": ([*KUBERNETES, "--run-dir", "/elsewhere"], "appears at /runs"),
    "nodes that do not divide the lanes": ([*KUBERNETES, "--nodes", "3", "--set", "batches.lanes=4"], "lanes"),
    "a bucket for several nodes": ([*KUBERNETES, "--nodes", "2", "--run-dir", "s3://b/r"], "speak through files"),
    "a number for a class": ([*SKYPILOT, "--priority", "high"], "number from -1000"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_an_engine_needs_and_does_not_get_is_one_paragraph(submit, tmp_path, capsys, name):
    options, fragment = WRONG[name]
    assert submit(*options) == 2
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1
    assert not (tmp_path / "jobs").exists()


def test_jobs_logs_and_stop_speak_the_engines_words(program, tmp_path, capsys):
    program("squeue", "echo '7|RUNNING|1:00|2|n[1-2]|a|b'")
    (tmp_path / "log").write_text("first\nsecond\n")
    program("scontrol", f"echo '   StdOut={tmp_path}/log'")
    cancelled = program("scancel")
    assert chorus(["jobs", "--on", "slurm", "--json"]) == 0
    assert '"name": "a|b"' in capsys.readouterr().out
    assert chorus(["logs", "7", "--on", "slurm", "--json"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == '{"job": "7", "line": "second"}'
    assert chorus(["stop", "7", "--on", "slurm"]) == 0
    assert cancelled.read_text() == "7\n"


def test_stop_on_kubernetes_removes_only_what_belongs_to_a_job_of_ours(program, capsys):
    calls = program(
        "kubectl",
        'case "$*" in *"get jobs.batch"*) echo \'{"items": [{"metadata": {"name": "mini"}}]}\';; '
        "*get*) echo '{\"items\": []}';; esac",
    )
    assert chorus(["stop", "other", "--on", "kubernetes"]) == 2
    assert "delete" not in calls.read_text()
    assert chorus(["stop", "mini", "--on", "kubernetes"]) == 0
    removals = [line for line in calls.read_text().splitlines() if line.startswith("delete")]
    assert removals
    assert all("-l app.kubernetes.io/managed-by=chorus,app.kubernetes.io/instance=mini" in line for line in removals)
