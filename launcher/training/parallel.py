"""The only place that spreads a model over processes. In this order:

1. `start_processes` joins the process group (gloo on CPUs, NCCL on GPUs) without any compiler at run time.
2. `spread_experts` leaves each process its share of every block's experts and puts in the exchange that moves frames.
3. `build_engine` hands the model to DeepSpeed, whose ZeRO stage shards what the configuration says; `update` is its
   step.
4. `fragments` and `replicas` say which interval of which parameter this process owns and copies; checkpoints are made
   of those and never touch DeepSpeed.

`ExpertParallelMixture` stands on DeepSpeed 0.19's AutoEP layer: the engine recognises experts, their process groups
and their gradient averaging by that class and by the attributes set in `_mark_parameters`. DeepSpeed's automatic AutoEP
mode stays off: it silently gives each layer a private copy of shared experts.
"""

import json
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import deepspeed
import deepspeed.ops
import torch
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import nn

from launcher.planning.memory import is_matrix
from launcher.recipe import OptimizerConfig
from model.masked_prediction import Model

# A DeepSpeedEngine; its own annotations allow for every optimizer it has, and for none.
Engine: TypeAlias = Any


def start_processes(timeout_s: float) -> torch.device:
    """Join the process group described by the environment and return this process's device."""
    # The shared-memory op only serves inference, and building it costs every first start half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed(timeout=timedelta(seconds=timeout_s), verbose=False)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def build_engine(
    recognizer: Model,
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
        # No module is "safe" for DeepSpeed: those would have their gradients added up and reduced in bf16 under ZeRO,
        # by errors of up to 2 % that depend on its stage.
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }
    adamw = torch.optim.AdamW(
        _parameter_groups(recognizer, optimizer.weight_decay),
        lr=optimizer.peak_learning_rate,
        betas=optimizer.betas,
    )
    engine, *_ = deepspeed.initialize(model=recognizer, optimizer=adamw, config=configuration)
    return engine


def _parameter_groups(recognizer: Model, weight_decay: float) -> list[dict]:
    matrices = [p for p in recognizer.parameters() if is_matrix(p)]
    known = {id(p) for p in matrices}
    vectors = [p for p in recognizer.parameters() if id(p) not in known]
    groups = [
        {"name": "matrices", "params": matrices, "weight_decay": weight_decay},
        {"name": "vectors", "params": vectors, "weight_decay": 0.0},
    ]
    return split_params_into_different_moe_groups_for_optimizer(groups)


def update(engine: Engine) -> bool:
    """Apply the step's gradients, and return True.

    When their norm is not finite nothing is applied, neither to weights nor to moments, and False is returned, on
    every process alike.
    """
    if engine.zero_optimization_stage() > 0:
        engine.step()  # looks at the norm over all processes before it applies anything
        return engine.was_step_applied()
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    if nn.utils.get_total_norm(gradients).isfinite():
        engine.step()
        return True
    engine.module.zero_grad()
    engine.micro_steps += 1  # the engine counts to the end of an accumulation
    return False


def set_learning_rate(engine: Engine, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def gradient_norm(engine: Engine) -> float:
    """Global norm of the last step's gradient before clipping; nan where the engine does not tell (ZeRO stage 0)."""
    norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm)
