"""A Chorus recogniser for transformers: `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.

    features = AutoFeatureExtractor.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    inputs = features(waveform, sampling_rate=features.sampling_rate)
    output = model(**inputs)
    texts = tokenizer.batch_decode(model.greedy_tokens(output), group_tokens=False)

It is for recognition: it has no dropout and no losses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from .configuration_chorus import ChorusConfig
from .network_chorus import Decoder, Encoder, build_parts, greedy_tokens


@dataclass
class ChorusOutput(ModelOutput):
    """logits [B, S, V] of CTC, whose first id is the blank; lengths [B], the valid frames of each; last_hidden_state
    [B, S, D], the encoder's frames. Beyond its length an utterance's frames are zero."""

    logits: Tensor | None = None
    lengths: Tensor | None = None
    last_hidden_state: Tensor | None = None


class ChorusModel(PreTrainedModel):
    """An encoder whose layers may share blocks and choose experts, and its CTC output."""

    config_class = ChorusConfig
    base_model_prefix = "chorus"
    main_input_name = "input_features"
    encoder: Encoder
    ctc: nn.Linear
    decoder: Decoder | None

    def __init__(self, config: ChorusConfig):
        super().__init__(config)
        if config.recognizer is None:
            raise ValueError("this configuration describes no recogniser: load it from a model's folder")
        self.decoder = None
        for name, part in build_parts(config.recognizer, config.mel_bins, config.vocabulary_size).items():
            setattr(self, name, part)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is drawn: the files hold every weight."""

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
        return_dict: bool | None = None,
    ) -> ChorusOutput | tuple:
        """Features [B, T, F] and their mask [B, T] to CTC logits; with `chunk_frames` as while audio arrives."""
        if attention_mask is None:
            batch, num_features, _ = input_features.shape
            lengths_B = torch.full((batch,), num_features, device=input_features.device)
        else:
            lengths_B = attention_mask.sum(1)
        frames_BSD, lengths_B = self.encoder(input_features, lengths_B, chunk_frames, left_chunks)
        output = ChorusOutput(self.ctc(frames_BSD), lengths_B, frames_BSD)
        if return_dict is False:
            return output.to_tuple()
        return output

    def decoder_logits(self, output: ChorusOutput, tokens_BU: Tensor) -> Tensor:
        """Logits [B, U, V] of the attention decoder for the token after each of `tokens_BU`, the first of which is 2.

        Raises ValueError for a model without one.
        """
        if self.decoder is None:
            raise ValueError("this model has no attention decoder")
        return self.decoder(output.last_hidden_state, output.lengths, tokens_BU)

    def greedy_tokens(self, output: ChorusOutput) -> list[list[int]]:
        """The tokens of each utterance on the best path: repeats merged, blanks removed."""
        assert output.logits is not None
        assert output.lengths is not None
        return greedy_tokens(output.logits, output.lengths)
