"""The JSON files that tell DeepSpeed how to spread a training.

They decide about ZeRO and communication and nothing else: only these keys are taken. What the recipe decides is refused
in them, because the recipe would win without a word; so is what DeepSpeed computes wrongly, or Chorus does not support,
here, and what writes files, starts monitors or commands, or names code.
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
# What a file may hold. Everything else that DeepSpeed 0.19 knows writes files (flops_profiler, checkpoint, nebula),
# opens connections (wandb, comet, tensorboard), starts commands (autotuning, elasticity), or trains something else.
ALLOWED = {
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
    "disable_allgather",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "use_data_before_expert_parallelism",
}
# Of the section zero_optimization. Not: what names classes or loads weights.
ALLOWED_ZERO = {
    "stage",
    "contiguous_gradients",
    "reduce_scatter",
    "reduce_bucket_size",
    "use_multi_rank_bucket_allreduce",
    "allgather_partitions",
    "allgather_bucket_size",
    "overlap_comm",
    "sub_group_size",
    "prefetch_bucket_size",
    "param_persistence_threshold",
    "model_persistence_threshold",
    "max_live_parameters",
    "max_reuse_distance",
    "gather_16bit_weights_on_model_save",
    "module_granularity_threshold",
    "use_all_reduce_for_fetch_params",
    "allgather_sequential",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save",
    "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential",
    "ignore_unused_parameters",
    "legacy_stage1",
    "round_robin_gradients",
    "parameter_alignment",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
    "memory_efficient_linear",
    "log_trace_cache_warnings",
    "enable_sanity_checks",
}
# Those of ds_configs/ have a few hundred bytes.
MAX_BYTES = 1 << 20
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
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"The DeepSpeed configuration {path} has more than {MAX_BYTES:,} bytes: it is none.")
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise ConfigError(f"The DeepSpeed configuration {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"The DeepSpeed configuration {path} is not readable as JSON: {error}.") from None
    except RecursionError:
        raise ConfigError(f"The DeepSpeed configuration {path} is not readable as JSON: nested too deep.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"The DeepSpeed configuration {path} holds no JSON object.")
    return values


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. DeepSpeed refuses one that gives a key twice, once the processes have started."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is given twice")
        values[key] = value
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
    refused = [key for key in values if key not in ALLOWED]
    if refused:
        return (
            f"has {', '.join(map(repr, refused))}, and such a file says how ZeRO communicates, nothing else: other "
            "keys of DeepSpeed write files, start monitors or commands, or change the training. Remove what is "
            f"not among {', '.join(sorted(ALLOWED))}"
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

    refused = [key for key in zero if key not in ALLOWED_ZERO]
    if refused:
        return (
            f"has {', '.join(map(repr, refused))} in zero_optimization, which changes the training, loads weights, "
            "names code or is no key of DeepSpeed. Remove it"
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
