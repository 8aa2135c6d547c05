"""What a run will take, before anything is started: parameters, operations, memory per process, bytes sent, steps and
disk; what to be warned of, and what to choose instead.

Memory is what an engine keeps for weights, gradients and optimizer under a ZeRO stage (`launcher.planning.memory`), a
teacher's weights, and the activations of one micro-batch of utterances of `UTTERANCE_S`
(`model.costs.activation_memory`).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from data.shard_index import read_summary
from launcher.errors import CheckpointError
from launcher.planning.communication import Exchanged, Traffic, seconds, traffic
from launcher.planning.machine import Machine
from launcher.planning.memory import BYTES_FP32, MOMENTS, ParameterSize, memory_per_process, parameter_sizes
from launcher.planning.operations import (
    TOKENS_PER_S,
    UTTERANCE_S,
    Operations,
    masked_operations_per_second,
    operations_per_second,
)
from launcher.planning.proposals import Choice, StageNumbers, communication_share, fits, propose, warnings
from launcher.recipe import (
    AnyTrainingStage,
    DistillStage,
    Recipe,
    SelfSupervisedStage,
    TeacherConfig,
    check_model_folders,
    read_deepspeed_config,
)
from launcher.recipe.deepspeed_config import DEEPSPEED_CONFIGS, refusal, zero_stage
from launcher.run_folder import RunFolder
from model.costs.activation_memory import MicroBatchSize, activation_bytes, is_known
from model.costs.flops import count_parameters, count_parts
from model.export import read_description
from model.layers.subsampling import output_length
from model.masked_prediction import MaskedPredictor, Model
from model.recognizer import Recognizer, RecognizerConfig

Configuration = dict[str, Any]


def plan_table(recipe: Recipe, run: RunFolder, hosts: Sequence[int], machine: Machine) -> dict[str, Any]:
    """Per training stage: parameters, operations, memory, bytes sent, steps; then warnings and proposals.

    Of stages that only differ in their seeds the first stands for all. `hosts` are the processes of each host. Models
    have no storage. ConfigError or CheckpointError where the model of a folder cannot teach or start what it is to.
    """
    check_model_folders(recipe)
    vocabulary_size, known = _vocabulary_size(recipe, run)
    shipped = {file.stem: read_deepspeed_config(file) for file in sorted(DEEPSPEED_CONFIGS.glob("*.json"))}
    stages = [
        _Stage(recipe, stage, vocabulary_size, tuple(hosts), machine, shipped, _corpus_s(recipe, run))
        for stage in _distinct(recipe.training_stages())
    ]
    numbers = [stage.numbers for stage in stages]
    return {
        "vocabulary_size": vocabulary_size,
        "vocabulary_known": known,
        "utterance_s": UTTERANCE_S,
        "tokens_per_s": TOKENS_PER_S,
        "available_bytes": machine.available_bytes,
        "rates": asdict(machine.rates),
        "stages": {stage.stage.name: stage.row() for stage in stages},
        "warnings": [asdict(found) for stage in numbers for found in warnings(stage, hosts)] + _unused(recipe),
        "proposal": _proposal(recipe, numbers),
    }


def _distinct(stages: Sequence[AnyTrainingStage]) -> list[AnyTrainingStage]:
    return list({stage.unseeded_name: stage for stage in reversed(stages)}.values())[::-1]


def _vocabulary_size(recipe: Recipe, run: RunFolder) -> tuple[int, bool]:
    """The tokenizer's size; before it is trained, the recipe's `pieces` stands in for it."""
    description = run.tokenizer / "tokenizer.json"
    if description.exists():
        return json.loads(description.read_text(encoding="utf-8"))["vocabulary_size"], True
    return recipe.tokenizer.pieces, False


def _corpus_s(recipe: Recipe, run: RunFolder) -> float | None:
    """Seconds of audio to train on; none before there are shards."""
    if not recipe.has_split(run, "train"):
        return None
    return sum(shard["seconds"] for shard in read_summary(recipe.split_folder(run, "train"))["shards"])


def _unused(recipe: Recipe) -> list[dict[str, str]]:
    size = recipe.cluster.expert_parallel
    if size == 1 or any(stage.model.encoder.experts for stage in recipe.training_stages()):
        return []
    text = f"cluster.expert_parallel is {size}, and no stage has experts: it changes nothing."
    return [{"stage": "", "kind": "expert_parallel_unused", "text": text}]


def _proposal(recipe: Recipe, numbers: list[StageNumbers]) -> dict[str, Any]:
    """What each stage should have, and the settings that change the recipe to it."""
    proposed, settings = propose(numbers), []
    keys = {stage.name: stage.unseeded_name for stage in recipe.training_stages()}
    sizes = {proposed[stage.name].expert_parallel for stage in numbers if stage.experts}
    if sizes and sizes != {recipe.cluster.expert_parallel}:
        settings.append(f"cluster.expert_parallel={sizes.pop()}")
    settings += [
        f"stages.{keys[stage.name]}.deepspeed={proposed[stage.name].deepspeed}"
        for stage in numbers
        if proposed[stage.name].deepspeed != stage.chosen.deepspeed
    ]
    return {"settings": settings, "stages": {name: asdict(choice) for name, choice in proposed.items()}}


@dataclass(frozen=True)
class _Stage:
    """A training stage, and what follows from its shapes, computed once."""

    recipe: Recipe
    stage: AnyTrainingStage
    vocabulary_size: int
    hosts: tuple[int, ...]
    machine: Machine
    shipped: dict[str, Configuration]
    corpus_s: float | None

    @cached_property
    def model(self) -> Model:
        mel_bins = self.recipe.features.mel_bins
        if isinstance(self.stage, SelfSupervisedStage):
            with torch.device("meta"):
                return MaskedPredictor(self.stage.model, mel_bins)
        return _on_meta(self.stage.model, mel_bins, self.vocabulary_size)

    @cached_property
    def teachers(self) -> list[Recognizer]:
        return list(_teachers(self.recipe, self.stage, self.vocabulary_size))

    @cached_property
    def sizes(self) -> list[ParameterSize]:
        return parameter_sizes(self.model)

    @cached_property
    def operations(self) -> Operations:
        if isinstance(self.stage, SelfSupervisedStage):
            assert isinstance(self.model, MaskedPredictor)
            return masked_operations_per_second(self.model, self.recipe.features, self.stage.masking)
        assert isinstance(self.model, Recognizer)
        return operations_per_second(self.model, self.recipe.features, self.teachers)

    @cached_property
    def micro_batch(self) -> MicroBatchSize:
        """A full one, of utterances of `UTTERANCE_S` or the longest there may be."""
        batches, features = self.recipe.batches_of(self.stage), self.recipe.features
        utterances = max(1, int(batches.seconds // (self.length_s * (1 + self.length_s / batches.attention_s))))
        num_frames = features.num_frames(round(self.length_s * features.sample_rate_hz))
        return MicroBatchSize(utterances, num_frames, round(self.length_s * TOKENS_PER_S))

    @property
    def length_s(self) -> float:
        return min(UTTERANCE_S, self.recipe.batches_of(self.stage).max_utterance_s)

    @property
    def value_bytes(self) -> int:
        return 2 if self.recipe.cluster.precision == "bf16" else BYTES_FP32

    @property
    def accumulation(self) -> int:
        return self.recipe.batches_of(self.stage).lanes // self.recipe.cluster.processes

    @property
    def activations(self) -> int | None:
        """Bytes of the activations of a micro-batch; none for a model that holds what is not counted."""
        if not is_known(self.model):
            return None
        return activation_bytes(self.model, self.micro_batch, self.value_bytes)

    @cached_property
    def exchanged(self) -> Exchanged | None:
        encoder = self.stage.model.encoder
        if encoder.experts is None:
            return None
        uses = encoder.layers * len(encoder.experts.places) * encoder.experts.router.per_frame
        frames = self.accumulation * self._encoder_frames
        return Exchanged(frames, uses, encoder.width, self.value_bytes, encoder.activation_checkpointing)

    @property
    def _encoder_frames(self) -> int:
        factor = self.stage.model.encoder.subsampling.factor
        return self.micro_batch.utterances * output_length(self.micro_batch.frames, factor)

    def memory(self, configuration: Configuration, expert_parallel: int) -> dict[str, int | None]:
        """Bytes of each kind and, as `total`, the most of them at once."""
        zero, processes = configuration.get("zero_optimization", {}), self.recipe.cluster.processes
        kept = memory_per_process(self.sizes, processes, expert_parallel, zero, self.accumulation)
        numel = sum(p.numel() for teacher in self.teachers for p in teacher.parameters())
        teacher = BYTES_FP32 * numel + _foreign_bytes(self.stage)
        kinds = {kind: size for kind, size in asdict(kept).items() if kind != "reduced"}
        beside = {"teacher": teacher, "framework": self.machine.framework_bytes}
        activations = self.activations
        total = kept.peak(activations or 0) + sum(beside.values())
        return {**kinds, **beside, "activations": activations, "total": total}

    def traffic(self, configuration: Configuration, expert_parallel: int) -> Traffic:
        level, processes = zero_stage(configuration), self.recipe.cluster.processes
        return traffic(self.sizes, processes, expert_parallel, level, self.accumulation, self.exchanged)

    def choice(self, name: str, configuration: Configuration, expert_parallel: int) -> Choice:
        total = self.memory(configuration, expert_parallel)["total"]
        assert total is not None
        sent = self.traffic(configuration, expert_parallel)
        sending_s = seconds(sent, expert_parallel, self.hosts, self.machine.rates)
        return Choice(name, zero_stage(configuration), expert_parallel, total, sending_s)

    @cached_property
    def choices(self) -> list[Choice]:
        """Each configuration in ds_configs/ with each way to spread the experts that it allows."""
        experts, processes = self.stage.model.encoder.experts, self.recipe.cluster.processes
        divisors = [n for n in range(1, processes + 1) if processes % n == 0]
        sizes = [n for n in divisors if n == 1 or (experts and experts.count % n == 0)]
        return [
            self.choice(name, configuration, size)
            for name, configuration in self.shipped.items()
            for size in sizes
            if refusal(configuration, size) is None
        ]

    @cached_property
    def configuration(self) -> tuple[str, Configuration]:
        """The recipe's: its name in ds_configs/ or its path, and what it says."""
        file = self.recipe.deepspeed_of(self.stage)
        return (file.stem if file.parent == DEEPSPEED_CONFIGS else str(file)), read_deepspeed_config(file)

    @cached_property
    def numbers(self) -> StageNumbers:
        batches, experts = self.recipe.batches_of(self.stage), self.stage.model.encoder.experts
        audio_s = self.accumulation * self.micro_batch.utterances * self.length_s
        chosen_frames = self._encoder_frames * experts.router.per_frame / experts.count if experts else 0.0
        return StageNumbers(
            name=self.stage.name,
            chosen=self.choice(*self.configuration, self.recipe.expert_parallel_of(self.stage)),
            choices=tuple(self.choices),
            available_bytes=self.machine.available_bytes,
            activations_known=is_known(self.model),
            compute_s=audio_s * self.operations.training / self.machine.rates.operations_per_s,
            experts=experts.count if experts else 0,
            frames_per_expert=chosen_frames,
            accumulation=self.accumulation,
            steps_of_audio=None if self.corpus_s is None else self.corpus_s / (batches.lanes * batches.seconds),
        )

    def row(self) -> dict[str, Any]:
        """What `chorus plan` shows of the stage."""
        counts, operations, chosen = count_parameters(self.model), self.operations, self.numbers.chosen
        _, configuration = self.configuration
        return {
            **counts.as_dict(),
            "parts": {
                name: {**asdict(part), "operations_per_s": operations.parts.get(name, 0.0)}
                for name, part in count_parts(self.model).items()
            },
            "encoder_operations_per_s": operations.encoder,
            "operations_per_s": operations.forward,
            "training_operations_per_s": operations.training,
            "processes": self.recipe.cluster.processes,
            "expert_parallel": chosen.expert_parallel,
            "zero_stage": chosen.zero_stage,
            "memory_bytes": self.memory(configuration, chosen.expert_parallel),
            "memory_choices": [self._choice_row(choice) for choice in self.choices],
            "traffic_bytes": asdict(self.traffic(configuration, chosen.expert_parallel)),
            "computation_s": self.numbers.compute_s,
            "communication_s": chosen.communication_s,
            "communication_share": communication_share(self.numbers),
            "checkpoint_bytes": counts.parameters * BYTES_FP32 * (1 + MOMENTS),
            "steps": self.stage.steps,
            "lanes": self.recipe.batches_of(self.stage).lanes,
            "accumulation": self.accumulation,
        }

    def _choice_row(self, choice: Choice) -> dict[str, Any]:
        return {
            "deepspeed": choice.deepspeed,
            "expert_parallel": choice.expert_parallel,
            "memory_bytes": self.memory(self.shipped[choice.deepspeed], choice.expert_parallel),
            "communication_s": choice.communication_s,
            "fits": fits(choice, self.machine.available_bytes),
        }


def _on_meta(config: RecognizerConfig, mel_bins: int, vocabulary_size: int) -> Recognizer:
    with torch.device("meta"):
        return Recognizer(config, mel_bins, vocabulary_size)


def _teachers(recipe: Recipe, stage: AnyTrainingStage, vocabulary_size: int) -> Iterator[Recognizer]:
    """Those of a stage's teachers that are models of Chorus: an earlier stage's, or what model folders describe."""
    for teacher in _teachers_heard(stage):
        if not teacher.is_folder:
            yield _on_meta(recipe.recognition_stage(teacher.model).model, recipe.features.mel_bins, vocabulary_size)
        elif not _is_foreign(teacher):
            yield _described(stage.name, teacher.model)


def _teachers_heard(stage: AnyTrainingStage) -> Sequence[TeacherConfig]:
    """The teachers that are there in training: none where what they give is read from caches alone."""
    return stage.named_teachers if isinstance(stage, DistillStage) and not stage.distill.cache.required else ()


def _is_foreign(teacher: TeacherConfig) -> bool:
    folder = Path(teacher.model)
    return teacher.is_folder and not (folder / "model.json").is_file()


def _foreign_bytes(stage: AnyTrainingStage) -> int:
    """The size of the weights of teachers that are not models of Chorus."""
    folders = [Path(teacher.model) for teacher in _teachers_heard(stage) if _is_foreign(teacher)]
    return sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))


def _described(stage: str, folder: str) -> Recognizer:
    try:
        description = read_description(Path(folder))
        with torch.device("meta"):
            return description.build_recognizer()
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The teacher of stage {stage} is the folder {folder}, whose model.json cannot be read: "
            f"{error}. Copy the folder again from where it was trained."
        ) from None
