"""How large a model is and how much it computes, part by part, in the ways that matter when blocks are shared and
experts idle.

unique: each tensor once, what is stored and updated. effective: what a model without sharing, of the same depth and
with the same experts, would hold. activated: what one frame (in the decoder, one token) multiplies with on its way,
each use counted; of an embedding one row.

Operations are those of matrix products, convolutions and attention, a multiplication with its addition as two; norms,
activations, softmax, positions and the dynamic programs of losses are left out, as torch's FlopCounterMode leaves them
out. They follow from shapes: a model on the meta device will do.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import cast

from torch import nn

from model.block import LayerParameters
from model.decoder import CrossAttention, Decoder
from model.encoder import Encoder
from model.layers.attention import RelativePositions, RelativeSelfAttention, RotaryPositions, SelfAttention
from model.layers.batch_norm import FrameBatchNorm
from model.layers.subsampling import ConvolutionSubsampling, output_length
from model.masked_prediction import MaskedPredictor, Model
from model.moe.experts import ExpertStack, MixtureOfExperts
from model.moe.router import Router
from model.recognizer import Recognizer
from model.transducer import JointNetwork, Transducer

# Parts that the children of a block belong to, where that is not their own name.
PART_OF_CHILD = {"feedforward1": "feedforward", "feedforward2": "feedforward"}
# What only passes numbers on, or multiplies each by one other.
WITHOUT_PRODUCTS = (nn.LayerNorm, FrameBatchNorm, nn.Embedding, nn.Dropout, RotaryPositions, RelativePositions)


@dataclass(frozen=True)
class PartCounts:
    """Parameters of a part of the model: unique, effective, activated."""

    unique: int
    effective: int
    activated: int

    def __add__(self, other: "PartCounts") -> "PartCounts":
        return PartCounts(
            self.unique + other.unique, self.effective + other.effective, self.activated + other.activated
        )


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of the whole model (unique) and of its encoder (unique, effective, activated per frame)."""

    parameters: int
    encoder_parameters: int
    effective_encoder_parameters: int
    activated_encoder_parameters: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def count_parameters(recognizer: Model) -> ParameterCounts:
    """Count a model, which may live on the meta device."""
    encoder = _add(_by_part(_encoder_parts(recognizer.encoder), _per_frame(recognizer)).values())
    return ParameterCounts(
        parameters=_unique(recognizer),
        encoder_parameters=encoder.unique,
        effective_encoder_parameters=encoder.effective,
        activated_encoder_parameters=encoder.activated,
    )


def count_parts(recognizer: Model) -> dict[str, PartCounts]:
    """The parameters of each part; they add up to those of the whole model."""
    return _by_part(_parts(recognizer), _per_frame(recognizer))


def forward_operations(recognizer: Model, num_frames: int, num_tokens: int) -> dict[str, int]:
    """Floating-point operations of one utterance's forward pass, by part.

    `num_frames` are frames of features, all of them valid. With `num_tokens` 0 what reads tokens (decoder, transducer)
    does not run.
    """
    sizes = _Sizes.of(recognizer, num_frames, num_tokens)
    operations: Counter[str] = Counter()
    for part, module, uses in _parts(recognizer):
        operations[part] += uses * _operations(module, sizes.frames, sizes)
    return dict(operations)


def encoder_operations(recognizer: Model, num_frames: int) -> int:
    """Floating-point operations of the encoder's forward pass over one utterance."""
    sizes = _Sizes.of(recognizer, num_frames, 0)
    return sum(
        uses * _operations(module, sizes.frames, sizes) for _, module, uses in _encoder_parts(recognizer.encoder)
    )


def training_operations(
    recognizer: Recognizer, num_frames: int, num_tokens: int, teachers: Sequence[Recognizer] = ()
) -> int:
    """Floating-point operations of one utterance in a training step, with the forward passes of its teachers.

    A backward pass costs two forward ones: the gradients of inputs and of weights. What is computed again on the way
    (layers under activation checkpointing, the joint network always) costs one more.
    """
    config = recognizer.config
    forward = Counter(forward_operations(recognizer, num_frames, num_tokens))
    forward["ctc"] *= 1 + len(config.intermediate_ctc)
    total = 3 * forward.total() + _recomputed(recognizer, num_frames)
    sizes = _Sizes.of(recognizer, num_frames, num_tokens)
    if recognizer.transducer is not None:
        total += _operations(recognizer.transducer.joint, sizes.frames, sizes)
    return total + sum(sum(forward_operations(teacher, num_frames, num_tokens).values()) for teacher in teachers)


def masked_operations(model: MaskedPredictor, num_frames: int, masked_share: float) -> tuple[dict[str, float], float]:
    """Floating-point operations of one utterance by part, in a forward pass, and all of them in a training step.

    Heads and quantizer work at the share of the frames that is masked; the quantizer has no backward pass.
    """
    parts: dict[str, float] = dict(forward_operations(model, num_frames, 0))
    masked_frames = masked_share * _Sizes.of(model, num_frames, 0).frames
    quantizer = model.quantizer.projections_QIP.numel() + model.quantizer.codes_QCP.numel()
    parts |= {"heads": masked_share * parts["heads"], "quantizer": 2 * quantizer * masked_frames}
    training = 3 * sum(parts.values()) - 2 * parts["quantizer"] + _recomputed(model, num_frames)
    return parts, training


def _recomputed(recognizer: Model, num_frames: int) -> int:
    """Operations of the layers that run once more in the backward pass, under activation checkpointing."""
    if not recognizer.config.encoder.activation_checkpointing:
        return 0
    sizes = _Sizes.of(recognizer, num_frames, 0)
    return encoder_operations(recognizer, num_frames) - _operations(recognizer.encoder.subsampling, sizes.frames, sizes)


# --- parts ---------------------------------------------------------------------------------------------------------


def _parts(recognizer: Model) -> Iterator[tuple[str, nn.Module, int]]:
    """Each part's modules with the number of times that a pass uses them."""
    for name, child in recognizer.named_children():
        if isinstance(child, Encoder):
            yield from _encoder_parts(child)
        else:
            yield name, child, 1


def _encoder_parts(encoder: Encoder) -> Iterator[tuple[str, nn.Module, int]]:
    uses = Counter(encoder.config.block_of_layer)
    for index, block in enumerate(encoder.blocks):
        for name, child in block.named_children():
            part = "experts" if _has_experts(child) else PART_OF_CHILD.get(name, name)
            yield part, child, uses[index]
    layers = [cast(LayerParameters, layer) for layer in encoder.layers]
    for norm, used in Counter(norm for layer in layers for norm in layer.norms().values()).items():
        yield "norms", norm, used
    for router, used in Counter(router for layer in layers for router in layer.routers()).items():
        yield "routers", router, used
    for name, child in encoder.named_children():
        if child not in (encoder.blocks, encoder.layers, encoder.groups, encoder.common):
            yield name, child, 1


def _by_part(parts: Iterator[tuple[str, nn.Module, int]], per_frame: int) -> dict[str, PartCounts]:
    counts: dict[str, PartCounts] = {}
    for part, module, uses in parts:
        unique = _unique(module)
        if unique:
            once = _used_once(module)
            effective = uses * (unique - once) + once
            activated = uses * (_activated(module, per_frame) - once) + once
            own = PartCounts(unique, effective, activated)
            counts[part] = _add((counts.get(part, PartCounts(0, 0, 0)), own))
    return counts


def _add(counts: Iterable[PartCounts]) -> PartCounts:
    return sum(counts, start=PartCounts(0, 0, 0))


def _has_experts(module: nn.Module) -> bool:
    return any(isinstance(inner, MixtureOfExperts) for inner in module.modules())


def _per_frame(recognizer: Model) -> int:
    """Experts that a frame is sent to; 0 without experts."""
    experts = recognizer.config.encoder.experts
    return experts.router.per_frame if experts else 0


def _unique(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _used_once(module: nn.Module) -> int:
    """Of a router's embeddings every layer uses its own."""
    once = module.embedding if isinstance(module, Router) else None
    return 0 if once is None else once.numel()


def _activated(module: nn.Module, per_frame: int) -> int:
    """What one frame or token multiplies with: of experts those it is sent to, of an embedding one row."""
    total = _unique(module)
    for inner in module.modules():
        if isinstance(inner, MixtureOfExperts):
            total -= _unique(inner) - _unique(inner) // inner.num_experts * per_frame
        if isinstance(inner, nn.Embedding):
            total -= inner.weight.numel() - inner.embedding_dim
    return total


# --- operations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    """Of one utterance: feature frames, encoder frames, mel bins, tokens (0: what reads tokens does not run), and the
    experts that a frame is sent to."""

    feature_frames: int
    frames: int
    mel_bins: int
    tokens: int
    per_frame: int

    @classmethod
    def of(cls, recognizer: Model, num_frames: int, num_tokens: int) -> "_Sizes":
        return cls(
            num_frames,
            output_length(num_frames, recognizer.encoder.subsampling.factor),
            recognizer.mel_bins,
            num_tokens,
            _per_frame(recognizer),
        )


def _operations(module: nn.Module, positions: int, sizes: _Sizes) -> int:
    """Operations of one use of a module over so many frames or tokens.

    Raises TypeError for a module with parameters of its own that is not known here: guessing would be worse.
    """
    if isinstance(module, WITHOUT_PRODUCTS):
        return 0
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, Router)):
        return 2 * module.weight.numel() * positions
    if isinstance(module, MixtureOfExperts):
        return sizes.per_frame * _expert_operations(module.experts) * positions
    if isinstance(module, JointNetwork):
        return 2 * module.weight.numel() * sizes.frames * (sizes.tokens + 1) if sizes.tokens else 0
    if isinstance(module, RelativeSelfAttention):
        return _relative_attention_operations(module, positions)
    if next(module.parameters(recurse=False), None) is not None:
        raise TypeError(f"the operations of {type(module).__name__} are not known: add it to model/costs/flops.py")
    if isinstance(module, ConvolutionSubsampling):
        return _subsampling_operations(module, sizes)
    if isinstance(module, Decoder):
        return _children(module, sizes.tokens + 1, sizes) if sizes.tokens else 0
    if isinstance(module, Transducer):
        return _transducer_operations(module, sizes) if sizes.tokens else 0
    if isinstance(module, SelfAttention):
        return _children(module, positions, sizes) + _attention(positions, positions, module.output.in_features)
    if isinstance(module, CrossAttention):
        by_token = 2 * (module.query.weight.numel() + module.output.weight.numel()) * positions
        by_frame = 2 * module.key_value.weight.numel() * sizes.frames
        return by_token + by_frame + _attention(positions, sizes.frames, module.output.in_features)
    return _children(module, positions, sizes)


def _children(module: nn.Module, positions: int, sizes: _Sizes) -> int:
    return sum(_operations(child, positions, sizes) for child in module.children())


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores and mixing, over all heads; a mask or causality saves nothing here."""
    return 2 * 2 * queries * keys * width


def _relative_attention_operations(module: RelativeSelfAttention, frames: int) -> int:
    """Beside plain attention: the encodings of all offsets through a matrix, and a score for each."""
    width, offsets = module.output.in_features, 2 * frames - 1
    matrices = 2 * frames * (module.query_key_value.weight.numel() + module.output.weight.numel())
    offset_scores = 2 * offsets * (module.position.weight.numel() + frames * width)
    return matrices + offset_scores + _attention(frames, frames, width)


def _expert_operations(stack: ExpertStack) -> int:
    """Of one frame and one expert."""
    return 2 * (stack.w1[0].numel() + stack.w2[0].numel())


def _subsampling_operations(module: ConvolutionSubsampling, sizes: _Sizes) -> int:
    frames, bins = sizes.feature_frames, sizes.mel_bins
    total = 0
    for convolution in module.modules():
        # In the order in which features pass them; those of stride 1 keep the size.
        if isinstance(convolution, nn.Conv2d):
            frames, bins = (-(-size // convolution.stride[0]) for size in (frames, bins))
            total += 2 * convolution.weight.numel() * frames * bins
    return total + 2 * module.projection.weight.numel() * frames


def _transducer_operations(module: Transducer, sizes: _Sizes) -> int:
    predictions = _children(module.prediction, sizes.tokens + 1, sizes)
    return predictions + _operations(module.frames, sizes.frames, sizes) + _operations(module.joint, 0, sizes)
