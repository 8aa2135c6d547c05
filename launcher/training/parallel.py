"""A finished model spread over processes. In this order:

1. `start_processes` joins the process group (gloo on CPUs, NCCL on GPUs) without any compiler at run time.
2. `spread_experts` (expert_parallel.py) leaves each process its part of every block's experts and puts in the token
   dispatcher that moves frames to them.
3. `build_engine` hands the model to DeepSpeed, whose ZeRO stage shards what the configuration says; `update` is its
   step.
4. `owned_fragments` and `replica_fragments` (fragments.py) say which interval of which parameter this process owns and
   which copies it computes with. Checkpoints are made of those and never touch DeepSpeed.
"""

import errno
import ipaddress
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param, split_params_into_different_moe_groups_for_optimizer
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
from torch import nn
from torch.distributed import DistNetworkError

from launcher.devices import worker_device
from launcher.errors import DistributedError
from launcher.planning.memory import is_matrix
from launcher.recipe import OptimizerConfig
from model.masked_prediction import Model

# A DeepSpeedEngine; its own annotations allow for every optimizer it has, and for none.
Engine: TypeAlias = Any

# Collectives wait for slow processes as long as these report: which one is silent for too long, the watchdog of the
# launcher says, and without a launcher there are no processes. This only has to be longer than any of its deadlines.
LONGEST_WAIT_S = 30 * 86_400.0
# On Linux, and on macOS.
LOOPBACK_INTERFACES = ("lo", "lo0")
STAND_IN = "stand_in_for_experts"


def start_processes(timeout_s: float = LONGEST_WAIT_S) -> torch.device:
    """Join the process group described by the environment and return this process's device.

    ConfigError for a device that is not there, DistributedError where the port of the first process is taken.
    """
    device = worker_device()
    # The shared-memory op only serves inference, and building it costs every first start half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    timeout = timedelta(seconds=timeout_s)
    try:
        is_loopback = ipaddress.ip_address(os.environ.get("MASTER_ADDR", "")).is_loopback
    except ValueError:
        # A name may lead anywhere.
        is_loopback = False
    try:
        if is_loopback:
            _join_on_this_machine(device, timeout)
        # Joins the other processes where that is not done, and tells DeepSpeed of them.
        deepspeed.init_distributed(timeout=timeout, verbose=False)
    except (DistNetworkError, OSError) as error:
        if "EADDRINUSE" not in str(error) and getattr(error, "errno", None) != errno.EADDRINUSE:
            raise
        raise DistributedError(
            f"Port {os.environ['MASTER_PORT']} is taken on {socket.gethostname()}, where the first process has to "
            "listen on it. Set cluster.master_port to another one, or leave it out: another is drawn at every start "
            "then. `ss -ltnp` shows which program has it."
        ) from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _join_on_this_machine(device: torch.device, timeout: timedelta) -> None:
    """Join processes that are all on this machine, by ports that no other machine reaches.

    By itself torch's store listens on all addresses and believes whoever connects to it; gloo listens on the address of
    the host's name.
    """
    address = os.environ["MASTER_ADDR"]
    port = int(os.environ["MASTER_PORT"])
    rank = int(os.environ["RANK"])
    world_size = int(os.environ["WORLD_SIZE"])
    listener = None
    if rank == 0:
        # The store owns the socket from here on.
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=2048).detach()
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        address,
        port,
        world_size,
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=listener,
    )
    backend = "gloo"
    # As DeepSpeed does, whose later groups are split off this one.
    bound_device = None
    if device.type == "cuda":
        backend = "nccl"
        if world_size > 1:
            bound_device = device
    for interface in LOOPBACK_INTERFACES:
        if any(name == interface for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=bound_device,
    )


def build_engine(
    model: Model,
    optimizer: OptimizerConfig,
    deepspeed_file: Path,
    accumulation: int,
    precision: str,
) -> Engine:
    """The DeepSpeed engine of a model whose experts are spread. `accumulation` micro-batches make one step.

    The optimizer is torch's AdamW: DeepSpeed's own would be compiled at the first start.
    """
    configuration = json.loads(deepspeed_file.read_text(encoding="utf-8"))
    configuration |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "steps_per_print": 2**62,
        "torch_autocast": {
            "enabled": precision == "bf16",
            "dtype": "bfloat16",
            # No module is "safe" for DeepSpeed: those would have their gradients added up and reduced in bf16 under
            # ZeRO, by errors of up to 2 % that depend on its stage.
            "lower_precision_safe_modules": [],
        },
    }

    # Weight decay pulls matrices to zero, never the biases and scales of norms.
    matrices = []
    vectors = []
    for parameter in model.parameters():
        # Frozen ones have no moments, and no decay either.
        if not parameter.requires_grad:
            continue
        if is_matrix(parameter):
            matrices.append(parameter)
        else:
            vectors.append(parameter)
    groups: list[dict[str, Any]] = []
    # ZeRO cannot flatten a group of which all is frozen.
    if matrices:
        groups.append({"name": "matrices", "params": matrices, "weight_decay": optimizer.weight_decay})
    if vectors:
        groups.append({"name": "vectors", "params": vectors, "weight_decay": 0.0})
    # DeepSpeed reduces experts among the processes that hold the same ones: they are groups of their own.
    groups = split_params_into_different_moe_groups_for_optimizer(groups)
    stand_in = None
    if configuration.get("zero_optimization", {}).get("stage", 0) in (1, 2):
        stand_in = _stand_in_for_experts(model)
    if stand_in is not None:
        groups.append({"name": stand_in.group_name, "params": [stand_in], "weight_decay": 0.0, "moe": True})
    adamw = torch.optim.AdamW(
        groups,
        lr=optimizer.peak_learning_rate,
        betas=optimizer.betas,
    )
    if stand_in is not None:
        # While the engine is built it asks for the name of every parameter.
        model.register_parameter(STAND_IN, stand_in)
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=configuration)
    if stand_in is not None:
        delattr(model, STAND_IN)
    return engine


def _stand_in_for_experts(model: Model) -> Any:
    """A parameter of no use where experts are spread and all of them are frozen, else None.

    ZeRO 1 and 2 refuse a model with expert layers none of whose experts is trained (DeepSpeed 0.19). No module computes
    with this one, and it is in no checkpoint.
    """
    frozen_expert = None
    for parameter in model.parameters():
        if not is_moe_param(parameter):
            continue
        if parameter.requires_grad:
            return None
        frozen_expert = parameter
    if frozen_expert is None:
        return None
    stand_in: Any = nn.Parameter(torch.zeros(1, device=frozen_expert.device))
    stand_in.allreduce = False
    stand_in.group_name = frozen_expert.group_name  # pyright: ignore[reportAttributeAccessIssue]
    return stand_in


def update(engine: Engine) -> bool:
    """Apply the step's gradients, and return True.

    When their norm is not finite nothing is applied, neither to weights nor to moments, and False is returned, on
    every process alike.
    """
    if engine.zero_optimization_stage() > 0:
        engine.step()  # looks at the norm over all processes before it applies anything
        return engine.was_step_applied()

    # Without ZeRO the engine applies whatever there is. Gradients are averaged over the processes already, so all of
    # them see the same norm.
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    if nn.utils.get_total_norm(gradients).isfinite():
        engine.step()
        return True
    engine.module.zero_grad()
    engine.micro_steps += 1  # the engine counts to the end of an accumulation
    return False


@contextmanager
def accumulating(engine: Engine) -> Iterator[None]:
    """A backward pass in here is not the last of the step, whatever the engine has counted."""
    engine.set_gradient_accumulation_boundary(False)
    try:
        yield
    finally:
        # As before: the engine counts.
        engine.set_gradient_accumulation_boundary(None)


def can_discard_gradients(engine: Engine) -> bool:
    """Whether `discard_gradients` is possible: what other processes received of them cannot be taken back, and a
    forward pass that was broken off leaves weights of ZeRO 3 half gathered."""
    return dist.get_world_size() == 1 and engine.zero_optimization_stage() <= 2


def discard_gradients(engine: Engine) -> None:
    """Forget what was computed of a step, also where a backward pass was broken off.

    Private parts of DeepSpeed 0.19: what its ZeRO optimizer clears after a skipped update, and the counts that a
    backward pass leaves where an error ends it.
    """
    assert can_discard_gradients(engine)
    for parameter in engine.module.parameters():
        parameter.grad = None
    engine.micro_steps -= engine.micro_steps % engine.gradient_accumulation_steps()
    if engine.zero_optimization_stage() == 0:
        return
    zero = engine.optimizer
    zero.zero_grad()
    for gradients in (zero.averaged_gradients, zero.all_grad_tensors):
        for group in gradients:
            gradients[group] = None
    zero.params_already_reduced = [False] * len(zero.params_already_reduced)
    for bucket in zero.ipg_buckets.values():
        bucket.clear()
    zero.extra_large_param_to_reduce.clear()
    zero._release_ipg_buffers()
    zero.micro_step_id = INITIAL_MICRO_STEP_ID
    hooks = zero._backward_hook_state
    hooks.backward_active_depth = 0
    hooks.remaining_grad_acc_hooks = 0
    hooks.reset_for_new_step()


def set_learning_rate(engine: Engine, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def gradient_norm(engine: Engine) -> float:
    """Global norm of the last step's gradient before clipping; nan where the engine does not tell (ZeRO stage 0)."""
    norm = engine.get_global_grad_norm()
    if norm is None:
        return float("nan")
    return float(norm)
