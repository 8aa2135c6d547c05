"""The memory that a forward pass leaves for its backward pass, from shapes alone.

Counted is every distinct storage that torch saves for a gradient, as its saved-tensor hooks see them, weights aside.
What follows a matrix product has the precision of the products, routing and losses are fp32 always. Under autocast the
weights themselves are saved once more, in its precision; those of experts are not. Dropout keeps a number per element,
and under autocast SiLU its output, as on CPUs; on GPUs the one is a byte and the other is computed again, and what goes
into norms stays fp32 there.

Shapes: D width, F feed-forward width, V vocabulary, E experts, K experts per frame, C channels.
"""

from dataclasses import dataclass
from typing import TypeGuard

from model.encoder import EncoderConfig
from model.layers.subsampling import output_length
from model.masked_prediction import MaskedPredictor, Model
from model.moe.experts import ExpertStack
from model.recognizer import Recognizer, RecognizerConfig

FP32, INT64 = 4, 8


@dataclass(frozen=True)
class MicroBatchSize:
    """A micro-batch without padding: utterances, and the feature frames and tokens of each."""

    utterances: int
    frames: int
    tokens: int


@dataclass(frozen=True)
class _Shape:
    """A micro-batch with what its numbers take and how wide its ends are."""

    batch: MicroBatchSize
    value_bytes: int
    mel_bins: int
    vocabulary: int
    factor: int  # of subsampling

    @property
    def encoder_frames(self) -> int:
        """Of all utterances."""
        return self.batch.utterances * output_length(self.batch.frames, self.factor)

    @property
    def silu(self) -> int:
        """How many numbers SiluLinear keeps for each of its inputs."""
        return 2 if self.value_bytes < FP32 else 1

    @property
    def positions(self) -> int:
        """Of the decoder: the tokens of all utterances, with one start or end each."""
        return self.batch.utterances * (self.batch.tokens + 1)


def activation_bytes(recognizer: Recognizer, batch: MicroBatchSize, value_bytes: int = FP32) -> int:
    """Bytes that a training step's forward pass and loss keep for the backward pass of one micro-batch.

    `value_bytes` are those of a number under autocast: 2, or 4 without. With activation checkpointing it is the inputs
    of all layers and what one layer keeps while it is run again; a transducer adds one utterance's joint tensors.
    """
    config = recognizer.config
    shape = _Shape(
        batch,
        value_bytes,
        recognizer.mel_bins,
        recognizer.vocabulary_size,
        config.encoder.subsampling.factor,
    )
    total = _subsampling(config.encoder, shape) + _layers(config.encoder, shape)
    total += (1 + len(config.intermediate_ctc)) * _ctc(shape)
    total += shape.encoder_frames * config.encoder.width * value_bytes  # the last layer's output, read by all heads
    if config.decoder:
        total += _decoder(config, shape, config.decoder.layers)
        if config.decoder.right_to_left_layers:
            total += _decoder(config, shape, config.decoder.right_to_left_layers)
    if config.transducer:
        total += _transducer(config, shape)
    if value_bytes < FP32:
        total += value_bytes * _multiplied_parameters(recognizer)
    return total


def _layers(encoder: EncoderConfig, shape: _Shape) -> int:
    layer = _layer(encoder, shape)
    if not encoder.activation_checkpointing:
        return encoder.layers * layer
    return encoder.layers * shape.encoder_frames * encoder.width * shape.value_bytes + layer


def _layer(encoder: EncoderConfig, shape: _Shape) -> int:
    """What one layer keeps: the values at each of its matrices, norms and products."""
    width, hidden = encoder.width, encoder.feedforward_width
    # Inputs of five norms; norm, hidden; norm, packed and turned queries, keys, values, mixed frames; norm, gate,
    # gated, convolved; norm before SiLU.
    feedforward = width + shape.silu * hidden
    values = 5 * width + feedforward + 7 * width + 5 * width + shape.silu * width
    if encoder.dropout:
        values += 4 * width
    norms_and_attention = FP32 * (6 * 2 + encoder.heads)
    second = _experts(encoder, shape) if encoder.experts else feedforward * shape.value_bytes
    return shape.encoder_frames * (values * shape.value_bytes + norms_and_attention + second)


def _experts(encoder: EncoderConfig, shape: _Shape) -> int:
    """Bytes per frame: the router's input and probabilities, frames in the order of experts, indices."""
    assert encoder.experts is not None
    width, count, chosen = encoder.width, encoder.experts.count, encoder.experts.router.per_frame
    routing = FP32 * (width + 2 * count + chosen + 2) + INT64 * 2 * chosen
    if encoder.experts.router.jitter:
        routing += FP32 * width
    return routing + shape.value_bytes * (width + chosen * (3 * width + encoder.feedforward_width))


def _subsampling(encoder: EncoderConfig, shape: _Shape) -> int:
    halved_frames, halved_bins = -(-shape.batch.frames // 2), -(-shape.mel_bins // 2)
    features = shape.batch.utterances * shape.batch.frames * shape.mel_bins
    first = shape.batch.utterances * halved_frames * halved_bins * encoder.subsampling.channels
    second = shape.encoder_frames * output_length(shape.mel_bins, shape.factor) * encoder.subsampling.channels
    # The frames of the last convolution, in both orders; the depthwise ones are kept beside them.
    copies = 3 if encoder.subsampling.convolutions == "separable" else 2
    dropped = shape.encoder_frames * encoder.width if encoder.dropout else 0
    return shape.value_bytes * (features + 2 * first + copies * second + dropped)


def _ctc(shape: _Shape) -> int:
    """Log probabilities, and the sums over alignments that end at each frame and place between tokens."""
    return FP32 * shape.encoder_frames * (shape.vocabulary + 2 * shape.batch.tokens + 1)


def _decoder(config: RecognizerConfig, shape: _Shape, num_layers: int) -> int:
    decoder, width = config.decoder, config.encoder.width
    assert decoder is not None
    # Norms; queries, keys, values and mixed tokens of both attentions; feed-forward.
    values = 3 * width + 7 * width + 3 * width + (width + shape.silu * decoder.feedforward_width)
    if decoder.dropout:
        values += 3 * width
    by_position = shape.value_bytes * values + FP32 * (3 * 2 + 2 * decoder.heads)
    by_frame = shape.value_bytes * 2 * width
    layers = num_layers * (shape.positions * by_position + shape.encoder_frames * by_frame)
    output = shape.positions * (2 * width * shape.value_bytes + FP32 * (shape.vocabulary + 2) + INT64)
    return layers + output


def _transducer(config: RecognizerConfig, shape: _Shape) -> int:
    """The prediction network's values, and one utterance's joint: sums, their tanh, logits and the loss's gradient."""
    assert config.transducer is not None
    width = config.transducer.width
    kept = shape.value_bytes * width * (shape.encoder_frames + 3 * shape.positions)
    pairs = output_length(shape.batch.frames, shape.factor) * (shape.batch.tokens + 1)
    return kept + pairs * (shape.value_bytes * 2 * width + FP32 * 2 * shape.vocabulary)


def _multiplied_parameters(recognizer: Recognizer) -> int:
    """The elements of all matrices and convolutions of which autocast's copy is kept, once per forward pass. Experts
    keep none, but for their grouped product on GPUs, which is not counted."""
    stacks = [module for module in recognizer.modules() if isinstance(module, ExpertStack)]
    left_out = {id(p) for stack in stacks for p in stack.parameters()}
    return sum(p.numel() for p in recognizer.parameters() if p.ndim > 1 and id(p) not in left_out)


def is_known(recognizer: Model) -> TypeGuard[Recognizer]:
    """Whether the counts above are those of this model: a recogniser whose blocks hold the standard modules, with no
    option of the encoder that makes them keep something else."""
    if isinstance(recognizer, MaskedPredictor):
        return False
    encoder = recognizer.config.encoder
    plain = encoder.positions == "rotary" and encoder.convolution_norm == "layer" and not encoder.stochastic_depth
    plain = plain and not encoder.causal_convolution and encoder.subsampling.factor < 8
    if encoder.experts:
        experts = encoder.experts
        plain = plain and experts.placement == "second" and not experts.residual and not experts.capacity_factor
    known = {"feedforward1", "attention", "convolution", "feedforward2", "dropout"}
    return plain and all({name for name, _ in block.named_children()} == known for block in recognizer.encoder.blocks)
