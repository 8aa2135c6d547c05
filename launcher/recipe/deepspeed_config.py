"""The JSON files that tell DeepSpeed how to spread a training.

They decide about ZeRO and communication and nothing else. What the recipe decides is refused in them, because
the recipe would win without a word; so is what DeepSpeed computes wrongly, or Chorus does not support, here.
"""

import json
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError
from launcher.recipe.yaml_io import nearest

DEEPSPEED_CONFIGS = Path(__file__).parents[2] / "ds_configs"

# What `build_engine` sets itself, by the settings of the recipe that decide it.
DECIDED_BY_RECIPE = {
    "train_batch_size": "batches.lanes and batches.seconds decide it",
    "train_micro_batch_size_per_gpu": "batches.seconds decides it",
    "gradient_accumulation_steps": "batches.lanes over cluster.processes decides it",
    "gradient_clipping": "optimizer.clip_norm of the stage decides it",
    "optimizer": "the optimizer section of the stage decides it",
    "scheduler": "optimizer.schedule of the stage decides it",
    "fp16": "cluster.precision decides it",
    "bf16": "cluster.precision decides it",
    "bfloat16": "cluster.precision decides it",
    "amp": "cluster.precision decides it",
    "torch_autocast": "cluster.precision decides it",
    "steps_per_print": "log_every of the stage decides how often progress is written",
}
# All spellings of DeepSpeed, the old ones included.
OFFLOADING = ("offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_param")


def find_deepspeed_config(name: str) -> Path:
    """Return the JSON file of a DeepSpeed configuration given by its name in ds_configs/ or by a path."""
    if name.endswith(".json") or "/" in name:
        path = Path(name).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"The DeepSpeed configuration {path} does not exist.")
        return path

    path = DEEPSPEED_CONFIGS / f"{name}.json"
    if not path.is_file():
        known = sorted(file.stem for file in DEEPSPEED_CONFIGS.glob("*.json"))
        raise ConfigError(f"There is no DeepSpeed configuration {name!r}{nearest(name, known)}")
    return path


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file; ConfigError with line and column when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"The DeepSpeed configuration {path} is not readable as JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"The DeepSpeed configuration {path} holds no JSON object.")
    return values


def zero_stage(values: dict[str, Any]) -> int:
    """Return the ZeRO stage of a configuration; DeepSpeed takes one without for stage 0."""
    return values.get("zero_optimization", {}).get("stage", 0)


def check_deepspeed_config(path: Path, stage: str, expert_parallel: int) -> None:
    """Refuse (ConfigError) a file that a training stage with experts spread over so many processes cannot use."""
    reason = refusal(read_deepspeed_config(path), expert_parallel)
    if reason:
        raise ConfigError(f"The DeepSpeed configuration {path} of stage {stage} {reason}.")


def refusal(values: dict[str, Any], expert_parallel: int) -> str | None:
    """Return why a configuration cannot be used with experts spread over so many processes; none when it can.

    That what DeepSpeed computes wrongly is still computed wrongly is held by tests/launcher/training/test_refusals.py.
    """
    decided = [f"{key}: {DECIDED_BY_RECIPE[key]}" for key in values if key in DECIDED_BY_RECIPE]
    if decided:
        return (
            f"sets what the recipe decides, and would be overridden without a word. Remove from it {'; '.join(decided)}"
        )

    # Both go wrong with blocks and experts that several layers share.
    if "activation_checkpointing" in values:
        return (
            "has activation_checkpointing, which is reentrant: with shared blocks it fails under ZeRO-2 "
            "and gives wrong gradients under ZeRO-3 without a word. Remove it and set "
            "model.encoder.activation_checkpointing"
        )
    if "expert_parallel" in values:
        return (
            "has expert_parallel, which gives every layer its own copy of shared experts without a word. "
            "Remove it; cluster.expert_parallel does it"
        )
    return _zero_refusal(values, expert_parallel)


def _zero_refusal(values: dict[str, Any], expert_parallel: int) -> str | None:
    """Return why the section `zero_optimization` cannot be used; none when it can."""
    zero = values.get("zero_optimization", {})
    if not isinstance(zero, dict):
        return f"has {zero!r} for zero_optimization, which is an object with a stage, as in ds_configs/zero2.json"

    level = zero_stage(values)
    if level not in (0, 1, 2, 3):
        return f"has {level!r} for zero_optimization.stage, which is 0, 1, 2 or 3. Use zero0, zero1, zero2 or zero3"

    for key in OFFLOADING:
        if key in zero:
            return (
                f"has {key}, which no test of Chorus covers: its checkpoints read weights and moments "
                "where ZeRO without offloading keeps them. Remove it, or use zero1 or zero2"
            )

    # The fallback that reduces without a contiguous buffer sums over all processes, also those with other experts.
    if level == 1 and zero.get("contiguous_gradients", True) is False:
        return (
            "has ZeRO stage 1 with contiguous_gradients false, which sums the gradients of different "
            "experts without a word. Set contiguous_gradients to true"
        )

    # Without ZeRO each process clips by the mean of norms that count its own experts alone.
    if level == 0 and expert_parallel > 1:
        return (
            "has ZeRO stage 0, which measures the gradient's norm per process and so clips wrongly when "
            f"experts are spread over processes (cluster.expert_parallel is {expert_parallel}). Use zero1 or "
            "zero2, or --set cluster.expert_parallel=1"
        )
    return None
