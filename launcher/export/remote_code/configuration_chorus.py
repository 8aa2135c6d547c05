"""The configuration of a Chorus recogniser for transformers."""

from typing import Any

from transformers import PretrainedConfig


class ChorusConfig(PretrainedConfig):
    """`recognizer` describes encoder, decoder and transducer; `block_of_layer` says which layers share a block."""

    model_type = "chorus"
    attribute_map = {"vocab_size": "vocabulary_size"}  # noqa: RUF012  as transformers declares it

    def __init__(
        self,
        recognizer: dict[str, Any] | None = None,
        mel_bins: int = 80,
        vocabulary_size: int = 4,
        block_of_layer: list[int] | None = None,
        **kwargs: Any,
    ):
        self.recognizer = recognizer
        self.mel_bins = mel_bins
        self.vocabulary_size = vocabulary_size
        self.block_of_layer = block_of_layer
        super().__init__(**kwargs)
