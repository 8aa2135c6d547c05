"""What a run will take, before anything is started: parameters, operations, memory per process, bytes sent, steps and
disk; what to be warned of, and what to choose instead.

Memory is what an engine keeps for weights, gradients and optimizer under a ZeRO stage (`launcher.planning.memory`), a
teacher's weights, and the activations of one micro-batch of utterances of `UTTERANCE_S`
(`model.costs.activation_memory`).
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from data.shards.index import read_summary
from data.text.given_model import read_given_model
from data.text.tokenizer import Tokenizer
from launcher.errors import CheckpointError
from launcher.planning.communication import ASSUMED, Exchanged, Traffic, seconds, traffic
from launcher.planning.interconnect import Interconnect
from launcher.planning.machine import FRAMEWORK_BYTES, Machine
from launcher.planning.memory import BYTES_FP32, MOMENTS, Memory, memory_per_process, parameter_sizes
from launcher.planning.mixtures import plan_mixture
from launcher.planning.operations import (
    TOKENS_PER_S,
    UTTERANCE_S,
    Operations,
    masked_operations_per_second,
    operations_per_second,
)
from launcher.planning.proposals import Choice, StageNumbers, communication_share, fits, propose, warnings
from launcher.planning.scaling import Nodes, StepShapes, expert_parallel_sizes, scale_step
from launcher.recipe import (
    AdaptStage,
    AnyTrainingStage,
    DistillStage,
    Recipe,
    SelfSupervisedStage,
    check_model_folders,
    read_deepspeed_config,
)
from launcher.recipe.adaptation import trained_share
from launcher.recipe.bases import base_vocabulary_size
from launcher.recipe.deepspeed_config import DEEPSPEED_CONFIGS, refusal, zero_stage
from launcher.recipe.freezing import frozen_in_stage
from launcher.run_files import read_vocabulary_size
from launcher.run_folder import RunFolder
from model.costs.activation_memory import MicroBatchSize, activation_bytes, is_known
from model.costs.flops import count_parameters, count_parts
from model.export import WithoutValues, read_description
from model.layers.subsampling import output_length
from model.masked_prediction import MaskedPredictor, MaskedPredictorConfig
from model.recognizer import Recognizer

DeepSpeedConfig = dict[str, Any]

BYTES_BF16 = 2


def plan_table(
    recipe: Recipe,
    run: RunFolder,
    hosts: Sequence[int],
    machine: Machine,
    places: Sequence[Nodes] = (),
    link: Interconnect | None = None,
) -> dict[str, Any]:
    """Per training stage: parameters, operations, memory, bytes sent, steps; then warnings and proposals.

    Of stages that only differ in their seeds the first stands for all. `hosts` are the processes of each host. Models
    have no storage. With `places` and the `link` between their cards, also what a step of GPUs would take there.
    ConfigError or CheckpointError where the model of a folder cannot teach or start what it is to.
    """
    check_model_folders(recipe)
    vocabulary_size, vocabulary_known = _vocabulary_size(recipe, run)

    corpus_s = None
    if recipe.has_split(run, "train"):
        corpus_s = 0.0
        for folder in recipe.split_folders(run, "train").values():
            corpus_s += sum(shard["seconds"] for shard in read_summary(folder)["shards"])

    rows = {}
    numbers: list[StageNumbers] = []
    seen: set[str] = set()
    for stage in recipe.training_stages():
        if stage.unseeded_name in seen:
            continue
        seen.add(stage.unseeded_name)
        num_tokens = vocabulary_size
        if isinstance(stage, AdaptStage):
            num_tokens = base_vocabulary_size(stage) or vocabulary_size
        planned = _StagePlan(recipe, stage, num_tokens, tuple(hosts), machine)
        stage_numbers = planned.numbers(corpus_s)
        numbers.append(stage_numbers)
        rows[stage.name] = planned.row(stage_numbers)
        rows[stage.name]["mixture"] = plan_mixture(recipe, run, stage)
        if link is not None:
            rows[stage.name]["scaling"] = planned.scaling(places, link)

    all_warnings = []
    has_experts = False
    for stage_numbers in numbers:
        has_experts |= stage_numbers.experts > 0
        for warning in warnings(stage_numbers, hosts):
            all_warnings.append(asdict(warning))
    size = recipe.cluster.expert_parallel
    if size > 1 and not has_experts:
        text = f"cluster.expert_parallel is {size}, and no stage has experts: it changes nothing."
        # It belongs to no stage.
        all_warnings.append({"stage": "", "kind": "expert_parallel_unused", "text": text})

    return {
        "vocabulary_size": vocabulary_size,
        "vocabulary_known": vocabulary_known,
        "utterance_s": UTTERANCE_S,
        "tokens_per_s": TOKENS_PER_S,
        "available_bytes": machine.available_bytes,
        "rates": asdict(machine.rates),
        "stages": rows,
        "warnings": all_warnings,
        "proposal": _proposal(recipe, numbers),
    }


def _vocabulary_size(recipe: Recipe, run: RunFolder) -> tuple[int, bool]:
    """How many tokens the tokenizer has, and whether that is known already."""
    trained = read_vocabulary_size(run)
    if trained is not None:
        return trained, True
    if recipe.tokenizer.model is not None:
        model, kind = read_given_model(recipe.tokenizer.model)
        return Tokenizer(model, kind).vocabulary_size, True
    # Before it is trained, the size that is asked of it stands in.
    return recipe.tokenizer.pieces, False


def _proposal(recipe: Recipe, numbers: list[StageNumbers]) -> dict[str, Any]:
    """What each stage should have, and the settings that change the recipe to it."""
    proposals = propose(numbers)
    # A stage that is repeated with other seeds has its settings under the name without seed.
    keys = {stage.name: stage.unseeded_name for stage in recipe.training_stages()}
    size_settings = []
    stage_settings = []
    stages = {}
    for stage in numbers:
        proposal = proposals[stage.name]
        stages[stage.name] = asdict(proposal)
        # Stages with experts have one size in common, as the recipe has one key for it.
        if stage.experts and proposal.expert_parallel != recipe.cluster.expert_parallel:
            size_settings = [f"cluster.expert_parallel={proposal.expert_parallel}"]
        if proposal.deepspeed != stage.chosen.deepspeed:
            stage_settings.append(f"stages.{keys[stage.name]}.deepspeed={proposal.deepspeed}")
    return {"settings": size_settings + stage_settings, "stages": stages}


class _StagePlan:
    """What follows from the shapes of one training stage: first what no choice changes, then the cost of choices."""

    def __init__(
        self,
        recipe: Recipe,
        stage: AnyTrainingStage,
        vocabulary_size: int,
        hosts: tuple[int, ...],
        machine: Machine,
    ):
        self.recipe = recipe
        self.stage = stage
        self.hosts = hosts
        self.machine = machine
        self.processes = recipe.cluster.processes
        self.batches = recipe.batches_of(stage)
        self.accumulation = self.batches.lanes // self.processes
        self.value_bytes = BYTES_FP32
        if recipe.cluster.precision == "bf16":
            self.value_bytes = BYTES_BF16

        self.model: Recognizer | MaskedPredictor
        # Shapes are enough: a plan of a large model must not need its memory.
        with torch.device("meta"), WithoutValues():
            if isinstance(stage.model, MaskedPredictorConfig):
                self.model = MaskedPredictor(stage.model, recipe.features.mel_bins)
            else:
                self.model = Recognizer(stage.model, recipe.features.mel_bins, vocabulary_size)
        # As in the training: without gradients, moments and messages.
        for name in frozen_in_stage(stage, [name for name, _ in self.model.named_parameters()]):
            self.model.get_parameter(name).requires_grad_(False)
        self.parameter_sizes = parameter_sizes(self.model)
        self.teachers, self.teacher_bytes = _running_teachers(recipe, stage, vocabulary_size)

        # A full micro-batch, of utterances of UTTERANCE_S or the longest there may be.
        self.utterance_s = min(UTTERANCE_S, self.batches.max_utterance_s)
        subsampling_factor = stage.model.encoder.subsampling.factor
        frames_per_utterance = output_length(self.micro_batch.frames, subsampling_factor)
        self.encoder_frames = self.micro_batch.utterances * frames_per_utterance
        self.activation_bytes: int | None = None
        if is_known(self.model):
            self.activation_bytes = activation_bytes(self.model, self.micro_batch, self.value_bytes)

        # The recipe's configuration: its name in ds_configs/ or its path, and what it says.
        file = recipe.deepspeed_of(stage)
        self.deepspeed_name = str(file)
        if file.parent == DEEPSPEED_CONFIGS:
            self.deepspeed_name = file.stem
        self.deepspeed_config = read_deepspeed_config(file)
        self.shipped: dict[str, DeepSpeedConfig] = {}
        for shipped_file in sorted(DEEPSPEED_CONFIGS.glob("*.json")):
            self.shipped[shipped_file.stem] = read_deepspeed_config(shipped_file)

    @cached_property
    def operations(self) -> Operations:
        features = self.recipe.features
        if isinstance(self.stage, SelfSupervisedStage):
            assert isinstance(self.model, MaskedPredictor)
            return masked_operations_per_second(self.model, features, self.stage.masking)
        assert isinstance(self.model, Recognizer)
        return operations_per_second(self.model, features, self.teachers)

    @cached_property
    def micro_batch(self) -> MicroBatchSize:
        # As the sampler measures: attention makes an utterance cost more than its seconds.
        cost_s = self.utterance_s * (1 + self.utterance_s / self.batches.attention_s)
        features = self.recipe.features
        return MicroBatchSize(
            utterances=max(1, int(self.batches.seconds // cost_s)),
            frames=features.num_frames(round(self.utterance_s * features.sample_rate_hz)),
            tokens=round(self.utterance_s * TOKENS_PER_S),
        )

    @cached_property
    def exchanged(self) -> Exchanged | None:
        """What a process sends to experts in a step, if they are on several; none without experts."""
        encoder = self.stage.model.encoder
        experts = encoder.experts
        if experts is None:
            return None
        return Exchanged(
            frames=self.accumulation * self.encoder_frames,
            uses=encoder.layers * len(experts.places) * experts.router.per_frame,
            width=encoder.width,
            value_bytes=self.value_bytes,
            run_again=encoder.activation_checkpointing,
        )

    @cached_property
    def choices(self) -> list[Choice]:
        """Each configuration in ds_configs/ with each way to spread the experts that it allows."""
        experts = self.stage.model.encoder.experts
        sizes = [1]
        if experts:
            for size in range(2, self.processes + 1):
                if self.processes % size == 0 and experts.count % size == 0:
                    sizes.append(size)

        choices = []
        for name, config in self.shipped.items():
            for size in sizes:
                if refusal(config, size) is None:
                    choices.append(self.choice(name, config, size))
        return choices

    def memory(self, config: DeepSpeedConfig, expert_parallel: int) -> dict[str, int | None]:
        """Bytes of each kind and, as `total`, the most of them at once."""
        engine = self._engine_memory(config, expert_parallel)
        kinds: dict[str, int | None] = asdict(engine)
        # A share, not bytes.
        del kinds["reduced"]
        kinds["teacher"] = self.teacher_bytes
        kinds["framework"] = self.machine.framework_bytes
        kinds["activations"] = self.activation_bytes
        # Unknown activations are missing from the total; `activations_known` says so in warnings.
        kinds["total"] = self._peak_bytes(config, expert_parallel)
        return kinds

    def _peak_bytes(self, config: DeepSpeedConfig, expert_parallel: int) -> int:
        engine = self._engine_memory(config, expert_parallel)
        engine_bytes = engine.peak(self.activation_bytes or 0)
        return engine_bytes + self.teacher_bytes + self.machine.framework_bytes

    def _engine_memory(self, config: DeepSpeedConfig, expert_parallel: int) -> Memory:
        zero = config.get("zero_optimization", {})
        memory = memory_per_process(self.parameter_sizes, self.processes, expert_parallel, zero, self.accumulation)
        # A running average is sharded as one more moment.
        return replace(memory, moments=memory.moments // MOMENTS * self.state_copies)

    @property
    def state_copies(self) -> int:
        """What is kept of each weight beside it from step to step: AdamW's moments, and a running average."""
        average = self.stage.average
        if average is not None and average.kind == "running":
            return MOMENTS + 1
        return MOMENTS

    def traffic(self, config: DeepSpeedConfig, expert_parallel: int) -> Traffic:
        exchanged_sizes = self.parameter_sizes
        if zero_stage(config) < 3:
            # Only ZeRO 3 sends frozen weights: it gathers them as the others.
            exchanged_sizes = [size for size in exchanged_sizes if not size.frozen]
        return traffic(
            exchanged_sizes,
            processes=self.processes,
            expert_parallel=expert_parallel,
            zero_stage=zero_stage(config),
            accumulation=self.accumulation,
            exchanged=self.exchanged,
        )

    def choice(self, name: str, config: DeepSpeedConfig, expert_parallel: int) -> Choice:
        sent = self.traffic(config, expert_parallel)
        return Choice(
            deepspeed=name,
            zero_stage=zero_stage(config),
            expert_parallel=expert_parallel,
            needed_bytes=self._peak_bytes(config, expert_parallel),
            communication_s=seconds(sent, expert_parallel, self.hosts, self.machine.rates),
        )

    def numbers(self, corpus_s: float | None) -> StageNumbers:
        """What proposals and warnings go by."""
        audio_s = self.accumulation * self.micro_batch.utterances * self.utterance_s
        num_experts = 0
        frames_per_expert = 0.0
        experts = self.stage.model.encoder.experts
        if experts:
            num_experts = experts.count
            # With a router that is balanced.
            frames_per_expert = self.encoder_frames * experts.router.per_frame / experts.count
        steps_of_audio = None
        if corpus_s is not None:
            steps_of_audio = corpus_s / (self.batches.lanes * self.batches.seconds)
        expert_parallel = self.recipe.expert_parallel_of(self.stage)
        return StageNumbers(
            name=self.stage.name,
            chosen=self.choice(self.deepspeed_name, self.deepspeed_config, expert_parallel),
            choices=tuple(self.choices),
            available_bytes=self.machine.available_bytes,
            activations_known=self.activation_bytes is not None,
            compute_s=audio_s * self.operations.training / self.machine.rates.operations_per_s,
            experts=num_experts,
            frames_per_expert=frames_per_expert,
            accumulation=self.accumulation,
            steps_of_audio=steps_of_audio,
        )

    def _adaptation(self) -> dict[str, Any]:
        """Of an adaptation, what it trains and over what share of its base."""
        if not isinstance(self.stage, AdaptStage):
            return {}
        sizes = []
        for name, parameter in self.model.named_parameters():
            sizes.append((name, parameter.numel(), parameter.requires_grad))
        trained, share = trained_share(sizes)
        return {"trained_parameters": trained, "trained_share": share}

    def scaling(self, places: Sequence[Nodes], link: Interconnect) -> list[dict[str, Any]]:
        """What a step takes on so many nodes of GPUs, under each shipped configuration; a micro-batch per card."""
        exchanged = self.exchanged
        expert_uses = 0
        encoder = self.stage.model.encoder
        if exchanged is not None and encoder.experts is not None:
            exchanged = replace(exchanged, frames=self.encoder_frames)
            expert_uses = encoder.layers * len(encoder.experts.places)
        audio_s = self.micro_batch.utterances * self.utterance_s
        rate = ASSUMED["cuda", self.recipe.cluster.precision].operations_per_s
        shapes = StepShapes(
            parameters=self.parameter_sizes,
            block_of_layer=encoder.block_of_layer,
            exchanged=exchanged,
            experts=encoder.experts.count if encoder.experts else 0,
            expert_uses=expert_uses,
            compute_s=audio_s * self.operations.training / rate,
            kept_bytes=self.teacher_bytes + FRAMEWORK_BYTES["cuda"],
            activation_bytes=self.activation_bytes or 0,
        )
        rows = []
        for place in places:
            for name, config in self.shipped.items():
                for size in expert_parallel_sizes(shapes.experts, place):
                    if refusal(config, size) is not None:
                        continue
                    step = scale_step(shapes, place, link, config.get("zero_optimization", {}), size)
                    rows.append({"nodes": place.nodes, "cards": place.cards, "deepspeed": name, **asdict(step)})
        return rows

    def row(self, numbers: StageNumbers) -> dict[str, Any]:
        """What `chorus plan` shows of the stage."""
        chosen = numbers.chosen
        counts = count_parameters(self.model)
        parts = {}
        for name, part in count_parts(self.model).items():
            # Norms are missing: a factor per element is not counted.
            operations_per_s = self.operations.parts.get(name, 0.0)
            parts[name] = {**asdict(part), "operations_per_s": operations_per_s}

        memory_choices = []
        for choice in self.choices:
            memory_choices.append(
                {
                    "deepspeed": choice.deepspeed,
                    "expert_parallel": choice.expert_parallel,
                    "memory_bytes": self.memory(self.shipped[choice.deepspeed], choice.expert_parallel),
                    "communication_s": choice.communication_s,
                    "fits": fits(choice, self.machine.available_bytes),
                }
            )
        num_frozen = sum(size.numel for size in self.parameter_sizes if size.frozen)
        return {
            **counts.as_dict(),
            "frozen_parameters": num_frozen,
            **self._adaptation(),
            "parts": parts,
            "encoder_operations_per_s": self.operations.encoder,
            "operations_per_s": self.operations.forward,
            "training_operations_per_s": self.operations.training,
            "processes": self.processes,
            "expert_parallel": chosen.expert_parallel,
            "zero_stage": chosen.zero_stage,
            "memory_bytes": self.memory(self.deepspeed_config, chosen.expert_parallel),
            "memory_choices": memory_choices,
            "traffic_bytes": asdict(self.traffic(self.deepspeed_config, chosen.expert_parallel)),
            "computation_s": numbers.compute_s,
            "communication_s": chosen.communication_s,
            "communication_share": communication_share(numbers),
            # All fp32; of what is frozen the weights alone.
            "checkpoint_bytes": BYTES_FP32 * (counts.parameters + (counts.parameters - num_frozen) * self.state_copies),
            "steps": self.stage.steps,
            "lanes": self.batches.lanes,
            "accumulation": self.accumulation,
        }


# --- models without storage --------------------------------------------------------------------------------------


def _running_teachers(recipe: Recipe, stage: AnyTrainingStage, vocabulary_size: int) -> tuple[list[Recognizer], int]:
    """The models of Chorus among the teachers that a training loads, and the bytes of the weights of all of these.

    CheckpointError when the model.json of a folder cannot be read.
    """
    models: list[Recognizer] = []
    size_bytes = 0
    # Teachers whose outputs are read from caches alone are not loaded.
    if not isinstance(stage, DistillStage) or stage.distill.cache.required:
        return models, size_bytes

    for teacher in stage.named_teachers:
        folder = Path(teacher.model)
        if not teacher.is_folder:
            config = recipe.recognition_stage(teacher.model).model
            with torch.device("meta"), WithoutValues():
                models.append(Recognizer(config, recipe.features.mel_bins, vocabulary_size))
        elif (folder / "model.json").is_file():
            try:
                description = read_description(folder)
                with torch.device("meta"), WithoutValues():
                    models.append(description.build_recognizer())
            # KeyError: an encoder alone is no recogniser.
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointError(
                    f"The teacher of stage {stage.name} is the folder {teacher.model}, whose model.json cannot be "
                    f"read: {error}. Copy the folder again from where it was trained."
                ) from None
        else:
            # A model of another library, whose architecture is not looked at.
            for file in folder.glob("*.safetensors"):
                size_bytes += file.stat().st_size
    for model in models:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        size_bytes += BYTES_FP32 * num_parameters
    return models, size_bytes
