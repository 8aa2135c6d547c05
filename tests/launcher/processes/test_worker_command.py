import socket
import sys
import threading
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
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    command = worker_command.training_command(2, RunFolder(tmp_path), "teacher", 29501)
    assert "--include=localhost:2,3" in command
    assert not any(argument.startswith("--num_gpus") for argument in command)


def test_gpus_named_in_a_way_that_deepspeed_does_not_understand_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    with pytest.raises(ConfigError, match="by their index"):
        worker_command.training_command(1, RunFolder(tmp_path), "teacher", 29501)


def test_more_processes_than_gpus_are_refused_with_the_ways_out(monkeypatch):
    import torch

    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"sees 1 GPU here.*--processes 1"):
        worker_command.check_machine(ClusterConfig(processes=2))
    worker_command.check_machine(ClusterConfig(processes=1))


@pytest.mark.parametrize("visible", ["-1", "", "NoDevFiles", " -1 ", "-1,0"])
@pytest.mark.parametrize("accelerator", [None, "cpu", ""])
def test_a_machine_whose_gpus_are_hidden_trains_on_its_processors(tmp_path, monkeypatch, visible, accelerator):
    monkeypatch.delenv("DS_ACCELERATOR")
    if accelerator is not None:
        monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    worker_command.check_machine(ClusterConfig(processes=4))
    assert "--num_gpus=4" in worker_command.training_command(4, RunFolder(tmp_path), "teacher", 29501)
    assert worker_command.worker_environment(ClusterConfig(), 4, 29501)["DS_ACCELERATOR"] == "cpu"


def test_gpus_before_a_number_that_is_none_are_those_that_cuda_sees(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,-1,3")
    assert "--include=localhost:2" in worker_command.training_command(2, RunFolder(tmp_path), "teacher", 29501)


@pytest.mark.parametrize("visible", ["-1", "", "NoDevFiles", None])
def test_gpus_that_are_asked_for_and_not_there_are_refused_without_advice_to_start_none(monkeypatch, visible):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match=r"PyTorch \S+ sees none here.*DS_ACCELERATOR=cpu") as error:
        worker_command.check_machine(ClusterConfig(processes=1))
    assert "--processes" not in str(error.value)
    if visible is not None:
        assert f"CUDA_VISIBLE_DEVICES is {visible!r}" in str(error.value)


FOREIGN_VARIABLES = {
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "1",
        "PMIX_RANK": "0",
    },
    "mpich": {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1", "HYDI_CONTROL_FD": "7"},
    "intel": {"I_MPI_HYDRA_HOST_FILE": "hosts", "PMI_FD": "9"},
    "mvapich": {"MV2_COMM_WORLD_LOCAL_RANK": "0"},
    "torchrun": {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none",
        "GROUP_RANK": "0",
        "ROLE_RANK": "3",
        "LOCAL_WORLD_SIZE": "8",
    },
    "ranks": {"RANK": "3", "LOCAL_RANK": "three", "WORLD_SIZE": "8"},
}


@pytest.mark.parametrize("family", FOREIGN_VARIABLES)
def test_the_place_of_this_process_under_another_launcher_is_not_handed_on(monkeypatch, family):
    for name, value in FOREIGN_VARIABLES[family].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    environment = worker_command.worker_environment(ClusterConfig(), 2, 29501)
    assert environment.keys().isdisjoint(FOREIGN_VARIABLES[family])
    # These two are ours.
    assert environment["MASTER_ADDR"] == "127.0.0.1"
    assert environment["MASTER_PORT"] == "29501"


@pytest.mark.parametrize(
    "name", ["SLURM_JOB_ID", "WANDB_MODE", "WANDB_RUN_ID", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "HOME", "MY_MPI_ROOT"]
)
def test_settings_of_libraries_and_of_the_user_are_handed_on(monkeypatch, name):
    monkeypatch.setenv(name, "a value")
    assert worker_command.worker_environment(ClusterConfig(), 2, 29501)[name] == "a value"


def test_a_run_folder_with_blanks_is_one_argument(tmp_path):
    run = RunFolder(tmp_path / "my runs" / "first run")
    command = worker_command.training_command(2, run, "teacher", 29501)
    assert command[-2] == str(run.path)
    assert "'" in worker_command.shown(command)


def test_a_port_that_is_taken_is_refused_with_the_name_of_its_setting(monkeypatch):
    monkeypatch.setattr(worker_command, "PORT_WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cluster\.master_port is {port}, .*in use.*leave cluster\.master_port"):
            worker_command.check_machine(ClusterConfig(master_port=port))
    worker_command.check_machine(ClusterConfig(master_port=port))


def test_a_port_that_an_ended_process_lets_go_of_is_waited_for(monkeypatch):
    monkeypatch.setattr(worker_command, "PORT_POLL_S", 0.02)
    other = socket.create_server(("127.0.0.1", 0))
    threading.Timer(0.1, other.close).start()
    worker_command.check_machine(ClusterConfig(master_port=other.getsockname()[1]))


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
