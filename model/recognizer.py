"""The whole recogniser: encoder, CTC output and, where the objective has them, an attention decoder and a transducer.

Shapes: B batch, T feature frames, S encoder frames, F mel bins, D width, U tokens, V vocabulary.
"""

from dataclasses import dataclass

from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from model.decoder import Decoder, DecoderConfig, reverse, shift_right
from model.encoder import Encoder, EncoderConfig, EncoderOutput
from model.layers.chunk_mask import ChunkMask
from model.layers.subsampling import valid_mask
from model.transducer import Transducer, TransducerConfig

# The first ids of every vocabulary.
BLANK, UNKNOWN, START, END = range(4)


class RecognizerConfig(BaseModel, frozen=True, extra="forbid"):
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig | None = Field(default=None, description="attention decoder; none: CTC alone")
    transducer: TransducerConfig | None = Field(default=None, description="transducer beside CTC; none: without it")
    intermediate_ctc: tuple[int, ...] = Field(
        default=(), description="layers, counted from 0, whose output the CTC output reads too while training"
    )

    @model_validator(mode="after")
    def _consistent(self):
        beyond = [layer for layer in self.intermediate_ctc if not 0 <= layer < self.encoder.layers - 1]
        if beyond:
            raise ValueError(
                f"intermediate_ctc names layer {beyond[0]}; layers before the last are 0 to {self.encoder.layers - 2}"
            )
        if self.decoder and self.encoder.width % (2 * self.decoder.heads):
            raise ValueError(
                f"decoder.heads {self.decoder.heads} does not split the encoder's width {self.encoder.width} into "
                "heads of an even width"
            )
        return self


@dataclass
class RecognizerOutput:
    """encoder its output, ctc_BSV logits, decoder_BUV logits of U + 1 next tokens (none without decoder or tokens),
    intermediate one [B, S, V] per layer of `intermediate_ctc`, while training, reverse_BUV logits of the decoder that
    reads backwards, transducer_B the transducer's -log p(tokens | frames) (none without the one or the other, tokens or
    their lengths)."""

    encoder: EncoderOutput
    ctc_BSV: Tensor
    decoder_BUV: Tensor | None
    intermediate: list[Tensor]
    reverse_BUV: Tensor | None = None
    transducer_B: Tensor | None = None


class Recognizer(nn.Module):
    """Log-mel features to token logits."""

    def __init__(self, config: RecognizerConfig, mel_bins: int, vocabulary_size: int):
        super().__init__()
        self.config, self.mel_bins, self.vocabulary_size = config, mel_bins, vocabulary_size
        width = config.encoder.width
        self.encoder = Encoder(config.encoder, mel_bins)
        self.ctc = nn.Linear(width, vocabulary_size)
        self.decoder = Decoder(config.decoder, width, vocabulary_size) if config.decoder else None
        self.reverse_decoder = None
        if config.decoder and config.decoder.right_to_left_layers:
            backwards = config.decoder.model_copy(update={"layers": config.decoder.right_to_left_layers})
            self.reverse_decoder = Decoder(backwards, width, vocabulary_size)
        self.transducer = Transducer(config.transducer, width, vocabulary_size, BLANK) if config.transducer else None

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        tokens_BU: Tensor | None = None,
        token_lengths_B: Tensor | None = None,
        chunk: ChunkMask | None = None,
    ) -> RecognizerOutput:
        """Features [B, T, F], valid lengths [B] and, for the decoder, tokens [B, U] padded with any id; for the decoder
        that reads backwards, and for the transducer, which gives its loss, their lengths [B] too. `chunk` is how far
        the encoder's attention sees, as in `Encoder`."""
        encoder = self.encoder(features_BTF, lengths_B, chunk)
        decoder_BUV = reverse_BUV = None
        if self.decoder is not None and tokens_BU is not None:
            valid_BS = valid_mask(encoder.lengths_B, encoder.frames_BSD.shape[1])
            decoder_BUV = self.decoder(encoder.frames_BSD, valid_BS, shift_right(tokens_BU, START))
            if self.reverse_decoder is not None and token_lengths_B is not None:
                backwards_BU = shift_right(reverse(tokens_BU, token_lengths_B), START)
                reverse_BUV = self.reverse_decoder(encoder.frames_BSD, valid_BS, backwards_BU)
        layers = self.config.intermediate_ctc if self.training else ()
        intermediate = [self.ctc(encoder.layers[layer]) for layer in layers]
        transducer_B = None
        if self.transducer is not None and tokens_BU is not None and token_lengths_B is not None:
            transducer_B = self.transducer(encoder.frames_BSD, encoder.lengths_B, tokens_BU, token_lengths_B)
        ctc_BSV = self.ctc(encoder.frames_BSD)
        return RecognizerOutput(encoder, ctc_BSV, decoder_BUV, intermediate, reverse_BUV, transducer_B)
