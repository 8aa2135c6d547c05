"""A recogniser with what it only needs to learn from teachers: helpers that are trained with it and then left behind.

A helper is a linear layer on the output of one of the encoder's layers: to a teacher's width, or to the scores of a
teacher's units. Parameters of helpers begin with `HELPERS`, so that what keeps a model can tell them from its own.

Shapes: B batch, T feature frames, S encoder frames, F mel bins, D width, U tokens, V vocabulary, N texts.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from model.decoder import shift_right
from model.layers.chunk_mask import ChunkMask
from model.layers.subsampling import valid_mask
from model.recognizer import START, Recognizer, RecognizerConfig, RecognizerOutput

HELPERS = "helpers."


@dataclass
class PseudoLabels:
    """Weighted texts of the utterances of a batch, which may have any number of them.

    row_N the utterance of each, tokens_NU padded with zeros, token_lengths_N, weight_N its share among the utterance's.
    """

    row_N: Tensor
    tokens_NU: Tensor
    token_lengths_N: Tensor
    weight_N: Tensor


@dataclass(frozen=True)
class AuxiliaryHead:
    """A linear layer on the output of an encoder layer, counted from 0, that gives so many numbers per frame."""

    layer: int
    size: int


@dataclass
class StudentOutput(RecognizerOutput):
    """In training also what each helper makes of its layer, [B, S, size] by its name, and the decoder's logits
    [N, U + 1, V] for the texts of each teacher."""

    helped: dict[str, Tensor] = field(default_factory=dict)
    texts: dict[str, Tensor] = field(default_factory=dict)


class Student(Recognizer):
    """A recogniser, the same parameters under the same names, and helpers beside it."""

    def __init__(
        self, config: RecognizerConfig, mel_bins: int, vocabulary_size: int, helpers: dict[str, AuxiliaryHead]
    ):
        super().__init__(config, mel_bins, vocabulary_size)
        self.layer_of = {name: helper.layer for name, helper in helpers.items()}
        width = config.encoder.width
        self.helpers = nn.ModuleDict({name: nn.Linear(width, helper.size) for name, helper in helpers.items()})

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        tokens_BU: Tensor | None = None,
        token_lengths_B: Tensor | None = None,
        chunk: ChunkMask | None = None,
        texts: dict[str, PseudoLabels] | None = None,
    ) -> StudentOutput:
        """As `Recognizer`; the decoder reads the `texts` of each teacher too."""
        output = StudentOutput(**vars(super().forward(features_BTF, lengths_B, tokens_BU, token_lengths_B, chunk)))
        if self.training:
            layers = output.encoder.layers
            output.helped = {name: helper(layers[self.layer_of[name]]) for name, helper in self.helpers.items()}
        if self.decoder is not None and texts:
            frames_BSD = output.encoder.frames_BSD
            valid_BS = valid_mask(output.encoder.lengths_B, frames_BSD.shape[1])
            for name, of in texts.items():
                inputs_NU = shift_right(of.tokens_NU, START)
                output.texts[name] = self.decoder(frames_BSD[of.row_N], valid_BS[of.row_N], inputs_NU)
        return output


def without_auxiliary_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that belong to a finished model."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(HELPERS)}
