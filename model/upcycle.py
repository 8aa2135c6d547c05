"""Starts a student from its teacher: copies what both have in the same shape, and chooses for what the student shares.

A shared block, and norms that a group shares, start as those of the teacher's layer in the middle of the group. Experts
start as the feed-forward layers, of the same place, of teacher layers spread evenly over the group from its first on,
so that they begin different and useful; with `experts.initial: upcycled` all start as the middle layer's
(Komatsuzaki et al., 2022). Noise sets apart experts that start from the same layer. Routers, and the coefficients
between experts and a dense layer beside them, are the student's own draws.
"""

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.block import LayerParameters
from model.encoder import Encoder, EncoderConfig
from model.export import WithoutValues
from model.layers.feedforward import FeedForward
from model.moe.experts import MixtureOfExperts, ResidualMixture
from model.moe.router import ExpertsConfig
from model.recognizer import Recognizer, RecognizerConfig

# Fields that student and teacher must have in common, and those that also make their state dicts the same.
SAME_SHAPE = (
    "layers",
    "width",
    "heads",
    "feedforward_width",
    "positions",
    "kernel_size",
    "convolution_norm",
    "convolution_views",
    "kernel_owner",
    "subsampling",
)
SAME_STRUCTURE = ("num_groups", "sharing", "private_head", "private_tail", "norms", "experts", "adapters")
# The parts of a recogniser over its encoder, each copied where student and teacher both have it.
HEADS = ("ctc", "decoder", "reverse_decoder", "transducer")


@torch.no_grad()
def initialize_from_teacher(student: Recognizer, teacher: Recognizer) -> None:
    """Copy the teacher's weights into an unspread student. Draws noise where experts have to be set apart.

    Raises ValueError, naming the difference, when depth or widths are not the teacher's.
    """
    check_start_from_teacher(student.config, teacher.config)
    for name in HEADS:
        student_head = getattr(student, name)
        teacher_head = getattr(teacher, name)
        if student_head is not None and teacher_head is not None:
            student_head.load_state_dict(teacher_head.state_dict())
    _upcycle(student.encoder, teacher.encoder)


def check_start_from_teacher(student: RecognizerConfig, teacher: RecognizerConfig) -> None:
    """ValueError, naming the difference, where a student cannot start from such a teacher."""
    _check_same_shape(student.encoder, teacher.encoder, "the teacher")
    for part in ("transducer", "decoder"):
        student_part = getattr(student, part)
        teacher_part = getattr(teacher, part)
        if student_part and teacher_part not in (None, student_part):
            raise ValueError(f"the {part}s of student and teacher differ: to start from the teacher they must be equal")


@dataclass(frozen=True)
class StartedOutputs:
    """The parts over the encoder that were copied, whole or but for what has a row for each token, and those that were
    drawn anew, each with the reason."""

    copied: tuple[str, ...]
    drawn: dict[str, str]


@torch.no_grad()
def initialize_outputs(student: Recognizer, source: Recognizer, same_tokens: bool) -> StartedOutputs:
    """Copy the parts over the encoder that both have in the same structure; with other tokens all but their rows.

    The encoders must have one width. Nothing is drawn: what is not copied stays as it is.
    """
    copied = []
    drawn = {}
    rows: set[str] = set()
    if not same_tokens:
        rows = _tensors_of_tokens(student)
    for name in HEADS:
        student_head = getattr(student, name)
        source_head = getattr(source, name)
        if student_head is None:
            continue
        if source_head is None:
            drawn[name] = "the model has none"
            continue
        if _structure(student.config, name) != _structure(source.config, name):
            drawn[name] = f"its settings are not those of the model's {name}"
            continue
        state = source_head.state_dict()
        for key in list(state):
            if f"{name}.{key}" in rows:
                drawn[f"{name}.{key}"] = "it has a row for each token, and the tokens are others"
                del state[key]
        if state:
            student_head.load_state_dict(state, strict=not rows)
            copied.append(name)
    return StartedOutputs(tuple(copied), drawn)


def _tensors_of_tokens(recognizer: Recognizer) -> set[str]:
    """The names of the tensors whose shape follows from the number of tokens."""
    shapes = []
    # Shapes alone: the second model has neither memory nor values.
    with torch.device("meta"), WithoutValues():
        larger = Recognizer(recognizer.config, recognizer.mel_bins, recognizer.vocabulary_size + 1)
    for model in (recognizer, larger):
        shapes.append({name: tensor.shape for name, tensor in model.state_dict().items()})
    return {name for name, shape in shapes[1].items() if shapes[0][name] != shape}


def _structure(config: RecognizerConfig, head: str) -> dict[str, Any] | None:
    """What a part over the encoder is made of, without its dropout; None where it follows from the encoder alone."""
    if head == "ctc":
        return None
    part = config.decoder
    if head == "transducer":
        part = config.transducer
    assert part is not None, "the part is there"
    return part.model_dump(exclude={"dropout"})


@torch.no_grad()
def initialize_encoder(
    student: Encoder,
    teacher: Encoder,
    num_layers: int | None = None,
) -> None:
    """Copy an encoder's weights into an unspread one: all of them into one of the same structure, else as above.

    With `num_layers` the layers above the lowest so many stay as they were drawn. Raises ValueError, naming the
    difference, when depth or widths differ, or when layers that are copied share a block with some that are not.
    """
    # The whole encoder is initialised, and what is above the copied layers is put back: one way to initialise.
    drawn = []
    check_start_from_encoder(student.config, teacher.config, num_layers)
    if num_layers is not None:
        # What the layers above the lowest `num_layers` alone use.
        modules = list(student.layers[num_layers:])
        blocks = set(student.config.block_of_layer[num_layers:])
        for block in sorted(blocks):
            modules.append(student.blocks[block])
            if len(student.groups):
                modules.append(student.groups[block])
        for module in modules:
            # A copy: the state's tensors are the weights themselves.
            state = deepcopy(module.state_dict())
            drawn.append((module, state))

    if _same_structure(student.config, teacher.config):
        student.load_state_dict(teacher.state_dict())
    else:
        _upcycle(student, teacher)

    for module, state in drawn:
        module.load_state_dict(state)


def check_start_from_encoder(
    student: EncoderConfig,
    source: EncoderConfig,
    num_layers: int | None = None,
) -> None:
    """ValueError, naming the difference, where an encoder, or its lowest layers, cannot start as another."""
    if num_layers is not None:
        check_layers_to_copy(student, num_layers)
    if not _same_structure(student, source):
        _check_same_shape(student, source, "the starting encoder")


def _same_structure(student: EncoderConfig, source: EncoderConfig) -> bool:
    """Whether the weights of one have the names and shapes of the other's."""
    fields = SAME_SHAPE + SAME_STRUCTURE
    return all(getattr(student, field) == getattr(source, field) for field in fields)


def check_layers_to_copy(config: EncoderConfig, num_layers: int) -> None:
    """ValueError where an encoder cannot start as the lowest layers of another alone."""
    if num_layers > config.layers:
        raise ValueError(f"there are {config.layers} layers")
    copied_blocks = set(config.block_of_layer[:num_layers])
    drawn_blocks = set(config.block_of_layer[num_layers:])
    if copied_blocks & drawn_blocks:
        raise ValueError(
            f"layer {num_layers - 1} and some above it share a block (encoder.groups is {config.groups}): choose a "
            "number of layers that ends a group"
        )


def _upcycle(student: Encoder, teacher: Encoder) -> None:
    """Start the student's blocks and norms from those of the teacher's layers that use them."""
    student.subsampling.load_state_dict(teacher.subsampling.state_dict())
    config = student.config
    layers_of_block = defaultdict(list)
    for layer, block_index in enumerate(config.block_of_layer):
        layers_of_block[block_index].append(layer)

    for block_index, layers in sorted(layers_of_block.items()):
        middle = layers[len(layers) // 2]
        for layer in layers:
            source = layer
            if config.norms == "group":
                source = middle
            teacher_norms = _layer(teacher, source).norms()
            student_norms = _layer(student, layer).norms()
            # Norms that a group shares are loaded once per layer, each time with the same values.
            for name, norm in student_norms.items():
                norm.load_state_dict(teacher_norms[name].state_dict())
            kernel = _layer(student, layer).kernel
            if kernel is not None:
                # A mixture fits the views that it was learnt with, which are the middle block's.
                owner = middle if config.convolution_views else layer
                teacher_kernel = _layer(teacher, owner).kernel
                assert teacher_kernel is not None
                kernel.load_state_dict(teacher_kernel.state_dict())

        block = student.blocks[block_index]
        for name, part in block.named_children():
            teacher_parts = {}
            for layer in layers:
                teacher_index = teacher.config.block_of_layer[layer]
                teacher_block = teacher.blocks[teacher_index]
                teacher_parts[layer] = teacher_block.get_submodule(name)
            _initialize_part(part, teacher_parts, middle, config.experts)


def _layer(encoder: Encoder, index: int) -> LayerParameters:
    layer = encoder.layers[index]
    assert isinstance(layer, LayerParameters)
    return layer


def _initialize_part(
    part: nn.Module,
    teacher_parts: dict[int, nn.Module],
    middle: int,
    experts: ExpertsConfig | None,
) -> None:
    """A part of a block, from the same part of the teacher's blocks: `teacher_parts` has it by the block's layers."""
    middle_state = teacher_parts[middle].state_dict()
    if isinstance(part, ResidualMixture):
        part.dense.load_state_dict(middle_state)
        part = part.mixture
    if experts is None or not isinstance(part, MixtureOfExperts):
        part.load_state_dict(middle_state)
        return

    if experts.initial == "independent":
        sources = spread_evenly(list(teacher_parts), experts.count)
    else:
        sources = [middle] * experts.count
    stack = part.experts
    for expert, layer in enumerate(sources):
        dense = teacher_parts[layer]
        assert isinstance(dense, FeedForward)
        stack.w1[expert] = dense.expand.weight
        stack.w2[expert] = dense.contract.weight
        # Both biases of an expert are one row of w3.
        biases = torch.cat((dense.expand.bias, dense.contract.bias))
        stack.w3[expert, 0] = biases

        # Experts that start equal get equal gradients and never part.
        if layer in sources[:expert]:
            for weight in (stack.w1[expert], stack.w2[expert]):
                deviation = experts.initial_noise * weight.std()
                noise = torch.randn_like(weight)
                weight += deviation * noise


def spread_evenly(layers: list[int], number: int) -> list[int]:
    """`number` of the layers, the first of each of as many equal parts; some repeat where there are too few."""
    num_layers = len(layers)
    spread = []
    for index in range(number):
        first = index * num_layers // number
        spread.append(layers[first])
    return spread


def _check_same_shape(
    student: EncoderConfig,
    source: EncoderConfig,
    source_name: str,
) -> None:
    for field in SAME_SHAPE:
        student_value = getattr(student, field)
        source_value = getattr(source, field)
        if student_value != source_value:
            raise ValueError(
                f"its encoder.{field} is {student_value} and {source_name}'s {source_value}: they must be equal"
            )
    if source.adapters is not None:
        raise ValueError(f"{source_name} has adapters: export it, which merges them, and start from that")
    if source.experts is not None:
        raise ValueError(f"{source_name} has experts itself: only a dense encoder can be made into another structure")
