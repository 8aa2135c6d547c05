"""What a model computes per second of audio, at one length of utterance, so that models compare.

Attention grows with the square of an utterance, so a rate needs a length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.features import FeaturesConfig
from data.masking import MaskingConfig, masked_share
from model.costs.flops import encoder_operations, forward_operations, masked_operations, training_operations
from model.masked_prediction import MaskedPredictor
from model.recognizer import Recognizer

# Usual in corpora of read speech.
UTTERANCE_S = 10.0
# More than words, and fewer than the characters of fast speech.
TOKENS_PER_S = 5.0


@dataclass(frozen=True)
class Operations:
    """Floating-point operations per second of audio.

    - `encoder`, `forward`, `parts`: of a forward pass of the encoder, of the whole model (decoder and transducer over
      the text included), and of each of its parts.
    - `training`: of a training step with its teachers.
    """

    encoder: float
    forward: float
    parts: dict[str, float]
    training: float


def operations_per_second(
    recognizer: Recognizer, features: FeaturesConfig, teachers: Sequence[Recognizer] = ()
) -> Operations:
    """The operations of one utterance of UTTERANCE_S, divided by its length; the models may be on the meta device."""
    num_frames = _frames_of_utterance(features)
    num_tokens = round(UTTERANCE_S * TOKENS_PER_S)
    encoder = encoder_operations(recognizer, num_frames)
    parts = forward_operations(recognizer, num_frames, num_tokens)
    training = training_operations(recognizer, num_frames, num_tokens, teachers)
    return _per_second(encoder, parts, training)


def masked_operations_per_second(
    model: MaskedPredictor, features: FeaturesConfig, masking: MaskingConfig
) -> Operations:
    """The same of a model that learns without transcripts, whose heads work at masked frames alone."""
    num_frames = _frames_of_utterance(features)
    encoder = encoder_operations(model, num_frames)
    parts, training = masked_operations(model, num_frames, masked_share(masking, features))
    return _per_second(encoder, parts, training)


def _frames_of_utterance(features: FeaturesConfig) -> int:
    return features.num_frames(round(UTTERANCE_S * features.sample_rate_hz))


def _per_second(encoder: float, parts: Mapping[str, float], training: float) -> Operations:
    return Operations(
        encoder=encoder / UTTERANCE_S,
        forward=sum(parts.values()) / UTTERANCE_S,
        parts={part: operations / UTTERANCE_S for part, operations in parts.items()},
        training=training / UTTERANCE_S,
    )
