"""What a run will take, before anything is started: parameters, memory per process, steps, disk.

Memory is what is known from shapes: weights, gradients and AdamW's moments in fp32, as the ZeRO stage and the expert
groups leave them on the fullest process. Activations depend on the batch and are not part of it.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch

from launcher.recipe import Recipe, TrainingStage, read_deepspeed_config, zero_stage
from launcher.run_folder import RunFolder
from model.accounting import count_parameters
from model.experts import MixtureOfExperts
from model.recognizer import Recognizer

BYTES_FP32 = 4
MOMENTS = 2


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest process: weights to compute with, gradients, its share of master weights and moments."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def plan_table(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Per training stage: parameter counts, bytes of memory and checkpoints, steps. Models have no storage."""
    vocabulary_size, known = _vocabulary_size(recipe, run)
    return {
        "vocabulary_size": vocabulary_size,
        "vocabulary_known": known,
        "stages": {stage.name: _stage_row(recipe, stage, vocabulary_size) for stage in recipe.training_stages()},
    }


def _vocabulary_size(recipe: Recipe, run: RunFolder) -> tuple[int, bool]:
    """The tokenizer's size; before it is trained, the recipe's `pieces` stands in for it."""
    description = run.tokenizer / "tokenizer.json"
    if description.exists():
        return json.loads(description.read_text(encoding="utf-8"))["vocabulary_size"], True
    return recipe.tokenizer.pieces, False


def _stage_row(recipe: Recipe, stage: TrainingStage, vocabulary_size: int) -> dict[str, Any]:
    with torch.device("meta"):
        recognizer = Recognizer(stage.model, recipe.features.mel_bins, vocabulary_size)
    processes, expert_parallel = recipe.cluster.processes, recipe.expert_parallel_of(stage)
    level = zero_stage(read_deepspeed_config(recipe.deepspeed_of(stage)))
    memory = memory_per_process(recognizer, processes, expert_parallel, level)
    batches = recipe.batches_of(stage)
    counts = count_parameters(recognizer)
    return {
        **counts.as_dict(),
        "processes": processes,
        "expert_parallel": expert_parallel,
        "zero_stage": level,
        "memory_bytes": {**vars(memory), "total": memory.total},
        "checkpoint_bytes": counts.parameters * BYTES_FP32 * (1 + MOMENTS),
        "steps": stage.steps,
        "lanes": batches.lanes,
        "accumulation": batches.lanes // processes,
    }


def memory_per_process(recognizer: Recognizer, processes: int, expert_parallel: int, zero_stage: int) -> Memory:
    """Memory of weights, gradients and optimizer on the fullest process.

    Dense parameters are sharded over all processes, experts over the processes / expert_parallel that hold the same
    ones: ZeRO 1 shards master weights and moments, ZeRO 2 gradients too, ZeRO 3 the weights as well. What ZeRO 3
    gathers to compute with is, like activations, not part of it: up to stage3_max_live_parameters of its configuration.
    """
    experts = {
        id(parameter)
        for module in recognizer.modules()
        if isinstance(module, MixtureOfExperts)
        for parameter in module.parameters()
    }
    local = {
        parameter: parameter.numel() // (expert_parallel if id(parameter) in experts else 1)
        for parameter in recognizer.parameters()
    }
    num_local = sum(local.values())
    # Each parameter is cut over the processes that hold the same values: its experts' group, or all.
    num_owned = sum(
        -(-numel // (processes // expert_parallel if id(parameter) in experts else processes))
        for parameter, numel in local.items()
    )
    weights = num_owned if zero_stage >= 3 else num_local
    gradients = num_owned if zero_stage >= 2 else num_local
    # Without ZeRO the weights are the master weights; with it each process keeps its share of them beside.
    optimizer = num_owned * (1 + MOMENTS) if zero_stage else num_local * MOMENTS
    return Memory(weights * BYTES_FP32, gradients * BYTES_FP32, optimizer * BYTES_FP32)
