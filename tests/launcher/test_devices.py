"""One decision where tensors live, for launcher, workers, planning and recognition; GPUs are pretended."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from launcher import devices
from launcher.errors import ConfigError, DistributedError
from launcher.planning.machine import machine_of
from launcher.processes.worker_command import check_evaluation_devices
from launcher.recipe import ClusterConfig, EvaluateStage


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("DS_ACCELERATOR", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_processors_asked_for_on_a_host_with_gpus_are_what_everything_uses(two_gpus, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert devices.accelerator() == "cpu"
    assert devices.worker_device() == torch.device("cpu")
    assert devices.recognition_device() == torch.device("cpu")


def test_without_a_wish_gpus_are_used_where_there_are_any(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.accelerator() == "cuda"
    assert devices.worker_device() == torch.device("cuda", 1)
    assert devices.recognition_device() == torch.device("cuda", 0)


@pytest.mark.parametrize("chosen", [None, ""])
def test_without_gpus_and_without_a_wish_the_processors_are_used(monkeypatch, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if chosen is not None:
        monkeypatch.setenv("DS_ACCELERATOR", chosen)
    assert devices.accelerator() == "cpu"
    assert devices.worker_device() == torch.device("cpu")
    assert devices.recognition_device() == torch.device("cpu")


@pytest.mark.parametrize("chosen", ["xpu", "npu", "mps", "hpu", "gpu", "CUDA", "cuda:0", " cpu", "0"])
def test_another_accelerator_is_refused_in_a_sentence_that_names_those_there_are(monkeypatch, chosen):
    monkeypatch.setenv("DS_ACCELERATOR", chosen)
    for decide in (devices.accelerator, devices.worker_device, devices.recognition_device):
        with pytest.raises(ConfigError, match="computes on cuda or cpu") as error:
            decide()
        assert repr(chosen) in str(error.value)


@pytest.mark.parametrize("decide", [devices.worker_device, devices.recognition_device, devices.num_gpus])
def test_gpus_that_are_asked_for_and_not_there_are_refused_with_what_hides_them(monkeypatch, decide):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(ConfigError, match=r"sees none here \(CUDA_VISIBLE_DEVICES is '-1'\).*DS_ACCELERATOR=cpu"):
        decide()


@pytest.mark.parametrize(("choice", "expected"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_a_device_that_is_chosen_comes_before_the_environment(two_gpus, monkeypatch, choice, expected):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert devices.recognition_device(choice) == torch.device(expected)


def test_a_gpu_beyond_those_there_are_is_refused(two_gpus):
    with pytest.raises(ConfigError, match="GPU 2 is asked for, and PyTorch sees 2 GPUs here, counted from 0"):
        devices.recognition_device("cuda:2")


def test_a_rank_without_a_gpu_of_its_own_is_refused(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="GPU 2 is asked for"):
        devices.worker_device()


def test_a_training_process_on_the_processors_of_a_host_with_gpus_takes_no_gpu(two_gpus, monkeypatch):
    from launcher.training import parallel

    def refuse(device):
        raise AssertionError(f"{device} was taken")

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    monkeypatch.setattr(parallel.deepspeed, "init_distributed", lambda **options: None)
    assert parallel.start_processes() == torch.device("cpu")


def test_a_port_that_is_taken_is_said_in_a_paragraph_that_names_its_setting(monkeypatch):
    from launcher.training import parallel

    def refuse(**options):
        raise torch.distributed.DistNetworkError(
            "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: "
            "-98, name: EADDRINUSE, message: address already in use"
        )

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(parallel.deepspeed, "init_distributed", refuse)
    with pytest.raises(DistributedError, match=r"Port 29500 is taken on \S+, .*Set cluster\.master_port to another"):
        parallel.start_processes()


def test_another_failure_to_meet_is_no_matter_of_the_port(monkeypatch):
    from launcher.training import parallel

    def refuse(**options):
        raise torch.distributed.DistNetworkError("Connection reset by peer")

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(parallel.deepspeed, "init_distributed", refuse)
    with pytest.raises(torch.distributed.DistNetworkError, match="reset by peer"):
        parallel.start_processes()


@pytest.mark.parametrize("chosen", ["xpu", "npu"])
def test_a_plan_for_another_accelerator_is_refused_and_no_key_error(monkeypatch, chosen):
    monkeypatch.setenv("DS_ACCELERATOR", chosen)
    with pytest.raises(ConfigError, match="computes on cuda or cpu"):
        machine_of(ClusterConfig(), [1])


def test_a_plan_for_gpus_on_a_machine_without_any_knows_nothing_of_their_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    machine = machine_of(ClusterConfig(), [1])
    assert machine.device == "cuda"
    assert machine.available_bytes is None


def test_an_evaluation_on_a_gpu_that_is_not_there_is_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    evaluation = {"name": "evaluation", "kind": "evaluate", "models": ["teacher"]}
    for device, refused in (("cuda:1", True), ("cpu", False), (None, False)):
        stage = EvaluateStage.model_validate({**evaluation, "device": device})
        recipe: Any = SimpleNamespace(stages=[stage])
        if refused:
            with pytest.raises(ConfigError, match="sees none here"):
                check_evaluation_devices(recipe)
        else:
            check_evaluation_devices(recipe)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "xpu", "CPU", ""])
def test_a_device_of_an_evaluation_that_is_none_is_refused_with_the_recipe(device):
    with pytest.raises(ValidationError, match="String should match pattern"):
        EvaluateStage.model_validate({"name": "e", "kind": "evaluate", "models": ["t"], "device": device})
