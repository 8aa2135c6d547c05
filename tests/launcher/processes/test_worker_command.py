import socket
import sys
from pathlib import Path

import pytest

from launcher.errors import ConfigError
from launcher.processes import worker_command
from launcher.recipe import ClusterConfig
from launcher.run_folder import RunFolder


@pytest.fixture(autouse=True)
def on_processors(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_training_starts_through_deepspeed_on_this_machine_alone(tmp_path):
    command = worker_command.training_command(2, RunFolder(tmp_path), "teacher", 29501)
    assert worker_command.shown(command).startswith("deepspeed --hostfile=/dev/null --num_gpus=2 ")
    assert "--master_port=29501" in command
    assert command[-4:] == ["--module", "launcher.worker", str(tmp_path), "teacher"]
    assert Path(command[0]).parent == Path(sys.executable).parent


def test_training_keeps_to_the_gpus_that_are_visible(tmp_path, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    command = worker_command.training_command(2, RunFolder(tmp_path), "teacher", 29501)
    assert "--include=localhost:2,3" in command
    assert not any(argument.startswith("--num_gpus") for argument in command)


def test_gpus_named_in_a_way_that_deepspeed_does_not_understand_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    with pytest.raises(ConfigError, match="by their index"):
        worker_command.training_command(1, RunFolder(tmp_path), "teacher", 29501)


def test_more_processes_than_gpus_are_refused_with_the_ways_out(monkeypatch):
    import torch

    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"sees 1 GPU here.*--processes 1"):
        worker_command.check_machine(ClusterConfig(processes=2))
    worker_command.check_machine(ClusterConfig(processes=1))


def test_processes_share_the_cores_unless_threads_are_given(monkeypatch):
    monkeypatch.setattr(worker_command, "num_cores", lambda: 8)
    threads = {
        (processes, given): worker_command.worker_environment(ClusterConfig(threads=given), processes, 1)[
            "OMP_NUM_THREADS"
        ]
        for processes, given in [(2, None), (16, None), (2, 3)]
    }
    assert threads == {(2, None): "4", (16, None): "1", (2, 3): "3"}


def test_workers_find_chorus_from_any_folder_and_no_package_of_that_folder(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/opt/more")
    environment = worker_command.worker_environment(ClusterConfig(), 1, 29501)
    assert environment["PYTHONPATH"].split(":") == [str(Path(worker_command.__file__).parents[2]), "/opt/more"]
    assert environment["PYTHONSAFEPATH"] == "1"
    assert environment["MASTER_PORT"] == "29501"
    assert environment["DS_ACCELERATOR"] == "cpu"


def test_a_free_port_can_be_listened_on():
    with socket.create_server(("127.0.0.1", worker_command.free_port())):
        pass


def test_processes_find_the_sources_of_this_launcher():
    path = worker_command.python_environment({"PYTHONPATH": "/elsewhere"})["PYTHONPATH"]
    sources, elsewhere = path.split(":")
    for package in ("data", "launcher", "model"):
        assert (Path(sources) / package / "__init__.py").is_file()
    assert elsewhere == "/elsewhere"
