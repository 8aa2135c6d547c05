"""The prefixes that a CTC prefix beam search holds, and how their memory stays bounded.

Prefixes are told apart by a 64-bit hash of their tokens, so that "l' is in the beam" is a comparison of hashes instead
of texts. Tokens that all prefixes of an utterance agree upon are settled: they leave the tensors.

Shapes: B batch, K prefixes, N of them that are alive, U tokens that are not settled; a trailing 2 is (ends in a blank,
ends in a token), a trailing 3 (first frame, log posterior, frame after the last) in trails.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from model.recognizer import BLANK

NEVER = -torch.inf
# Tokens per prefix that there is room for at first.
FEW_UNSETTLED = 32


@dataclass
class Beams:
    """The prefixes of every utterance, best first.

    blank_BK, token_BK: log probability of the paths that end in a blank, in the last token. bonus_BK: scores of the
    fusion. last_BK: last token, BLANK for none. prefix_BK, parent_BK: hashes of the prefix, and of it without its last
    token. row_BK: state of the fusion. length_BK, tokens_BKU: the tokens that are not settled. best_BK2: log
    probability of the best path. trail_BK2U3: where that path starts and ends each token, and with what log posterior.
    """

    blank_BK: Tensor
    token_BK: Tensor
    bonus_BK: Tensor
    last_BK: Tensor
    prefix_BK: Tensor
    parent_BK: Tensor
    row_BK: Tensor
    length_BK: Tensor
    tokens_BKU: Tensor
    best_BK2: Tensor
    trail_BK2U3: Tensor

    @property
    def room(self) -> int:
        """Tokens per prefix that there is room for."""
        return self.tokens_BKU.shape[2]

    def scores(self) -> Tensor:
        """Log probability and bonus [B, K] of each prefix; -inf at places without one."""
        log_prob_BK = torch.logaddexp(self.blank_BK, self.token_BK)
        return log_prob_BK + self.bonus_BK

    def where(self, active_B: Tensor, other: "Beams") -> "Beams":
        """These beams where an utterance is active, the other ones elsewhere."""
        merged = {}
        for field in fields(self):
            active = getattr(self, field.name)
            inactive = getattr(other, field.name)
            ones = [1] * (active.dim() - 1)
            mask = active_B.view(-1, *ones)
            merged[field.name] = torch.where(mask, active, inactive)
        return Beams(**merged)

    def double_room(self) -> "Beams":
        """These beams with room for twice as many tokens."""
        room = self.room
        return replace(
            self,
            tokens_BKU=functional.pad(self.tokens_BKU, (0, room)),
            trail_BK2U3=functional.pad(self.trail_BK2U3, (0, 0, 0, room)),
        )


@dataclass(frozen=True)
class TextToken:
    """A token of a text, with its first frame, its highest log posterior and the frame after its last one, all on the
    best path."""

    token: int
    frame: int
    log_prob: float
    end: int


def initial_beams(batch: int, beam: int) -> Beams:
    """The empty prefix of every utterance, and places for more."""
    never_BK = torch.full((batch, beam), NEVER, dtype=torch.float64)
    zeros_BK = torch.zeros(batch, beam, dtype=torch.int64)

    # Before the first frame the empty prefix has probability 1, and counts as ending in a blank.
    blank_BK = never_BK.clone()
    blank_BK[:, 0] = 0.0
    prefix_BK = dead_hashes(beam).expand(batch, beam).clone()
    prefix_BK[:, 0] = 1

    trail_BK2U3 = torch.zeros(batch, beam, 2, FEW_UNSETTLED, 3, dtype=torch.float64)
    return Beams(
        blank_BK=blank_BK,
        token_BK=never_BK,
        bonus_BK=torch.zeros_like(never_BK),
        last_BK=torch.full_like(zeros_BK, BLANK),
        prefix_BK=prefix_BK,
        parent_BK=zeros_BK,
        row_BK=zeros_BK,
        # A clone, as the lengths are changed in place.
        length_BK=zeros_BK.clone(),
        tokens_BKU=torch.zeros(batch, beam, FEW_UNSETTLED, dtype=torch.int64),
        best_BK2=torch.stack((blank_BK, never_BK), dim=-1),
        trail_BK2U3=trail_BK2U3,
    )


def dead_hashes(beam: int) -> Tensor:
    """Hashes [K] for places without a prefix: negative and distinct. Their parents are 0: none joins another."""
    return -1 - torch.arange(beam)


def extend_hash(prefix_BK: Tensor, token_BK: Tensor) -> Tensor:
    """The hashes of prefixes with a token more.

    A step of Knuth's 64-bit linear congruential generator (MMIX), whose product wraps. Its low bits are weak, so that
    the high ones are folded into them.
    """
    seed_BK = prefix_BK + token_BK
    mixed_BK = seed_BK * 6_364_136_223_846_793_005
    mixed_BK = mixed_BK + 1_442_695_040_888_963_407
    return mixed_BK ^ (mixed_BK >> 31)


def text_tokens(
    tokens_U: Tensor,
    trail_U3: Tensor,
    number: int,
) -> list[TextToken]:
    """The first `number` tokens of a prefix, with what a trail says of each."""
    tokens = tokens_U[:number].tolist()
    trail = trail_U3[:number].tolist()
    text = []
    for token, (frame, log_prob, end) in zip(tokens, trail, strict=True):
        # Frames are fp64 in trails, which hold them exactly.
        text.append(TextToken(token, int(frame), log_prob, int(end)))
    return text


def settle(beams: Beams, row: int) -> list[TextToken]:
    """Move the tokens and times that all prefixes of an utterance agree upon out of the beams, in place.

    Every prefix keeps its last token, whose confidence may still rise.
    """
    alive_K = beams.scores()[row] > NEVER
    tokens_NU = beams.tokens_BKU[row, alive_K]
    same_tokens_U = (tokens_NU == tokens_NU[:1]).all(0)

    # Both best paths of a prefix have a trail, where there is such a path.
    possible_K2 = beams.best_BK2[row] > NEVER
    possible_K2 = possible_K2 & alive_K[:, None]
    trail_NU3 = beams.trail_BK2U3[row][possible_K2]
    # The ends may differ: those of the first prefix are taken, so that times do not keep a token from being settled.
    entries_NU2 = trail_NU3[..., :2]
    same_entry_NU2 = entries_NU2 == entries_NU2[:1]
    same_trail_U = same_entry_NU2.all(-1).all(0)

    lengths_N = beams.length_BK[row, alive_K]
    most = max(int(lengths_N.min()) - 1, 0)
    agreed_U = same_tokens_U & same_trail_U
    # The number of leading places that agree: a product of zeros and ones is 1 up to the first zero.
    leading_U = agreed_U[:most].long().cumprod(0)
    num_agreed = int(leading_U.sum())
    settled = text_tokens(tokens_NU[0], trail_NU3[0], num_agreed)

    # Places without a prefix have a length of 0.
    length_K = beams.length_BK[row] - num_agreed
    beams.length_BK[row] = length_K.clamp(min=0)
    tokens_KU = beams.tokens_BKU[row]
    trail_K2U3 = beams.trail_BK2U3[row]
    beams.tokens_BKU[row] = tokens_KU.roll(-num_agreed, -1)
    beams.trail_BK2U3[row] = trail_K2U3.roll(-num_agreed, -2)
    return settled


def drop_disagreeing(
    beams: Beams,
    row: int,
    num_tokens: int,
) -> None:
    """Drop the prefixes that differ from the best one in their first tokens, and take its times for these; in place."""
    first_KU = beams.tokens_BKU[row, :, :num_tokens]
    differs_K = (first_KU != first_KU[0]).any(-1)
    differs_K |= beams.length_BK[row] <= num_tokens
    differs_K[0] = False

    beams.blank_BK[row, differs_K] = NEVER
    beams.token_BK[row, differs_K] = NEVER
    beams.best_BK2[row, differs_K] = NEVER
    beam = len(differs_K)
    beams.prefix_BK[row, differs_K] = dead_hashes(beam)[differs_K]
    beams.parent_BK[row, differs_K] = 0
    beams.length_BK[row, differs_K] = 0

    best_path = beams.best_BK2[row, 0].argmax()
    best_trail_U3 = beams.trail_BK2U3[row, 0, best_path, :num_tokens]
    # A clone, as the source lies within what is written.
    beams.trail_BK2U3[row, :, :, :num_tokens] = best_trail_U3.clone()
