"""Starts a student from its teacher: what both have in the same shape is copied, what the student shares is chosen.

A shared block starts as the teacher's block of the group's middle layer. Its experts start as the second feed-forward
layers of teacher layers spread evenly over the group, so that they begin different and useful (upcycling, Komatsuzaki
et al., 2022, with several sources).
"""

import torch

from model.block import ConformerBlock
from model.experts import ExpertStack, MixtureOfExperts
from model.feedforward import FeedForward
from model.recognizer import Recognizer


@torch.no_grad()
def initialize_from_teacher(student: Recognizer, teacher: Recognizer) -> None:
    """Copy the teacher's weights into an unspread student.

    Raises ValueError, naming the difference, when depth or widths are not the teacher's.
    """
    _check_same_shape(student, teacher)
    student.encoder.subsampling.load_state_dict(teacher.encoder.subsampling.state_dict())
    student.ctc.load_state_dict(teacher.ctc.state_dict())
    if student.decoder is not None and teacher.decoder is not None:
        student.decoder.load_state_dict(teacher.decoder.state_dict())
    for mine, theirs in zip(student.encoder.layers, teacher.encoder.layers, strict=True):
        mine.load_state_dict(theirs.state_dict(), strict=False)  # routers are the student's own
    for block in range(len(student.encoder.blocks)):
        layers = [layer for layer, used in enumerate(student.encoder.config.block_of_layer) if used == block]
        _initialize_block(student, teacher, block, layers)


def _initialize_block(student: Recognizer, teacher: Recognizer, block: int, layers: list[int]) -> None:
    source_of = teacher.encoder.config.block_of_layer
    mine = _block(student, block)
    middle = _block(teacher, source_of[layers[len(layers) // 2]])
    for name in ("feedforward1", "attention", "convolution"):
        getattr(mine, name).load_state_dict(getattr(middle, name).state_dict())
    if isinstance(mine.feedforward2, MixtureOfExperts):
        count = mine.feedforward2.num_experts
        for expert in range(count):
            layer = layers[expert * len(layers) // count]
            dense = _block(teacher, source_of[layer]).feedforward2
            assert isinstance(dense, FeedForward)
            _copy_expert(mine.feedforward2.experts, expert, dense)
    else:
        mine.feedforward2.load_state_dict(middle.feedforward2.state_dict())


def _block(recognizer: Recognizer, index: int) -> ConformerBlock:
    block = recognizer.encoder.blocks[index]
    assert isinstance(block, ConformerBlock)
    return block


def _copy_expert(stack: ExpertStack, expert: int, dense: FeedForward) -> None:
    stack.w1[expert] = dense.expand.weight
    stack.w2[expert] = dense.contract.weight
    stack.w3[expert, 0] = torch.cat((dense.expand.bias, dense.contract.bias))


def _check_same_shape(student: Recognizer, teacher: Recognizer) -> None:
    mine, theirs = student.config.encoder, teacher.config.encoder
    same = (
        "layers",
        "width",
        "heads",
        "feedforward_width",
        "positions",
        "kernel_size",
        "convolution_norm",
        "subsampling",
    )
    for field in same:
        if getattr(mine, field) != getattr(theirs, field):
            raise ValueError(
                f"the student's encoder.{field} is {getattr(mine, field)} and the teacher's {getattr(theirs, field)}: "
                "to start from the teacher they must be equal"
            )
    if theirs.experts is not None:
        raise ValueError("the teacher has experts itself: only a dense teacher can be upcycled")
    if student.config.decoder and teacher.config.decoder and student.config.decoder != teacher.config.decoder:
        raise ValueError("the decoders of student and teacher differ: to start from the teacher they must be equal")
