"""Job descriptions: what comes into them has a pattern, and a secret never does."""

from pathlib import Path

import pytest

from launcher.cli import main as chorus

SECRET = "s3cr3t-0123456789"
KUBERNETES = ["--to", "kubernetes", "--image", "a/b:1", "--set", "cluster.kubernetes.volume=speech"]
SKYPILOT = ["--to", "skypilot", "--image", "a/b:1", "--set", "cluster.skypilot.volume=speech"]
HOSTILE = {
    "a secret as a variable": ["--env", f"WANDB_API_KEY={SECRET}"],
    "a secret in a URL": ["--env", f"PROXY=http://me:{SECRET}@host/"],
    "a secret where its name belongs": ["--secret", f"WANDB_API_KEY={SECRET}"],
    "a secret in a setting": ["--set", f"corpus.shards=s3://me:{SECRET}@host/x"],
    "a secret in the run folder": ["--run-dir", f"s3://me:{SECRET}@host/x"],
    "a line more in a value": ["--env", "A=b\nc: d"],
    "a name with a line more": ["--name", "a\nb"],
    "a name that is an option": ["--name=-a"],
    "a name that is too long": ["--name", "a" * 41],
    "a name of another script": ["--name", "имя"],
    "a library for every process": ["--env", "LD_PRELOAD=/x.so"],
    "other modules for Python": ["--env", "PYTHONPATH=/x"],
    "another rank": ["--env", "PET_NODE_RANK=0"],
    "another run's token": ["--env", "CHORUS_RUN_TOKEN=0"],
    "a variable that is none": ["--env", "A B=c"],
    "an image with an option": ["--image=--privileged"],
    "an image with a line more": ["--image", "a/b\nc"],
    "a priority with a line more": ["--priority", "1\n#"],
    "a folder with a command": ["--run-dir", "/runs/$(id)"],
    "a folder that leads out": ["--run-dir", "/runs/../etc"],
    "no node": ["--nodes", "0"],
    "less than no GPU": ["--gpus-per-node", "-1"],
}


@pytest.mark.parametrize("engine", [KUBERNETES, SKYPILOT], ids=["kubernetes", "skypilot"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_part_of_a_description_is_refused_before_anything_is_written(
    name, engine, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert chorus(["submit", "mini", *engine, *HOSTILE[name], "--dry-run"]) == 2
    output = capsys.readouterr()
    assert SECRET not in output.out + output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "jobs").exists()


FILES = ["volume: 'a\n'", "mount: /runs/$(id)", "mount: /../x", "queue: A b", "gpu_resource: 'a: b'", "image: a/b"]


@pytest.mark.parametrize("line", FILES)
def test_a_recipes_file_brings_no_text_without_a_pattern_and_no_image(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mini = (Path(__file__).parents[2] / "launcher/recipes/mini.yaml").read_text()
    assert "\ncluster: {" in mini
    recipe = tmp_path / "foreign.yaml"
    value = line.replace("\n'", "\\n'")
    recipe.write_text(mini.replace("\ncluster: {", f"\ncluster: {{kubernetes: {{{value}}}, ", 1))
    assert chorus(["submit", str(recipe), *KUBERNETES[:4], "--dry-run"]) == 2
    assert f"cluster.kubernetes.{line.partition(':')[0]}" in capsys.readouterr().err
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("job", ["-1", "7;id", "a b", "../x", "--all", "7\n"])
@pytest.mark.parametrize("engine", ["slurm", "kubernetes", "skypilot"])
@pytest.mark.parametrize("command", ["logs", "stop"])
def test_the_name_of_a_job_is_no_option_of_the_engines_program(job, engine, command, capsys, tmp_path, monkeypatch):
    for program in ("kubectl", "sky", "scancel", "scontrol"):
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chorus([command, "--on", engine, "--", job]) == 2
    assert not (tmp_path / "called").exists()
