"""How large a model is and how much it computes, part by part, in the ways that matter when blocks are shared and
experts idle.

Parameters are counted three times. unique: each tensor once, what is stored and updated. effective: what a model
without sharing, of the same depth and with the same experts, would hold. activated: what one frame (in the decoder, one
token) multiplies with on its way, each use counted; of an embedding one row.

Operations are those of matrix products, convolutions and attention. A multiplication with its addition counts as two.
Norms, activation functions, softmax, positions and the dynamic programs of losses do not count, as they do not in
torch's FlopCounterMode. Operations follow from shapes: a model on the meta device will do.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

from torch import Tensor, nn

from model.block import LayerParameters
from model.decoder import CrossAttention, Decoder
from model.encoder import Encoder
from model.layers.attention import RelativePositions, RelativeSelfAttention, RotaryPositions, SelfAttention
from model.layers.batch_norm import FrameBatchNorm
from model.layers.depthwise import LayerKernel, OwnedBias, ViewKernels, ViewMixture
from model.layers.subsampling import ConvolutionSubsampling, output_length
from model.masked_prediction import MaskedPredictor, Model
from model.moe.experts import MixtureOfExperts
from model.moe.router import Router
from model.recognizer import Recognizer
from model.transducer import JointNetwork, Transducer

# Parts that the children of a block belong to, where that is not their own name.
PART_OF_CHILD = {"feedforward1": "feedforward", "feedforward2": "feedforward"}
# Modules that only look up, normalise or rotate: at most a factor per element, which is not counted.
WITHOUT_PRODUCTS = (
    nn.LayerNorm,
    FrameBatchNorm,
    nn.Embedding,
    nn.Dropout,
    RotaryPositions,
    RelativePositions,
    # The first mixes kernels once per pass, the second adds.
    ViewMixture,
    OwnedBias,
)
# Modules whose one matrix, or convolution kernel, each frame or token passes.
ONE_PRODUCT = (nn.Linear, nn.Conv1d, nn.Conv2d, LayerKernel, Router)
# A multiplication and its addition.
MULTIPLY_ADD = 2


@dataclass(frozen=True)
class PartCounts:
    """Parameters of a part of the model: unique, effective, activated."""

    unique: int
    effective: int
    activated: int

    def __add__(self, other: "PartCounts") -> "PartCounts":
        return PartCounts(
            unique=self.unique + other.unique,
            effective=self.effective + other.effective,
            activated=self.activated + other.activated,
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


class ModuleUse(NamedTuple):
    """A module, the part of the model that it belongs to, and how often a forward pass uses it."""

    part: str
    module: nn.Module
    uses: int


# --- parameters ----------------------------------------------------------------------------------------------------


def count_parameters(recognizer: Model) -> ParameterCounts:
    """Count a model, which may live on the meta device."""
    parts = _encoder_parts(recognizer.encoder)
    counts = _count_by_part(parts, _experts_per_frame(recognizer))
    encoder = PartCounts(0, 0, 0)
    for part_counts in counts.values():
        encoder = encoder + part_counts
    return ParameterCounts(
        parameters=_num_parameters(recognizer),
        encoder_parameters=encoder.unique,
        effective_encoder_parameters=encoder.effective,
        activated_encoder_parameters=encoder.activated,
    )


def count_parts(recognizer: Model) -> dict[str, PartCounts]:
    """The parameters of each part; they add up to those of the whole model."""
    return _count_by_part(_parts(recognizer), _experts_per_frame(recognizer))


def _parts(recognizer: Model) -> Iterator[ModuleUse]:
    """The encoder's parts, and the heads over it."""
    for name, child in recognizer.named_children():
        if isinstance(child, Encoder):
            yield from _encoder_parts(child)
        else:
            yield ModuleUse(name, child, 1)


def _encoder_parts(encoder: Encoder) -> Iterator[ModuleUse]:
    """The encoder's modules: a shared block, norm or router once, with as many uses as layers have it."""
    layers_of_block = Counter(encoder.config.block_of_layer)
    for index, block in enumerate(encoder.blocks):
        for name, child in block.named_children():
            part = PART_OF_CHILD.get(name, name)
            # Experts may stand in place of a feed-forward layer, or in a mixture with one.
            if any(isinstance(module, MixtureOfExperts) for module in child.modules()):
                part = "experts"
            yield ModuleUse(part, child, layers_of_block[index])

    for layer in encoder.layers:
        adapters = cast(LayerParameters, layer).adapters
        if adapters is not None:
            yield ModuleUse("adapters", adapters, 1)
        kernel = cast(LayerParameters, layer).kernel
        if kernel is not None:
            yield ModuleUse("convolution", kernel, 1)

    norms: Counter[nn.Module] = Counter()
    routers: Counter[nn.Module] = Counter()
    for layer in encoder.layers:
        parameters = cast(LayerParameters, layer)
        norms.update(parameters.norms().values())
        routers.update(parameters.routers())
    for norm, uses in norms.items():
        yield ModuleUse("norms", norm, uses)
    for router, uses in routers.items():
        yield ModuleUse("routers", router, uses)

    # Blocks, and the holders of norms and routers, have been visited above.
    visited = (encoder.blocks, encoder.layers, encoder.groups, encoder.common)
    for name, child in encoder.named_children():
        if child not in visited:
            yield ModuleUse(name, child, 1)


def _count_by_part(parts: Iterable[ModuleUse], experts_per_frame: int) -> dict[str, PartCounts]:
    counts: dict[str, PartCounts] = {}
    for part, module, uses in parts:
        unique = _num_parameters(module)
        if unique == 0:
            continue
        # What one frame or token multiplies with: of experts those it is sent to, of an embedding one row.
        activated = unique
        for inner in module.modules():
            if isinstance(inner, MixtureOfExperts):
                all_experts = _num_parameters(inner)
                one_expert = all_experts // inner.num_experts
                activated -= all_experts - one_expert * experts_per_frame
            if isinstance(inner, nn.Embedding):
                one_row = inner.embedding_dim
                activated -= inner.weight.numel() - one_row
        # A shared router holds an embedding row per layer, and each layer reads its own: sharing does not repeat them.
        per_layer = 0
        if isinstance(module, Router) and module.embedding is not None:
            per_layer = module.embedding.numel()

        module_counts = PartCounts(
            unique=unique,
            effective=uses * (unique - per_layer) + per_layer,
            activated=uses * (activated - per_layer) + per_layer,
        )
        if part in counts:
            module_counts = counts[part] + module_counts
        counts[part] = module_counts
    return counts


def _experts_per_frame(recognizer: Model) -> int:
    """Experts that a frame is sent to; 0 without experts."""
    experts = recognizer.config.encoder.experts
    if experts is None:
        return 0
    return experts.router.per_frame


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- operations ----------------------------------------------------------------------------------------------------


def forward_operations(
    recognizer: Model,
    num_frames: int,
    num_tokens: int,
) -> dict[str, int]:
    """Floating-point operations of one utterance's forward pass, by part.

    `num_frames` are frames of features, all of them valid. With `num_tokens` 0 what reads tokens (decoder, transducer)
    does not run.
    """
    utterance = _Utterance.of_model(recognizer, num_frames, num_tokens)
    operations: Counter[str] = Counter()
    for part, module, uses in _parts(recognizer):
        operations[part] += uses * utterance.operations(module, utterance.encoder_frames)
    return dict(operations)


def encoder_operations(recognizer: Model, num_frames: int) -> int:
    """Floating-point operations of the encoder's forward pass over one utterance."""
    utterance = _Utterance.of_model(recognizer, num_frames, 0)
    total = 0
    for _, module, uses in _encoder_parts(recognizer.encoder):
        total += uses * utterance.operations(module, utterance.encoder_frames)
    return total


def training_operations(
    recognizer: Recognizer,
    num_frames: int,
    num_tokens: int,
    teachers: Sequence[Recognizer] = (),
) -> int:
    """Floating-point operations of one utterance in a training step, with the forward passes of its teachers.

    A backward pass costs two forward passes: the gradients of inputs and of weights. What is recomputed in it (layers
    under activation checkpointing, the joint network always) costs one more.
    """
    forward = forward_operations(recognizer, num_frames, num_tokens)
    # Every intermediate CTC loss applies the CTC head once more.
    num_ctc_losses = 1 + len(recognizer.config.intermediate_ctc)
    forward["ctc"] *= num_ctc_losses
    total = 3 * sum(forward.values())

    total += _recomputed_operations(recognizer, num_frames)
    if recognizer.transducer is not None:
        utterance = _Utterance.of_model(recognizer, num_frames, num_tokens)
        total += utterance.joint_network(recognizer.transducer.joint)

    for teacher in teachers:
        teacher_forward = forward_operations(teacher, num_frames, num_tokens)
        total += sum(teacher_forward.values())
    return total


def masked_operations(
    model: MaskedPredictor,
    num_frames: int,
    masked_share: float,
) -> tuple[dict[str, float], float]:
    """Floating-point operations of one utterance by part, in a forward pass, and all of them in a training step.

    Heads and quantizer work at the share of the frames that is masked.
    """
    utterance = _Utterance.of_model(model, num_frames, 0)
    masked_frames = masked_share * utterance.encoder_frames
    parts: dict[str, float] = dict(forward_operations(model, num_frames, 0))
    parts["heads"] = masked_share * parts["heads"]

    # Per frame a projection, and a distance to every code of every codebook.
    projections = model.quantizer.projections_QIP.numel()
    distances = model.quantizer.codes_QCP.numel()
    quantizer = projections + distances
    parts["quantizer"] = MULTIPLY_ADD * quantizer * masked_frames

    # The quantizer is fixed: it has no backward pass, which is 2 of the 3.
    training = 3 * sum(parts.values())
    training = training - 2 * parts["quantizer"]
    training = training + _recomputed_operations(model, num_frames)
    return parts, training


def _recomputed_operations(recognizer: Model, num_frames: int) -> int:
    """Operations of the layers that run once more in the backward pass, under activation checkpointing."""
    if not recognizer.config.encoder.activation_checkpointing:
        return 0
    # Layers are checkpointed, the subsampling before them is not.
    utterance = _Utterance.of_model(recognizer, num_frames, 0)
    subsampling = utterance.subsampling(recognizer.encoder.subsampling)
    return encoder_operations(recognizer, num_frames) - subsampling


@dataclass(frozen=True)
class _Utterance:
    """The sizes that the operations of one utterance depend on; with `tokens` 0 what reads tokens does not run."""

    feature_frames: int
    encoder_frames: int
    mel_bins: int
    tokens: int
    experts_per_frame: int

    @classmethod
    def of_model(
        cls,
        recognizer: Model,
        num_frames: int,
        num_tokens: int,
    ) -> "_Utterance":
        """An utterance of so many feature frames and tokens, as the model cuts it into encoder frames."""
        factor = recognizer.encoder.subsampling.factor
        return cls(
            feature_frames=num_frames,
            encoder_frames=output_length(num_frames, factor),
            mel_bins=recognizer.mel_bins,
            tokens=num_tokens,
            experts_per_frame=_experts_per_frame(recognizer),
        )

    @property
    def decoder_positions(self) -> int:
        """The tokens and the start (in targets: the end) of the text."""
        return self.tokens + 1

    def operations(self, module: nn.Module, positions: int) -> int:
        """Operations of one use of a module over so many frames or tokens.

        Raises TypeError for a module with parameters of its own that is not known here: guessing would be worse.
        """
        if isinstance(module, WITHOUT_PRODUCTS):
            return 0
        if isinstance(module, ONE_PRODUCT):
            return _product(positions, module.weight)
        if isinstance(module, ViewKernels):
            # They are added up to one kernel before they meet a frame.
            return MULTIPLY_ADD * positions * len(module.taps[0]) * module.kernel_size
        if isinstance(module, MixtureOfExperts):
            # K x (2 D F + 2 F D) per frame: of each stack one expert's matrices.
            stacks = module.experts
            one_expert = _product(positions, stacks.w1[0], stacks.w2[0])
            return self.experts_per_frame * one_expert
        if isinstance(module, JointNetwork):
            return self.joint_network(module)
        if isinstance(module, RelativeSelfAttention):
            # Beside plain attention: the encodings of all offsets through a matrix, and a score for each.
            width = module.output.in_features
            # Offsets from -(T - 1) to T - 1.
            offsets = 2 * positions - 1
            # 2 T x 4 D^2: queries, keys and values in one matrix, and the output.
            projections = _product(positions, module.query_key_value.weight, module.output.weight)
            # 2 (2 T - 1) D^2 for the encodings, and 2 T (2 T - 1) D for a score per query and offset.
            offset_encodings = _product(offsets, module.position.weight)
            offset_scores = MULTIPLY_ADD * offsets * positions * width
            plain = _attention(positions, positions, width)
            return projections + offset_encodings + offset_scores + plain

        # All known modules with parameters of their own stand above; those below hold them in children.
        own_parameters = list(module.parameters(recurse=False))
        if own_parameters:
            name = type(module).__name__
            raise TypeError(f"the operations of {name} are not known: add it to model/costs/flops.py")

        if isinstance(module, ConvolutionSubsampling):
            return self.subsampling(module)
        if isinstance(module, (Decoder, Transducer)):
            return self.token_reader(module)
        if isinstance(module, SelfAttention):
            width = module.output.in_features
            projections = self.children(module, positions)
            return projections + _attention(positions, positions, width)
        if isinstance(module, CrossAttention):
            # 2 U x 2 D^2 by token: queries and output. 2 S x 2 D^2 by encoder frame: keys and values.
            width = module.output.in_features
            by_token = _product(positions, module.query.weight, module.output.weight)
            by_frame = _product(self.encoder_frames, module.key_value.weight)
            mixing = _attention(positions, self.encoder_frames, width)
            return by_token + by_frame + mixing
        return self.children(module, positions)

    def children(self, module: nn.Module, positions: int) -> int:
        """Operations of all that a module holds, each used once."""
        total = 0
        for child in module.children():
            total += self.operations(child, positions)
        return total

    def subsampling(self, module: ConvolutionSubsampling) -> int:
        """The convolutions, in the order in which features pass them, and the projection to the encoder's width."""
        frames = self.feature_frames
        bins = self.mel_bins
        total = 0
        for convolution in module.modules():
            if not isinstance(convolution, nn.Conv2d):
                continue
            # A stride divides frames and bins, rounded up; pointwise convolutions have a stride of 1.
            stride = convolution.stride[0]
            frames = -(-frames // stride)
            bins = -(-bins // stride)
            # 2 x kernel^2 x in / groups x out at each place of the output.
            total += _product(frames * bins, convolution.weight)
        return total + _product(frames, module.projection.weight)

    def token_reader(self, module: Decoder | Transducer) -> int:
        """A decoder, or a transducer: the prediction network over the text, the projection of frames, and the joint
        network over all pairs."""
        if self.tokens == 0:
            return 0
        if isinstance(module, Decoder):
            return self.children(module, self.decoder_positions)
        predictions = self.children(module.prediction, self.decoder_positions)
        frames = self.operations(module.frames, self.encoder_frames)
        return predictions + frames + self.joint_network(module.joint)

    def joint_network(self, module: JointNetwork) -> int:
        """The logits of all pairs of frame and token."""
        if self.tokens == 0:
            return 0
        # 2 W V for each pair of S frames and U + 1 positions; tanh and the sum before it do not count.
        pairs = self.encoder_frames * self.decoder_positions
        return _product(pairs, module.weight)


def _product(positions: int, *weights: Tensor) -> int:
    """So many positions through matrices: 2 x in x out each. Of a convolution's kernel it is kernel x in / groups x
    out, which its weight holds."""
    num_weights = 0
    for weight in weights:
        num_weights += weight.numel()
    return MULTIPLY_ADD * num_weights * positions


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores and mixing, over all heads; a mask or causality saves nothing here."""
    # 2 Q K D for queries x keys, and 2 Q K D for probabilities x values.
    scores = MULTIPLY_ADD * queries * keys * width
    mixing = MULTIPLY_ADD * queries * keys * width
    return scores + mixing
