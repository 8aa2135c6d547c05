"""Starts a student from its teacher: what both have in the same shape is copied, what the student shares is chosen.

A shared block, and norms that a group shares, start as those of the teacher's layer in the middle of the group. Experts
start as the feed-forward layers, of the same place, of teacher layers spread evenly over the group from its first on,
so that they begin different and useful; with `experts.initial: upcycled` all start as the middle layer's
(Komatsuzaki et al., 2022). Noise sets apart experts that start from the same layer. Routers, and the coefficients
between experts and a dense layer beside them, are the student's own draws.
"""

from copy import deepcopy

import torch
from torch import nn

from model.block import LayerParameters
from model.encoder import Encoder, EncoderConfig
from model.layers.feedforward import FeedForward
from model.moe.experts import ExpertStack, MixtureOfExperts, ResidualMixture
from model.moe.router import ExpertsConfig
from model.recognizer import Recognizer

# What student and teacher must have in common, and what makes them the same but for how they are trained.
SAME_SHAPE = (
    "layers",
    "width",
    "heads",
    "feedforward_width",
    "positions",
    "kernel_size",
    "convolution_norm",
    "subsampling",
)
SAME_STRUCTURE = ("num_groups", "sharing", "private_head", "private_tail", "norms", "experts")


@torch.no_grad()
def initialize_from_teacher(student: Recognizer, teacher: Recognizer) -> None:
    """Copy the teacher's weights into an unspread student. Draws noise where experts have to be set apart.

    Raises ValueError, naming the difference, when depth or widths are not the teacher's.
    """
    _check_same_shape(student.config.encoder, teacher.config.encoder)
    _check_same_heads(student, teacher)
    student.ctc.load_state_dict(teacher.ctc.state_dict())
    if student.decoder is not None and teacher.decoder is not None:
        student.decoder.load_state_dict(teacher.decoder.state_dict())
    if student.reverse_decoder is not None and teacher.reverse_decoder is not None:
        student.reverse_decoder.load_state_dict(teacher.reverse_decoder.state_dict())
    if student.transducer is not None and teacher.transducer is not None:
        student.transducer.load_state_dict(teacher.transducer.state_dict())
    _upcycle(student.encoder, teacher.encoder)


@torch.no_grad()
def initialize_encoder(student: Encoder, teacher: Encoder, num_layers: int | None = None) -> None:
    """Copy an encoder's weights into an unspread one: all of them into one of the same structure, else as above.

    With `num_layers` the layers above the lowest so many stay as they were drawn. Raises ValueError, naming the
    difference, when depth or widths differ, or when layers that are copied share a block with some that are not.
    """
    drawn = [(module, deepcopy(module.state_dict())) for module in _above(student, num_layers)]
    _initialize_encoder(student, teacher)
    for module, state in drawn:
        module.load_state_dict(state)


def check_layers_to_copy(config: EncoderConfig, num_layers: int) -> None:
    """ValueError where an encoder cannot start as the lowest layers of another alone."""
    if num_layers > config.layers:
        raise ValueError(f"there are {config.layers} layers")
    both = set(config.block_of_layer[:num_layers]) & set(config.block_of_layer[num_layers:])
    if both:
        raise ValueError(
            f"layer {num_layers - 1} and some above it share a block (encoder.groups is {config.groups}): choose a "
            "number of layers that ends a group"
        )


def _above(encoder: Encoder, num_layers: int | None) -> list[nn.Module]:
    """What belongs to the layers above the lowest so many alone."""
    if num_layers is None:
        return []
    check_layers_to_copy(encoder.config, num_layers)
    blocks = sorted(set(encoder.config.block_of_layer[num_layers:]))
    groups = [encoder.groups[block] for block in blocks] if len(encoder.groups) else []
    return [*encoder.layers[num_layers:], *(encoder.blocks[block] for block in blocks), *groups]


def _initialize_encoder(student: Encoder, teacher: Encoder) -> None:
    if all(getattr(student.config, field) == getattr(teacher.config, field) for field in SAME_SHAPE + SAME_STRUCTURE):
        student.load_state_dict(teacher.state_dict())
        return
    _check_same_shape(student.config, teacher.config)
    _upcycle(student, teacher)


def _upcycle(student: Encoder, teacher: Encoder) -> None:
    student.subsampling.load_state_dict(teacher.subsampling.state_dict())
    for block in range(student.config.num_blocks):
        layers = [layer for layer, used in enumerate(student.config.block_of_layer) if used == block]
        middle = layers[len(layers) // 2]
        for layer in layers:
            source = middle if student.config.norms == "group" else layer
            norms = _layer(teacher, source).norms()
            for name, norm in _layer(student, layer).norms().items():
                norm.load_state_dict(norms[name].state_dict())
        for name, mine in student.blocks[block].named_children():
            sources = {layer: _part(teacher, layer, name) for layer in layers}
            _initialize_part(mine, sources, middle, student.config.experts)


def _layer(encoder: Encoder, index: int) -> LayerParameters:
    layer = encoder.layers[index]
    assert isinstance(layer, LayerParameters)
    return layer


def _part(teacher: Encoder, layer: int, name: str) -> nn.Module:
    return teacher.blocks[teacher.config.block_of_layer[layer]].get_submodule(name)


def _initialize_part(
    mine: nn.Module, sources: dict[int, nn.Module], middle: int, experts: ExpertsConfig | None
) -> None:
    """A part of a block from the same part of the teacher at each of the block's layers."""
    if isinstance(mine, ResidualMixture):
        mine.dense.load_state_dict(sources[middle].state_dict())
        mine = mine.mixture
    if experts is None or not isinstance(mine, MixtureOfExperts):
        mine.load_state_dict(sources[middle].state_dict())
        return
    chosen = [middle] * experts.count
    if experts.initial == "independent":
        chosen = spread_evenly(list(sources), experts.count)
    for expert, layer in enumerate(chosen):
        _copy_expert(mine.experts, expert, sources[layer])
        if layer in chosen[:expert]:
            _add_noise(mine.experts, expert, experts.initial_noise)


def spread_evenly(layers: list[int], number: int) -> list[int]:
    """`number` of the layers, the first of each of as many equal parts; some repeat where there are too few."""
    return [layers[index * len(layers) // number] for index in range(number)]


def _copy_expert(stack: ExpertStack, expert: int, dense: nn.Module) -> None:
    assert isinstance(dense, FeedForward)
    stack.w1[expert] = dense.expand.weight
    stack.w2[expert] = dense.contract.weight
    stack.w3[expert, 0] = torch.cat((dense.expand.bias, dense.contract.bias))


def _add_noise(stack: ExpertStack, expert: int, noise: float) -> None:
    for weight in (stack.w1[expert], stack.w2[expert]):
        weight += noise * weight.std() * torch.randn_like(weight)


def _check_same_shape(mine: EncoderConfig, theirs: EncoderConfig) -> None:
    for field in SAME_SHAPE:
        if getattr(mine, field) != getattr(theirs, field):
            raise ValueError(
                f"the student's encoder.{field} is {getattr(mine, field)} and the teacher's {getattr(theirs, field)}: "
                "to start from the teacher they must be equal"
            )
    if theirs.experts is not None:
        raise ValueError("the teacher has experts itself: only a dense teacher can be upcycled")


def _check_same_heads(student: Recognizer, teacher: Recognizer) -> None:
    if student.config.transducer and teacher.config.transducer not in (None, student.config.transducer):
        raise ValueError("the transducers of student and teacher differ: to start from the teacher they must be equal")
    if student.config.decoder and teacher.config.decoder and student.config.decoder != teacher.config.decoder:
        raise ValueError("the decoders of student and teacher differ: to start from the teacher they must be equal")
