"""What a run will take, before anything is started: parameters, operations, memory per process, steps, disk.

Memory is what an engine keeps for weights, gradients and optimizer under a ZeRO stage (`launcher.memory`), a teacher's
weights, and the activations of one micro-batch of utterances of `UTTERANCE_S` (`model.activations`).
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.plan import BatchesConfig
from launcher.errors import CheckpointError, ConfigError
from launcher.memory import BYTES_FP32, MOMENTS, memory_per_process, parameter_sizes
from launcher.operations import TOKENS_PER_S, UTTERANCE_S, operations_per_second
from launcher.recipe import DistillStage, Recipe, TeacherConfig, TrainingStage, read_deepspeed_config
from launcher.recipe.deepspeed_config import DEEPSPEED_CONFIGS, check_deepspeed_config, zero_stage
from launcher.run_folder import RunFolder
from model.accounting import count_parameters, count_parts
from model.activations import MicroBatchSize, activation_bytes, is_known
from model.recognizer import Recognizer, RecognizerConfig


def plan_table(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Per training stage: parameters, operations, bytes of memory and checkpoints, steps. Models have no storage."""
    vocabulary_size, known = _vocabulary_size(recipe, run)
    return {
        "vocabulary_size": vocabulary_size,
        "vocabulary_known": known,
        "utterance_s": UTTERANCE_S,
        "tokens_per_s": TOKENS_PER_S,
        "stages": {stage.name: _stage_row(recipe, stage, vocabulary_size) for stage in recipe.training_stages()},
    }


def _vocabulary_size(recipe: Recipe, run: RunFolder) -> tuple[int, bool]:
    """The tokenizer's size; before it is trained, the recipe's `pieces` stands in for it."""
    description = run.tokenizer / "tokenizer.json"
    if description.exists():
        return json.loads(description.read_text(encoding="utf-8"))["vocabulary_size"], True
    return recipe.tokenizer.pieces, False


def _stage_row(recipe: Recipe, stage: TrainingStage, vocabulary_size: int) -> dict[str, Any]:
    recognizer = _on_meta(stage.model, recipe.features.mel_bins, vocabulary_size)
    teachers = list(_teachers(recipe, stage, vocabulary_size))
    batches, counts = recipe.batches_of(stage), count_parameters(recognizer)
    operations = operations_per_second(recognizer, recipe.features, teachers)
    per_process = {
        "teacher": sum(map(_stored_bytes, teachers)) + _foreign_bytes(stage),
        "activations": _activations(recipe, recognizer, batches),
    }
    expert_parallel, deepspeed = recipe.expert_parallel_of(stage), recipe.deepspeed_of(stage)
    return {
        **counts.as_dict(),
        "parts": {
            name: {**asdict(part), "operations_per_s": operations.parts.get(name, 0.0)}
            for name, part in count_parts(recognizer).items()
        },
        "encoder_operations_per_s": operations.encoder,
        "operations_per_s": operations.forward,
        "training_operations_per_s": operations.training,
        "processes": recipe.cluster.processes,
        "expert_parallel": expert_parallel,
        "zero_stage": zero_stage(read_deepspeed_config(deepspeed)),
        "memory_bytes": _memory(recipe, recognizer, deepspeed, expert_parallel, per_process),
        "memory_choices": _choices(recipe, stage, recognizer, per_process),
        "checkpoint_bytes": counts.parameters * BYTES_FP32 * (1 + MOMENTS),
        "steps": stage.steps,
        "lanes": batches.lanes,
        "accumulation": batches.lanes // recipe.cluster.processes,
    }


def _on_meta(config: RecognizerConfig, mel_bins: int, vocabulary_size: int) -> Recognizer:
    with torch.device("meta"):
        return Recognizer(config, mel_bins, vocabulary_size)


def _teachers(recipe: Recipe, stage: TrainingStage, vocabulary_size: int) -> Iterator[Recognizer]:
    """The teachers of a stage that are models of Chorus: an earlier stage's, or those that model folders describe."""
    for teacher in stage.lessons if isinstance(stage, DistillStage) else ():
        if not teacher.is_folder:
            yield _on_meta(recipe.training_stage(teacher.model).model, recipe.features.mel_bins, vocabulary_size)
        elif not _is_foreign(teacher):
            yield _described(stage.name, teacher.model)


def _is_foreign(teacher: TeacherConfig) -> bool:
    folder = Path(teacher.model)
    return teacher.is_folder and not (folder / "model.json").is_file() and any(folder.glob("*.safetensors"))


def _foreign_bytes(stage: TrainingStage) -> int:
    """The size of the weights of teachers that are not models of Chorus."""
    teachers = stage.lessons if isinstance(stage, DistillStage) else ()
    files = [file for teacher in teachers if _is_foreign(teacher) for file in Path(teacher.model).glob("*.safetensors")]
    return sum(file.stat().st_size for file in files)


def _described(stage: str, folder: str) -> Recognizer:
    try:
        description = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
        config = RecognizerConfig.model_validate(description["recognizer"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The teacher of stage {stage} is the folder {folder}, whose model.json cannot be read: "
            f"{error}. Copy the folder again from where it was trained."
        ) from None
    return _on_meta(config, description["mel_bins"], description["vocabulary_size"])


def _stored_bytes(recognizer: Recognizer) -> int:
    return BYTES_FP32 * sum(parameter.numel() for parameter in recognizer.parameters())


def _activations(recipe: Recipe, recognizer: Recognizer, batches: BatchesConfig) -> int | None:
    """Bytes of the activations of a full micro-batch; None for a model whose blocks hold what is not counted."""
    if not is_known(recognizer):
        return None
    length_s = min(UTTERANCE_S, batches.max_utterance_s)
    utterances = max(1, int(batches.seconds // (length_s * (1 + length_s / batches.attention_s))))
    num_frames = recipe.features.num_frames(round(length_s * recipe.features.sample_rate_hz))
    size = MicroBatchSize(utterances, num_frames, round(length_s * TOKENS_PER_S))
    return activation_bytes(recognizer, size, value_bytes=2 if recipe.cluster.precision == "bf16" else BYTES_FP32)


def _memory(
    recipe: Recipe, recognizer: Recognizer, deepspeed: Path, expert_parallel: int, per_process: dict[str, int | None]
) -> dict[str, int | None]:
    zero = read_deepspeed_config(deepspeed).get("zero_optimization", {})
    kept = memory_per_process(parameter_sizes(recognizer), recipe.cluster.processes, expert_parallel, zero)
    parts = {**asdict(kept), **per_process}
    return {**parts, "total": sum(size or 0 for size in parts.values())}


def _choices(
    recipe: Recipe, stage: TrainingStage, recognizer: Recognizer, per_process: dict[str, int | None]
) -> list[dict[str, Any]]:
    """The memory under each configuration in ds_configs/ and each way to spread the experts that it allows."""
    experts, processes = stage.model.encoder.experts, recipe.cluster.processes
    sizes = [
        n for n in range(1, processes + 1) if processes % n == 0 and (n == 1 or (experts and experts.count % n == 0))
    ]
    rows = []
    for file in sorted(DEEPSPEED_CONFIGS.glob("*.json")):
        for size in sizes:
            try:
                check_deepspeed_config(file, stage.name, size)
            except ConfigError:
                continue  # a run with it would be refused
            memory = _memory(recipe, recognizer, file, size, per_process)
            rows.append({"deepspeed": file.stem, "expert_parallel": size, "memory_bytes": memory})
    return rows
