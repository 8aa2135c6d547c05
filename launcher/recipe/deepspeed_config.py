"""The JSON files that tell DeepSpeed how to spread a training.

They decide about ZeRO and communication and nothing else: only these keys are taken. What the recipe decides is refused
in them, because the recipe would win without a word; so is what DeepSpeed computes wrongly, or Chorus does not support,
here, and what writes files, starts monitors or commands, or names code.
"""

import json
from pathlib import Path
from typing import Any

from data.files import read_bounded
from launcher.errors import ConfigError
from launcher.recipe.yaml_io import nearest
from launcher.run_folder import is_number

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
# What a file may hold, each with its kind of value. Everything else that DeepSpeed 0.19 knows writes files
# (flops_profiler, checkpoint, nebula), opens connections (wandb, comet, tensorboard), starts commands (autotuning,
# elasticity), or trains something else.
ALLOWED = {
    "zero_optimization": "section",
    "communication_data_type": "data type",
    "prescale_gradients": "truth value",
    "gradient_predivide_factor": "factor",
    "sparse_gradients": "truth value",
    "disable_allgather": "truth value",
    "zero_allow_untested_optimizer": "truth value",
    "zero_force_ds_cpu_optimizer": "truth value",
    "wall_clock_breakdown": "truth value",
    "memory_breakdown": "truth value",
    "dump_state": "truth value",
    "comms_logger": "section",
    "use_data_before_expert_parallelism": "truth value",
}
ALLOWED_COMMS_LOGGER = {
    "enabled": "truth value",
    "verbose": "truth value",
    "prof_all": "truth value",
    "debug": "truth value",
    "prof_ops": "names",
}
COMMUNICATION_DATA_TYPES = ("fp32", "fp16", "bf16")
# Of the section zero_optimization. Not: what names classes or loads weights.
ALLOWED_ZERO = {
    "stage": "stage",
    "contiguous_gradients": "truth value",
    "reduce_scatter": "truth value",
    "reduce_bucket_size": "bucket",
    "use_multi_rank_bucket_allreduce": "truth value",
    "allgather_partitions": "truth value",
    "allgather_bucket_size": "bucket",
    "overlap_comm": "truth value or null",
    "sub_group_size": "number",
    "prefetch_bucket_size": "number",
    "param_persistence_threshold": "number",
    "model_persistence_threshold": "number",
    "max_live_parameters": "number",
    "max_reuse_distance": "number",
    "gather_16bit_weights_on_model_save": "truth value",
    "module_granularity_threshold": "number",
    "use_all_reduce_for_fetch_params": "truth value",
    "allgather_sequential": "truth value",
    "stage3_prefetch_bucket_size": "number",
    "stage3_param_persistence_threshold": "number",
    "stage3_model_persistence_threshold": "number",
    "stage3_max_live_parameters": "number",
    "stage3_max_reuse_distance": "number",
    "stage3_gather_16bit_weights_on_model_save": "truth value",
    "stage3_gather_fp16_weights_on_model_save": "truth value",
    "stage3_module_granularity_threshold": "number",
    "stage3_use_all_reduce_for_fetch_params": "truth value",
    "stage3_allgather_sequential": "truth value",
    "ignore_unused_parameters": "truth value",
    "legacy_stage1": "truth value",
    "round_robin_gradients": "truth value",
    "parameter_alignment": "truth value",
    "zero_hpz_partition_size": "number",
    "zero_quantized_weights": "truth value",
    "zero_quantized_nontrainable_weights": "truth value",
    "zero_quantized_gradients": "truth value",
    "memory_efficient_linear": "truth value",
    "log_trace_cache_warnings": "truth value",
    "enable_sanity_checks": "truth value",
}
# Values of a bucket, for which every process has memory: DeepSpeed's own default is 5e8.
MAX_BUCKET = 10**10
MAX_NUMBER = 2**63 - 1
# Kinds of values in words; those of sections and of the stage are looked at by themselves.
EXPECTED = {
    "truth value": "true or false",
    "truth value or null": "true, false or null",
    "data type": "fp32, fp16 or bf16",
    "names": "a list of names",
    "factor": "a number above 0",
    "bucket": f"a whole number from 1 to {MAX_BUCKET}",
    "number": f"a whole number from 0 to {MAX_NUMBER}",
}
# Those of ds_configs/ have a few hundred bytes.
MAX_BYTES = 1 << 20
# Of a value that is quoted in a message.
MAX_QUOTED_CHARACTERS = 80
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
        content = read_bounded(path, MAX_BYTES).decode("utf-8")
        values = json.loads(content, object_pairs_hook=_unique_keys)
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


def _value_refusal(values: dict[str, Any], kinds: dict[str, str], section: str) -> str | None:
    """Return which value is not of its kind, with which DeepSpeed would end once processes have started; else none."""
    for key, value in values.items():
        kind = kinds[key]
        if kind in EXPECTED and not _is_of_kind(value, kind):
            return f"has {str(value)[:MAX_QUOTED_CHARACTERS]!r} for {section}{key}, which is {EXPECTED[kind]}"
    return None


def _is_of_kind(value: Any, kind: str) -> bool:
    match kind:
        case "truth value":
            return isinstance(value, bool)
        case "truth value or null":
            return value is None or isinstance(value, bool)
        case "data type":
            return value is None or (isinstance(value, str) and value.lower() in COMMUNICATION_DATA_TYPES)
        case "names":
            return isinstance(value, list) and all(isinstance(name, str) for name in value)
        case "factor":
            return is_number(value) and value > 0
        case "bucket":
            # 5e8 is as good as 500000000.
            return is_number(value) and value == int(value) and 1 <= value <= MAX_BUCKET
    return is_number(value) and value == int(value) and 0 <= value <= MAX_NUMBER


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
    reason = _value_refusal(values, ALLOWED, "")
    logger = values.get("comms_logger", {})
    if reason is None and not (isinstance(logger, dict) and logger.keys() <= ALLOWED_COMMS_LOGGER.keys()):
        reason = f"has a comms_logger that is no object with the keys {', '.join(ALLOWED_COMMS_LOGGER)}"
    if reason is None:
        reason = _value_refusal(logger, ALLOWED_COMMS_LOGGER, "comms_logger.")
    return reason or _zero_refusal(values, expert_parallel)


def _zero_refusal(values: dict[str, Any], expert_parallel: int) -> str | None:
    """Return why the section `zero_optimization` cannot be used; none when it can."""
    zero = values.get("zero_optimization", {})
    if not isinstance(zero, dict):
        return f"has {zero!r} for zero_optimization, which is an object with a stage, as in ds_configs/zero2.json"

    level = zero_stage(values)
    if type(level) is not int or level not in (0, 1, 2, 3):
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

    reason = _value_refusal(zero, ALLOWED_ZERO, "zero_optimization.")
    if reason:
        return reason

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
