"""`chorus node` for real: two processes on this machine, each with the variables that an engine sets for a node."""

import os
import subprocess
import sys

import pytest
import yaml
from paths import HELPERS
from small_runs import STAGE, recipe_values, write_shards

from launcher.cli import main as chorus
from launcher.commands.node import place_recipe
from launcher.engines.placement import Placement
from launcher.errors import ConfigError
from launcher.run_folder import RunFolder, read_json

ROOT = HELPERS.parents[1]
HERE = "127.0.0.1"
ENGINES = {
    "torchrun": {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": HERE, "PET_NODE_RANK": "{rank}"},
    "skypilot": {"SKYPILOT_NODE_IPS": f"{HERE}\n{HERE}", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "{rank}"},
    "slurm": {
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": f"{HERE},{HERE}",
        "SLURM_NODEID": "{rank}",
    },
    "mpi": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "{rank}", "MASTER_ADDR": HERE},
}
PLACES = ("PET_", "SKYPILOT_", "SLURM_", "OMPI_", "PMI_", "TORCHELASTIC_")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def start(tmp_path, shards):
    """Starts `chorus node` as one of the nodes of a job."""
    values = recipe_values(shards)
    values["stages"][0] |= {"steps": 2, "validate_every": 2}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    started = []

    def call(variables: dict[str, str], rank: int, *options: str) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PLACES)}
        environment |= {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "WANDB_MODE": "disabled"}
        for name, value in variables.items():
            environment[name] = value.format(rank=rank)
        command = [sys.executable, "-m", "launcher.cli", "node", str(recipe), "--run-dir", str(tmp_path / "run")]
        with (tmp_path / f"output-{rank}").open("ab") as output:
            process = subprocess.Popen([*command, *options], env=environment, stdout=output, stderr=output)
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["torchrun", *(pytest.param(e, marks=pytest.mark.slow) for e in list(ENGINES)[1:])])
def test_two_nodes_of_an_engine_train_together_and_one_that_comes_after_the_end_leaves(engine, start, tmp_path):
    nodes = [start(ENGINES[engine], rank) for rank in (0, 1)]
    assert [node.wait(400) for node in nodes] == [0, 0], (tmp_path / "output-0").read_text()
    run = RunFolder(tmp_path / "run")
    assert read_json(run.stage(STAGE).done_file)["status"] == "done"
    assert {beat["rank"] for beat in run.stage(STAGE).read_heartbeats()} == {0, 1}
    # The engine starts a node that was lost at the very end: nobody would answer it.
    assert start(ENGINES[engine], 1).wait(200) == 0
    assert "this node is not needed" in (tmp_path / "output-1").read_text()


@pytest.fixture
def recipe(tmp_path, shards):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(shards)))
    return str(path)


@pytest.mark.parametrize(
    ("placement", "per_node", "processes", "expert_parallel"),
    [
        (Placement("slurm", 0, 2, HERE), None, 2, 2),
        (Placement("slurm", 0, 2, HERE, None, 2), None, 4, 2),
        (Placement("slurm", 0, 2, HERE, None, 8), None, 4, 2),
        (Placement("slurm", 0, 1, None, None, 3), None, 2, 2),
        (Placement("slurm", 0, 1, None, None, 1), None, 1, 1),
        (Placement("slurm", 0, 1, None, None, 4), 2, 2, 2),
    ],
)
def test_a_job_takes_as_many_processes_as_divide_the_lanes(
    recipe, monkeypatch, placement, per_node, processes, expert_parallel
):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    cluster = place_recipe(recipe, [], placement, per_node, None).cluster
    assert (cluster.processes, cluster.expert_parallel) == (processes, expert_parallel)
    assert cluster.kind == ("node" if placement.nodes > 1 else "local")


@pytest.mark.parametrize(
    ("settings", "placement", "fragment"),
    [
        ([], Placement("mpi", 0, 2), "MASTER_ADDR"),
        ([], Placement("slurm", 0, 3, HERE), "do not divide the 4 lanes"),
        (["cluster.launcher=slurm"], Placement("slurm", 0, 1), "takes its hosts from the engine"),
    ],
)
def test_a_job_that_cannot_run_the_recipe_is_refused(recipe, monkeypatch, settings, placement, fragment):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(ConfigError, match=fragment):
        place_recipe(recipe, settings, placement, None, None)


def test_outside_of_a_job_the_node_says_what_is_missing(recipe, monkeypatch, capsys):
    for name in list(os.environ):
        if name.startswith(PLACES) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    assert chorus(["node", recipe]) == 2
    assert "finds no variables of an engine" in capsys.readouterr().err


def test_what_only_a_node_can_start_is_not_run_otherwise(recipe, tmp_path, capsys):
    options = ["--run-dir", str(tmp_path / "run"), "--launcher", "node"]
    assert chorus(["run", recipe, *options]) == 2
    assert "only `chorus node` can use" in capsys.readouterr().err
