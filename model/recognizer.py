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
        last = self.encoder.layers - 1
        for layer in self.intermediate_ctc:
            if not 0 <= layer < last:
                raise ValueError(f"intermediate_ctc names layer {layer}; layers before the last are 0 to {last - 1}")
        if self.decoder and self.encoder.width % (2 * self.decoder.heads):
            raise ValueError(
                f"decoder.heads {self.decoder.heads} does not split the encoder's width {self.encoder.width} into "
                "heads of an even width"
            )
        return self


@dataclass
class RecognizerOutput:
    """A recogniser's output on a batch; what a model or its input lacks is None.

    encoder: the encoder's output. ctc_BSV: logits. decoder_BUV: logits of U + 1 next tokens. intermediate: in training,
    CTC logits [B, S, V] per layer of `intermediate_ctc`. reverse_BUV: logits of the decoder that reads backwards.
    transducer_B: the transducer's -log p(tokens | frames).
    """

    encoder: EncoderOutput
    ctc_BSV: Tensor
    decoder_BUV: Tensor | None
    intermediate: list[Tensor]
    reverse_BUV: Tensor | None = None
    transducer_B: Tensor | None = None


class Recognizer(nn.Module):
    """Log-mel features to token logits."""

    def __init__(
        self,
        config: RecognizerConfig,
        mel_bins: int,
        vocabulary_size: int,
    ):
        super().__init__()
        self.config = config
        self.mel_bins = mel_bins
        self.vocabulary_size = vocabulary_size
        width = config.encoder.width
        # Weights are drawn in this order: another one would start every seeded run differently.
        self.encoder = Encoder(config.encoder, mel_bins)
        self.ctc = nn.Linear(width, vocabulary_size)

        self.decoder = None
        self.reverse_decoder = None
        if config.decoder is not None:
            self.decoder = Decoder(config.decoder, width, vocabulary_size)
            num_backwards = config.decoder.right_to_left_layers
            if num_backwards:
                # The same decoder but for its depth; only the order of its tokens differs.
                backwards = config.decoder.model_copy(update={"layers": num_backwards})
                self.reverse_decoder = Decoder(backwards, width, vocabulary_size)

        self.transducer = None
        if config.transducer is not None:
            self.transducer = Transducer(config.transducer, width, vocabulary_size, BLANK)

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        tokens_BU: Tensor | None = None,
        token_lengths_B: Tensor | None = None,
        chunk: ChunkMask | None = None,
    ) -> RecognizerOutput:
        """Features [B, T, F] and their valid lengths [B] to logits.

        The decoder needs tokens [B, U], padded with any id; the decoder that reads backwards and the transducer, which
        gives its loss, need their lengths [B] too. `chunk` limits the encoder's attention, as in `Encoder`.
        """
        encoder = self.encoder(features_BTF, lengths_B, chunk)
        frames_BSD = encoder.frames_BSD

        decoder_BUV = None
        reverse_BUV = None
        if self.decoder is not None and tokens_BU is not None:
            valid_BS = valid_mask(encoder.lengths_B, frames_BSD.shape[1])
            decoder_BUV = self.decoder(frames_BSD, valid_BS, shift_right(tokens_BU, START))
            if self.reverse_decoder is not None and token_lengths_B is not None:
                backwards_BU = reverse(tokens_BU, token_lengths_B)
                reverse_BUV = self.reverse_decoder(frames_BSD, valid_BS, shift_right(backwards_BU, START))

        # These outputs serve a loss alone: a finished model does not compute them.
        intermediate = []
        if self.training:
            for layer in self.config.intermediate_ctc:
                intermediate.append(self.ctc(encoder.layers[layer]))

        transducer_B = None
        if self.transducer is not None and tokens_BU is not None and token_lengths_B is not None:
            transducer_B = self.transducer(frames_BSD, encoder.lengths_B, tokens_BU, token_lengths_B)

        ctc_BSV = self.ctc(frames_BSD)
        return RecognizerOutput(encoder, ctc_BSV, decoder_BUV, intermediate, reverse_BUV, transducer_B)
