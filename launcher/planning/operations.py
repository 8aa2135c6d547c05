"""What a model computes per second of audio, at one length of utterance, so that models compare.

Attention grows with the square of an utterance, so a rate needs a length. Ten seconds are usual in corpora of read
speech; five tokens a second are more than words and fewer than the characters of fast speech.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data.features import FeaturesConfig
from data.masking import MaskingConfig, masked_share
from model.costs.flops import encoder_operations, forward_operations, masked_operations, training_operations
from model.masked_prediction import MaskedPredictor
from model.recognizer import Recognizer

UTTERANCE_S, TOKENS_PER_S = 10.0, 5.0


@dataclass(frozen=True)
class Operations:
    """Floating-point operations per second of audio: of the forward pass of the encoder, of the whole model (decoder
    and transducer over the text included) and of each of its parts, and of a training step with its teachers."""

    encoder: float
    forward: float
    parts: dict[str, float]
    training: float


def operations_per_second(
    recognizer: Recognizer, features: FeaturesConfig, teachers: Sequence[Recognizer] = ()
) -> Operations:
    """The operations of one utterance of UTTERANCE_S, divided by its length; the models may be on the meta device."""
    num_frames = features.num_frames(round(UTTERANCE_S * features.sample_rate_hz))
    num_tokens = round(UTTERANCE_S * TOKENS_PER_S)
    parts = forward_operations(recognizer, num_frames, num_tokens)
    return Operations(
        encoder=encoder_operations(recognizer, num_frames) / UTTERANCE_S,
        forward=sum(parts.values()) / UTTERANCE_S,
        parts={part: count / UTTERANCE_S for part, count in parts.items()},
        training=training_operations(recognizer, num_frames, num_tokens, teachers) / UTTERANCE_S,
    )


def masked_operations_per_second(
    model: MaskedPredictor, features: FeaturesConfig, masking: MaskingConfig
) -> Operations:
    """The same of a model that learns without transcripts, whose heads work at masked frames alone."""
    num_frames = features.num_frames(round(UTTERANCE_S * features.sample_rate_hz))
    parts, training = masked_operations(model, num_frames, masked_share(masking, features))
    return Operations(
        encoder=encoder_operations(model, num_frames) / UTTERANCE_S,
        forward=sum(parts.values()) / UTTERANCE_S,
        parts={part: count / UTTERANCE_S for part, count in parts.items()},
        training=training / UTTERANCE_S,
    )
