"""The memory that a forward pass leaves for its backward pass, from shapes alone.

Counted is every distinct storage that torch saves for a gradient, as its saved-tensor hooks see them, weights aside.
What follows a matrix product has the precision of the products; routing and losses are fp32 always. Under autocast the
weights themselves are saved once more, in its precision; those of experts are not.

The counts are those of CPUs. There dropout saves a mask value per element, and under autocast SiLU its output. On GPUs
the mask is a byte per element, SiLU is computed again, and the inputs of norms stay fp32.

Shapes: B utterances, T encoder frames, U tokens, D width, F feed-forward width, V vocabulary, E experts, K experts per
frame, C channels, W joint width. Counts are elements unless a name ends in _bytes.
"""

from dataclasses import dataclass
from typing import TypeGuard

from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.layers.subsampling import output_length
from model.masked_prediction import MaskedPredictor, Model
from model.moe.experts import ExpertStack
from model.recognizer import Recognizer

# Bytes of a value.
FP32 = 4
INT64 = 8
# A norm saves the mean and the inverse deviation of each frame, both fp32.
NORM_STATISTICS = 2


@dataclass(frozen=True)
class MicroBatchSize:
    """A micro-batch without padding: utterances, and the feature frames and tokens of each."""

    utterances: int
    frames: int
    tokens: int


@dataclass(frozen=True)
class _Shape:
    """A micro-batch, the bytes of an activation, and the sizes of the model's input and output."""

    batch: MicroBatchSize
    value_bytes: int
    mel_bins: int
    vocabulary: int
    subsampling_factor: int

    @property
    def frames_per_utterance(self) -> int:
        return output_length(self.batch.frames, self.subsampling_factor)

    @property
    def encoder_frames(self) -> int:
        """Of all utterances."""
        return self.batch.utterances * self.frames_per_utterance

    @property
    def silu(self) -> int:
        """How many values SiluLinear saves for each of its inputs: under autocast its output too."""
        if self.value_bytes < FP32:
            return 2
        return 1

    @property
    def decoder_positions(self) -> int:
        """Of all utterances: their tokens, with one start or end each."""
        per_utterance = self.batch.tokens + 1
        return self.batch.utterances * per_utterance


def activation_bytes(recognizer: Recognizer, batch: MicroBatchSize, value_bytes: int = FP32) -> int:
    """Bytes that a training step's forward pass and loss keep for the backward pass of one micro-batch.

    `value_bytes` are those of an activation under autocast: 2, or 4 without. Under activation checkpointing it is the
    inputs of all layers and what one layer keeps while it runs again; a transducer adds one utterance's joint tensors.
    """
    config = recognizer.config
    shape = _Shape(
        batch=batch,
        value_bytes=value_bytes,
        mel_bins=recognizer.mel_bins,
        vocabulary=recognizer.vocabulary_size,
        subsampling_factor=config.encoder.subsampling.factor,
    )

    encoder = config.encoder
    # What all layers keep; under checkpointing L T D of inputs alone, and one layer at a time that runs again.
    one_layer = _encoder_layer_bytes(encoder, shape)
    if encoder.activation_checkpointing:
        inputs = encoder.layers * shape.encoder_frames * encoder.width * value_bytes
        total = inputs + one_layer
    else:
        total = encoder.layers * one_layer
    total += _subsampling_bytes(encoder, shape)
    # T D, once: the last layer's output, which all heads read.
    total += shape.encoder_frames * encoder.width * value_bytes

    # Of each CTC loss T V of log probabilities and T (2 U + 1) of forward variables: the sums over alignments that end
    # at each frame and place between tokens.
    num_states = 2 * batch.tokens + 1
    ctc = FP32 * shape.encoder_frames * (shape.vocabulary + num_states)
    num_ctc_losses = 1 + len(config.intermediate_ctc)
    total += num_ctc_losses * ctc

    decoder = config.decoder
    if decoder:
        total += _decoder_bytes(decoder, encoder.width, shape, decoder.layers)
        if decoder.right_to_left_layers:
            total += _decoder_bytes(decoder, encoder.width, shape, decoder.right_to_left_layers)
    if config.transducer:
        width = config.transducer.width
        # T W of projected frames; 3 (U + 1) W of the prediction network.
        num_vectors = shape.encoder_frames + 3 * shape.decoder_positions
        total += value_bytes * width * num_vectors
        # The loss takes one utterance after the other, so that the joint tensors of one exist at a time.
        pairs = shape.frames_per_utterance * (batch.tokens + 1)
        # Per pair 2 W of sums and their tanh, V logits and the loss's V gradients.
        pair_bytes = value_bytes * 2 * width
        pair_bytes += FP32 * 2 * shape.vocabulary
        total += pairs * pair_bytes

    if value_bytes < FP32:
        total += _autocast_weight_bytes(recognizer, value_bytes)
    return total


def _subsampling_bytes(encoder: EncoderConfig, shape: _Shape) -> int:
    """The features, the frames of the first convolution (twice: its activation keeps them too) and of the last."""
    channels = encoder.subsampling.channels
    utterances = shape.batch.utterances
    features = utterances * shape.batch.frames * shape.mel_bins
    # The first convolution has a stride of 2 in both directions, rounded up.
    halved_frames = -(-shape.batch.frames // 2)
    halved_bins = -(-shape.mel_bins // 2)
    first = utterances * halved_frames * halved_bins * channels

    last_bins = output_length(shape.mel_bins, shape.subsampling_factor)
    last = shape.encoder_frames * last_bins * channels
    # [B, C, T, bins] and, for the projection, [B, T, C bins]; a separable one keeps its depthwise output beside them.
    copies = 2
    if encoder.subsampling.convolutions == "separable":
        copies = 3

    values = features + 2 * first + copies * last
    if encoder.dropout:
        # T D of its mask.
        values += shape.encoder_frames * encoder.width
    return shape.value_bytes * values


def _encoder_layer_bytes(encoder: EncoderConfig, shape: _Shape) -> int:
    """What one Conformer layer keeps: the values at each of its matrices, norms and products."""
    width = encoder.width
    # D of the norm's output, F of the hidden units (2 F under autocast: SiLU's input and output).
    feedforward = width + shape.silu * encoder.feedforward_width
    # 5 D: the input of each of the five norms on the residual path.
    values = 5 * width
    # The first feed-forward module; the second one may be experts, below.
    values += feedforward
    # 7 D: norm; queries, keys and values; queries and keys rotated; the mixed frames.
    values += 7 * width
    # 5 D: norm; 2 D before the gate; gated; convolved. And D before the second activation, after a norm.
    values += 5 * width + shape.silu * width
    if encoder.dropout:
        # 4 D: a mask after each of the four modules.
        values += 4 * width

    # Six norms, and log-sum-exp of each frame and head in attention.
    statistics_bytes = FP32 * (6 * NORM_STATISTICS + encoder.heads)
    if encoder.experts:
        router = encoder.experts.router
        # fp32: D of the router's input, 2 E + K + 2 of logits and probabilities.
        routing_values = width + 2 * encoder.experts.count + router.per_frame + 2
        routing_bytes = FP32 * routing_values
        # 2 K indices: from frames to the order of experts and back.
        routing_bytes += INT64 * 2 * router.per_frame
        if router.jitter:
            # D: the router's input before its jitter.
            routing_bytes += FP32 * width
        # D of the norm's output; 3 D + F for each of the K experts that a frame passes.
        expert_values = 3 * width + encoder.feedforward_width
        expert_bytes = shape.value_bytes * (width + router.per_frame * expert_values)
        second_bytes = routing_bytes + expert_bytes
    else:
        second_bytes = feedforward * shape.value_bytes
    frame_bytes = values * shape.value_bytes + statistics_bytes + second_bytes
    return shape.encoder_frames * frame_bytes


def _decoder_bytes(
    decoder: DecoderConfig,
    width: int,
    shape: _Shape,
    num_layers: int,
) -> int:
    """The layers of a Transformer decoder and its output with the loss."""
    # 3 D: the inputs of three norms.
    values = 3 * width
    # 7 D of self-attention: norm, queries, keys, values, mixed tokens.
    values += 7 * width
    # 3 D of cross-attention: norm, queries, the mixed frames.
    values += 3 * width
    # Feed-forward: norm and hidden units.
    values += width + shape.silu * decoder.feedforward_width
    if decoder.dropout:
        values += 3 * width
    # Three norms, and log-sum-exp of each head in both attentions.
    statistics_bytes = FP32 * (3 * NORM_STATISTICS + 2 * decoder.heads)
    by_position = shape.value_bytes * values + statistics_bytes
    # 2 D per encoder frame: keys and values of cross-attention.
    by_frame = shape.value_bytes * 2 * width
    one_layer = shape.decoder_positions * by_position
    one_layer += shape.encoder_frames * by_frame

    # Last norm's input and output; log probabilities and the norm's statistics; targets.
    output_by_position = 2 * width * shape.value_bytes
    output_by_position += FP32 * (shape.vocabulary + NORM_STATISTICS)
    output_by_position += INT64
    output = shape.decoder_positions * output_by_position
    return num_layers * one_layer + output


def _autocast_weight_bytes(recognizer: Recognizer, value_bytes: int) -> int:
    """Autocast's copies of all matrices and convolutions, made once per forward pass.

    Experts keep none, but for their grouped product on GPUs, which is not counted.
    """
    expert_weights: set[int] = set()
    for module in recognizer.modules():
        if isinstance(module, ExpertStack):
            expert_weights.update(id(parameter) for parameter in module.parameters())

    numel = 0
    for parameter in recognizer.parameters():
        # Biases and norms have one dimension and are not converted.
        is_matrix = parameter.ndim > 1
        if is_matrix and id(parameter) not in expert_weights:
            numel += parameter.numel()
    return value_bytes * numel


def is_known(recognizer: Model) -> TypeGuard[Recognizer]:
    """Whether the counts above are those of this model: a recogniser whose blocks hold the standard modules, with no
    option of the encoder that makes them keep something else."""
    if isinstance(recognizer, MaskedPredictor):
        return False
    encoder = recognizer.config.encoder
    if encoder.positions != "rotary" or encoder.convolution_norm != "layer":
        return False
    if encoder.stochastic_depth or encoder.causal_convolution or encoder.adapters:
        return False
    if encoder.convolution_views or encoder.kernel_owner == "layer":
        return False
    # A factor of 8 has three convolutions; two are counted.
    if encoder.subsampling.factor >= 8:
        return False
    if encoder.experts:
        experts = encoder.experts
        if experts.placement != "second" or experts.residual or experts.capacity_factor:
            return False

    standard = {"feedforward1", "attention", "convolution", "feedforward2", "dropout"}
    for block in recognizer.encoder.blocks:
        children = {name for name, _ in block.named_children()}
        if children != standard:
            return False
    return True
