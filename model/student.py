"""A recogniser with auxiliary heads, which it needs only to learn from teachers.

An auxiliary head is a linear layer on the output of one of the encoder's layers: to a teacher's width, or to logits of
a teacher's cluster targets. It is trained with the model, and no part of a finished one: `without_auxiliary_heads`
removes its parameters.

Shapes: B batch, T feature frames, S encoder frames, F mel bins, D width, U tokens, V vocabulary, N pseudo-labels.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from model.decoder import shift_right
from model.layers.chunk_mask import ChunkMask
from model.layers.subsampling import valid_mask
from model.recognizer import START, Recognizer, RecognizerConfig, RecognizerOutput

# Begins the names of auxiliary heads' parameters in checkpoints, which fixes the name of the submodule below.
AUXILIARY_PREFIX = "helpers."


@dataclass
class PseudoLabels:
    """Weighted transcripts that a teacher gives the utterances of a batch, any number to each.

    row_N: the utterance of each. tokens_NU: padded with zeros. token_lengths_N. weight_N: its share among the
    pseudo-labels of its utterance.
    """

    row_N: Tensor
    tokens_NU: Tensor
    token_lengths_N: Tensor
    weight_N: Tensor


@dataclass(frozen=True)
class AuxiliaryHead:
    """A linear layer from the output of an encoder layer, counted from 0, to `size` values per frame."""

    layer: int
    size: int


@dataclass
class StudentOutput(RecognizerOutput):
    """A recogniser's output and, in training, what the teachers' terms need.

    auxiliary: by name, each auxiliary head's output [B, S, size]. pseudo_label_logits: by teacher, the decoder's logits
    [N, U + 1, V] for its pseudo-labels.
    """

    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    pseudo_label_logits: dict[str, Tensor] = field(default_factory=dict)


class Student(Recognizer):
    """A recogniser, the same parameters under the same names, with auxiliary heads beside it."""

    def __init__(
        self,
        config: RecognizerConfig,
        mel_bins: int,
        vocabulary_size: int,
        auxiliary_heads: dict[str, AuxiliaryHead],
    ):
        super().__init__(config, mel_bins, vocabulary_size)
        self.layer_of_head: dict[str, int] = {}
        self.helpers = nn.ModuleDict()  # the checkpoints' name: see AUXILIARY_PREFIX
        for name, head in auxiliary_heads.items():
            self.layer_of_head[name] = head.layer
            self.helpers[name] = nn.Linear(config.encoder.width, head.size)

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        tokens_BU: Tensor | None = None,
        token_lengths_B: Tensor | None = None,
        chunk: ChunkMask | None = None,
        pseudo_labels: dict[str, PseudoLabels] | None = None,
    ) -> StudentOutput:
        """As `Recognizer.forward`; the decoder also reads the pseudo-labels of each teacher, by the teacher's name."""
        recognized = super().forward(features_BTF, lengths_B, tokens_BU, token_lengths_B, chunk)
        output = StudentOutput(**vars(recognized))

        # Only the teachers' terms read them, and those count in training alone.
        if self.training:
            for name, head in self.helpers.items():
                layer = self.layer_of_head[name]
                output.auxiliary[name] = head(output.encoder.layers[layer])

        if self.decoder is not None and pseudo_labels:
            frames_BSD = output.encoder.frames_BSD
            valid_BS = valid_mask(output.encoder.lengths_B, frames_BSD.shape[1])
            # Each pseudo-label is a row of its own beside its utterance's frames, which several may share.
            for teacher, labels in pseudo_labels.items():
                inputs_NU = shift_right(labels.tokens_NU, START)
                frames_NSD = frames_BSD[labels.row_N]
                valid_NS = valid_BS[labels.row_N]
                output.pseudo_label_logits[teacher] = self.decoder(frames_NSD, valid_NS, inputs_NU)
        return output


def without_auxiliary_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a finished model, of a student's state dict."""
    # They serve the distillation alone.
    remaining = {}
    for name, tensor in state.items():
        if not name.startswith(AUXILIARY_PREFIX):
            remaining[name] = tensor
    return remaining
