"""CTC prefix beam search (Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition, 2014).

A path is a token or a blank for every frame; it writes the text that is left when repeats are merged and blanks
removed. The search keeps the `beam` most probable prefixes of texts. A prefix carries the probability of all paths that
write it, split by whether they end in a blank or in its last token:

    p_blank(l)  <- p(l) y(blank)
    p_token(l)  <- (p_token(l) + p*(l')) y(c),   l = l' c
    p*(l')       = p_blank(l') if l' ends in c, else p(l')

with y the posteriors of the frame and p = p_blank + p_token. Beside the sums it carries the one best path of each kind
(the same recursion with maxima), for the times of the tokens. With `beam` and `candidates` wide enough the search is
exact.

All prefixes of all utterances take a frame together, as tensors. Prefixes are told apart by a 64-bit hash of their
tokens, so that "l' is in the beam" is a comparison of hashes instead of texts.

The state of a search does not grow with the frames, only the settled text does: what all prefixes of an utterance agree
upon is settled, and a prefix that still differs from the best one more than MOST_UNSETTLED / 2 tokens ago is dropped.

Shapes: B batch, S frames, V vocabulary, K prefixes, C candidate tokens, N = K + K C continuations, U tokens that are
not settled; a trailing 2 is (ends in a blank, ends in a token), or (frame, log posterior) in trails.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from model.recognizer import BLANK
from model.search.fusion import Fusion, FusionTable
from model.search.hypothesis import Hypothesis, shares

ENDS_IN_BLANK, ENDS_IN_TOKEN = 0, 1
FEW_UNSETTLED, MOST_UNSETTLED = 32, 256
NEVER = -torch.inf


@dataclass
class Beams:
    """The prefixes of every utterance, best first.

    blank_BK, token_BK: log probability of the paths that end in a blank, in the last token. bonus_BK: scores of the
    fusion. last_BK: last token, BLANK for none. prefix_BK, parent_BK: hashes of the prefix, and of it without its last
    token. row_BK: state of the fusion. length_BK, tokens_BKU: the tokens that are not settled. best_BK2: log
    probability of the best path. trail_BK2U2: where that path starts each token, and with what log posterior.
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
    trail_BK2U2: Tensor

    def scores(self) -> Tensor:
        return torch.logaddexp(self.blank_BK, self.token_BK) + self.bonus_BK

    def where(self, active_B: Tensor, other: "Beams") -> "Beams":
        """These beams where an utterance is active, the other ones elsewhere."""
        merged = {}
        for field in fields(self):
            active = getattr(self, field.name)
            inactive = getattr(other, field.name)
            ones = [1] * (active.dim() - 1)
            merged[field.name] = torch.where(active_B.view(-1, *ones), active, inactive)
        return Beams(**merged)


@dataclass
class _FrameScores:
    """What one frame makes of the prefixes.

    log_probs_BV: the frame's log posteriors. blank_BK, token_BK: as in Beams, for prefixes that stay as they are.
    origin_BK: the place of the prefix without its last token, valid where joined_BK says that the beam holds it.
    extended_BKC: log probabilities of the prefixes with a candidate token more.
    """

    log_probs_BV: Tensor
    blank_BK: Tensor
    token_BK: Tensor
    origin_BK: Tensor
    joined_BK: Tensor
    extended_BKC: Tensor


@dataclass
class _Selection:
    """The prefixes that survive a frame: stays_BK as they are, the others a token longer.

    source_BK: the place each comes from. token_BK: the token that was added. extension_BK: which of the [K, C]
    extensions it is. dead_BK: places for which there is no prefix.
    """

    stays_BK: Tensor
    source_BK: Tensor
    token_BK: Tensor
    extension_BK: Tensor
    dead_BK: Tensor


@dataclass(frozen=True)
class _SettledToken:
    """A token that all prefixes agree upon, with its first frame and log posterior on the best path."""

    token: int
    frame: int
    log_prob: float


class PrefixBeamSearch:
    """Prefix beam search over utterances that arrive in pieces, however they are cut.

    A token's confidence is its highest posterior on the frames that it takes on the best path of its prefix.
    """

    def __init__(self, num_utterances: int, beam: int = 10, candidates: int = 20, fusion: Fusion | None = None):
        """`candidates` tokens besides the blank are tried at each frame."""
        self.beam = beam
        self.candidates = candidates
        self.table = FusionTable(fusion) if fusion else None
        self._settled: list[list[_SettledToken]] = [[] for _ in range(num_utterances)]
        self._num_frames_B = torch.zeros(num_utterances, dtype=torch.int64)
        self._beams = _initial_beams(num_utterances, beam)

    @property
    def num_unsettled(self) -> int:
        """Tokens per prefix that the state has room for."""
        return self._beams.tokens_BKU.shape[2]

    @torch.no_grad()
    def advance(self, logits_BSV: Tensor, lengths_B: Tensor) -> None:
        """Search the next frames of each utterance: logits and how many of their frames are valid, 0 for none."""
        log_probs_BSV = logits_BSV.float().log_softmax(-1)
        num_candidates = min(self.candidates, log_probs_BSV.shape[-1] - 1)
        # The blank is no candidate: it is token 0, so that the slice without it shifts the ids by one.
        top_BSC, tokens_BSC = log_probs_BSV[..., BLANK + 1 :].topk(num_candidates, -1)
        tokens_BSC = tokens_BSC.cpu() + BLANK + 1
        # The loop over frames is of many small operations: it runs on the CPU, with sums in fp64.
        log_probs_BSV = log_probs_BSV.cpu()
        top_BSC = top_BSC.cpu().double()
        lengths_B = lengths_B.cpu()

        for frame in range(int(lengths_B.max())):
            active_B = frame < lengths_B
            self._make_room()
            beams, extended_BK = self._step(log_probs_BSV[:, frame].double(), tokens_BSC[:, frame], top_BSC[:, frame])
            if not bool(active_B.all()):
                beams = beams.where(active_B, self._beams)
            if self.table:
                moves_BK = extended_BK & active_B[:, None]
                row_BK = self.table.advance(beams.row_BK, beams.last_BK, moves_BK)
                beams = replace(beams, row_BK=row_BK)
            self._beams = beams
            self._num_frames_B += active_B

    def finish(self, n_best: int = 1) -> list[list[Hypothesis]]:
        """The best texts of each utterance so far, best first; the score is the fused log probability.

        Nothing is changed: the search may go on, as it does for partial results.
        """
        scores_BK = self._beams.scores()
        if self.table:
            scores_BK = scores_BK + self.table.end(self._beams.row_BK)
        order_BK = scores_BK.argsort(dim=-1, descending=True, stable=True)

        results = []
        for row, order in enumerate(order_BK.tolist()):
            alive = [place for place in order if scores_BK[row, place] > NEVER]
            scores = [float(scores_BK[row, place]) for place in alive]
            # Shares are among all prefixes of the beam, also those that are not returned.
            probabilities = shares(scores)
            hypotheses = []
            for place, score, probability in list(zip(alive, scores, probabilities, strict=True))[:n_best]:
                hypotheses.append(self._hypothesis(row, place, score, probability))
            results.append(hypotheses)
        return results

    def _hypothesis(self, row: int, place: int, score: float, probability: float) -> Hypothesis:
        beams = self._beams
        length = int(beams.length_BK[row, place])
        best_path = int(beams.best_BK2[row, place].argmax())
        trail_U2 = beams.trail_BK2U2[row, place, best_path, :length]

        settled = self._settled[row]
        tokens = [entry.token for entry in settled] + beams.tokens_BKU[row, place, :length].tolist()
        frames = [entry.frame for entry in settled] + trail_U2[:, 0].long().tolist()
        log_probs = [entry.log_prob for entry in settled] + trail_U2[:, 1].tolist()
        confidences = torch.tensor(log_probs, dtype=torch.float64).exp().tolist()
        return Hypothesis(tokens, frames, score, confidences, probability)

    # --- one frame ----------------------------------------------------------------------------------

    def _step(self, log_probs_BV: Tensor, tokens_BC: Tensor, top_BC: Tensor) -> tuple[Beams, Tensor]:
        """All prefixes after a frame, and which of them are a token longer.

        Rows of the fusion are still those from before the frame.
        """
        beams = self._beams
        num_candidates = tokens_BC.shape[1]
        frame = self._score_frame(log_probs_BV, tokens_BC, top_BC)
        bonus_BKC = beams.bonus_BK[..., None].expand_as(frame.extended_BKC)
        if self.table:
            bonus_BKC = bonus_BKC + self.table.scores(beams.row_BK, tokens_BC[:, None])

        # One choice among all continuations of an utterance: first the K that stay, then the K C extensions.
        staying_BK = torch.logaddexp(frame.blank_BK, frame.token_BK) + beams.bonus_BK
        extended_BN = (frame.extended_BKC + bonus_BKC).flatten(1)
        best = torch.cat((staying_BK, extended_BN), dim=1).topk(self.beam, -1)
        stays_BK = best.indices < self.beam
        extension_BK = (best.indices - self.beam).clamp(min=0)
        selection = _Selection(
            stays_BK=stays_BK,
            source_BK=torch.where(stays_BK, best.indices, extension_BK // num_candidates),
            token_BK=tokens_BC.gather(1, extension_BK % num_candidates),
            extension_BK=extension_BK,
            dead_BK=best.values == NEVER,
        )
        return self._select(frame, selection, bonus_BKC), ~stays_BK & ~selection.dead_BK

    def _score_frame(self, log_probs_BV: Tensor, tokens_BC: Tensor, top_BC: Tensor) -> _FrameScores:
        """Log probabilities of prefixes that stay as they are, and of those one token longer."""
        beams = self._beams
        total_BK = torch.logaddexp(beams.blank_BK, beams.token_BK)

        # joins[k, j]: prefix j with one token more is prefix k, which is in the beam too.
        joins_BKK = beams.parent_BK[:, :, None] == beams.prefix_BK[:, None, :]
        joined_BK = joins_BKK.any(-1)
        origin_BK = joins_BKK.int().argmax(-1)

        # A token right after itself is the same token unless there was a blank.
        repeats_BK = beams.last_BK.gather(1, origin_BK) == beams.last_BK
        origin_blank_BK = beams.blank_BK.gather(1, origin_BK)
        arriving_BK = torch.where(repeats_BK, origin_blank_BK, total_BK.gather(1, origin_BK))
        arriving_BK = arriving_BK.masked_fill(~joined_BK, NEVER)
        last_log_prob_BK = log_probs_BV.gather(1, beams.last_BK)

        is_last_BKC = tokens_BC[:, None, :] == beams.last_BK[..., None]
        before_BKC = torch.where(is_last_BKC, beams.blank_BK[..., None], total_BK[..., None])
        extended_BKC = before_BKC + top_BC[:, None]
        # Extensions that the beam holds already arrive there, above. The product of matrices asks, for prefix j and
        # candidate c, whether any prefix that j extends to ends in c.
        counted_BKC = joins_BKK.transpose(1, 2).double() @ is_last_BKC.double() > 0

        return _FrameScores(
            log_probs_BV=log_probs_BV,
            blank_BK=total_BK + log_probs_BV[:, BLANK : BLANK + 1],
            token_BK=torch.logaddexp(beams.token_BK, arriving_BK) + last_log_prob_BK,
            origin_BK=origin_BK,
            joined_BK=joined_BK,
            extended_BKC=extended_BKC.masked_fill(counted_BKC, NEVER),
        )

    def _select(self, frame: _FrameScores, selection: _Selection, bonus_BKC: Tensor) -> Beams:
        """The selected prefixes as new beams."""
        beams = self._beams
        source_BK = selection.source_BK
        extension_BK = selection.extension_BK

        def pick(staying_BK: Tensor, extended_BK: Tensor) -> Tensor:
            return torch.where(selection.stays_BK, staying_BK.gather(1, source_BK), extended_BK)

        last_BK = pick(beams.last_BK, selection.token_BK)
        source_prefix_BK = beams.prefix_BK.gather(1, source_BK)
        prefix_BK = pick(beams.prefix_BK, _extend_hash(source_prefix_BK, selection.token_BK))
        parent_BK = pick(beams.parent_BK, source_prefix_BK)

        length_BK = beams.length_BK.gather(1, source_BK) + ~selection.stays_BK
        tokens_BKU = beams.tokens_BKU.gather(1, source_BK[..., None].expand_as(beams.tokens_BKU))
        # Written for prefixes that stay too: their last token is there already.
        last_place_BK = (length_BK - 1).clamp(min=0)
        tokens_BKU = tokens_BKU.scatter(2, last_place_BK[..., None], last_BK[..., None])

        # A prefix that was just extended has no path that ends in a blank.
        no_blank_BK = torch.full_like(beams.blank_BK, NEVER)
        best_BK2, trail_BK2U2 = self._best_paths(frame, selection, length_BK)
        return Beams(
            blank_BK=pick(frame.blank_BK, no_blank_BK),
            token_BK=pick(frame.token_BK, frame.extended_BKC.flatten(1).gather(1, extension_BK)),
            bonus_BK=pick(beams.bonus_BK, bonus_BKC.flatten(1).gather(1, extension_BK)),
            last_BK=last_BK,
            prefix_BK=torch.where(selection.dead_BK, _dead_hashes(self.beam), prefix_BK),
            parent_BK=torch.where(selection.dead_BK, 0, parent_BK),
            row_BK=beams.row_BK.gather(1, source_BK),
            length_BK=length_BK,
            tokens_BKU=tokens_BKU,
            best_BK2=best_BK2,
            trail_BK2U2=trail_BK2U2,
        )

    def _best_paths(self, frame: _FrameScores, selection: _Selection, length_BK: Tensor) -> tuple[Tensor, Tensor]:
        """The best paths of each selected prefix and their trails: the same recursion with maxima in place of sums."""
        beams = self._beams
        source_BK = selection.source_BK
        stays_BK = selection.stays_BK
        rows_B1 = torch.arange(len(source_BK))[:, None]
        best_BK, best_end_BK = beams.best_BK2.max(-1)

        token_BK = torch.where(stays_BK, beams.last_BK.gather(1, source_BK), selection.token_BK)
        log_prob_BK = frame.log_probs_BV.gather(1, token_BK)

        # Paths that end in the token: a prefix that stays repeats its last token ...
        repeated_BK = beams.best_BK2[rows_B1, source_BK, ENDS_IN_TOKEN].masked_fill(~stays_BK, NEVER)
        # ... or is reached anew from the prefix before it, as an extended one is.
        before_BK = torch.where(stays_BK, frame.origin_BK.gather(1, source_BK), source_BK)
        same_token_BK = beams.last_BK.gather(1, before_BK) == token_BK
        before_blank_BK = beams.best_BK2[rows_B1, before_BK, ENDS_IN_BLANK]
        reached_BK = torch.where(same_token_BK, before_blank_BK, best_BK.gather(1, before_BK))
        reached_end_BK = torch.where(same_token_BK, ENDS_IN_BLANK, best_end_BK.gather(1, before_BK))
        not_joined_BK = stays_BK & ~frame.joined_BK.gather(1, source_BK)
        reached_BK = reached_BK.masked_fill(not_joined_BK, NEVER)

        starts_BK = reached_BK > repeated_BK
        in_token_BK = torch.where(starts_BK, reached_BK, repeated_BK) + log_prob_BK
        trail_source_BK = torch.where(starts_BK, before_BK, source_BK)
        trail_end_BK = torch.where(starts_BK, reached_end_BK, ENDS_IN_TOKEN)
        in_token_trail = beams.trail_BK2U2[rows_B1, trail_source_BK, trail_end_BK]
        self._write_last_token(in_token_trail, length_BK, starts_BK, log_prob_BK)

        # Paths that end in a blank: only those of prefixes that stay.
        in_blank_BK = (best_BK + frame.log_probs_BV[:, BLANK : BLANK + 1]).gather(1, source_BK)
        in_blank_BK = in_blank_BK.masked_fill(~stays_BK, NEVER)
        in_blank_trail = beams.trail_BK2U2[rows_B1, source_BK, best_end_BK.gather(1, source_BK)]

        best_BK2 = torch.stack((in_blank_BK, in_token_BK), dim=-1)
        return best_BK2, torch.stack((in_blank_trail, in_token_trail), dim=2)

    def _write_last_token(self, trail_BKU2: Tensor, length_BK: Tensor, starts_BK: Tensor, log_prob_BK: Tensor) -> None:
        """Write the last token of each prefix into its trail, in place: begun at this frame, or seen again."""
        place_BK11 = (length_BK - 1).clamp(min=0)[..., None, None]
        last_BK2 = trail_BKU2.gather(2, place_BK11.expand(-1, -1, 1, 2)).squeeze(2)
        frame_BK = torch.where(starts_BK, self._num_frames_B[:, None].double(), last_BK2[..., 0])
        # The confidence is the highest posterior on the token's frames, which may come after its first.
        highest_BK = torch.where(starts_BK, log_prob_BK, torch.maximum(log_prob_BK, last_BK2[..., 1]))
        entry_BK12 = torch.stack((frame_BK, highest_BK), dim=-1)[:, :, None]
        trail_BKU2.scatter_(2, place_BK11.expand_as(entry_BK12), entry_BK12)

    # --- memory -------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Make sure that every prefix can take one more token."""
        room = self.num_unsettled
        if int(self._beams.length_BK.max()) < room:
            return

        # Settling goes over utterances one by one, and is done only when the room is used up.
        is_full_B = self._beams.length_BK.max(-1).values == room
        for row in is_full_B.nonzero().flatten().tolist():
            self._settle(row)
            still_full = int(self._beams.length_BK[row].max()) == room
            if room == MOST_UNSETTLED and still_full:
                self._drop_disagreeing(row, MOST_UNSETTLED // 2)
                self._settle(row)

        if int(self._beams.length_BK.max()) == room:
            self._beams = replace(
                self._beams,
                tokens_BKU=functional.pad(self._beams.tokens_BKU, (0, room)),
                trail_BK2U2=functional.pad(self._beams.trail_BK2U2, (0, 0, 0, room)),
            )

    def _settle(self, row: int) -> None:
        """Move the tokens and times that all prefixes of an utterance agree upon out of the beams.

        Every prefix keeps its last token, whose confidence may still rise.
        """
        beams = self._beams
        alive_K = beams.scores()[row] > NEVER
        tokens_NU = beams.tokens_BKU[row, alive_K]
        possible_K2 = (beams.best_BK2[row] > NEVER) & alive_K[:, None]
        trail_NU2 = beams.trail_BK2U2[row][possible_K2]
        same_tokens_U = (tokens_NU == tokens_NU[:1]).all(0)
        same_trail_U = (trail_NU2 == trail_NU2[:1]).all(-1).all(0)

        # The number of leading places that agree: a product of zeros and ones is 1 up to the first zero.
        shortest = int(beams.length_BK[row, alive_K].min())
        agreed_U = (same_tokens_U & same_trail_U)[: max(shortest - 1, 0)]
        num_agreed = int(agreed_U.long().cumprod(0).sum())

        tokens = tokens_NU[0, :num_agreed].tolist()
        trail = trail_NU2[0, :num_agreed].tolist()
        for token, (frame, log_prob) in zip(tokens, trail, strict=True):
            self._settled[row].append(_SettledToken(token, int(frame), log_prob))
        beams.length_BK[row] = (beams.length_BK[row] - num_agreed).clamp(min=0)
        beams.tokens_BKU[row] = beams.tokens_BKU[row].roll(-num_agreed, -1)
        beams.trail_BK2U2[row] = beams.trail_BK2U2[row].roll(-num_agreed, -2)

    def _drop_disagreeing(self, row: int, num_tokens: int) -> None:
        """Drop the prefixes that differ from the best one in their first tokens, and take its times for these."""
        beams = self._beams
        differs_K = (beams.tokens_BKU[row, :, :num_tokens] != beams.tokens_BKU[row, 0, :num_tokens]).any(-1)
        differs_K |= beams.length_BK[row] <= num_tokens
        differs_K[0] = False

        beams.blank_BK[row, differs_K] = NEVER
        beams.token_BK[row, differs_K] = NEVER
        beams.best_BK2[row, differs_K] = NEVER
        beams.prefix_BK[row, differs_K] = _dead_hashes(self.beam)[differs_K]
        beams.parent_BK[row, differs_K] = 0
        beams.length_BK[row, differs_K] = 0

        best_path = beams.best_BK2[row, 0].argmax()
        best_trail_U2 = beams.trail_BK2U2[row, 0, best_path, :num_tokens]
        # A clone, as the source lies within what is written.
        beams.trail_BK2U2[row, :, :, :num_tokens] = best_trail_U2.clone()


def _dead_hashes(beam: int) -> Tensor:
    """Hashes [K] for places without a prefix: negative and distinct. Their parents are 0: none joins another."""
    return -1 - torch.arange(beam)


def _extend_hash(prefix_BK: Tensor, token_BK: Tensor) -> Tensor:
    """The hashes of prefixes with a token more.

    A step of Knuth's 64-bit linear congruential generator (MMIX), whose product wraps. Its low bits are weak, so that
    the high ones are folded into them.
    """
    mixed_BK = (prefix_BK + token_BK) * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407
    return mixed_BK ^ (mixed_BK >> 31)


def _initial_beams(batch: int, beam: int) -> Beams:
    """The empty prefix of every utterance, and places for more."""
    never_BK = torch.full((batch, beam), NEVER, dtype=torch.float64)
    # Before the first frame the empty prefix has probability 1, and counts as ending in a blank.
    blank_BK = never_BK.clone()
    blank_BK[:, 0] = 0.0
    zeros_BK = torch.zeros(batch, beam, dtype=torch.int64)
    prefix_BK = _dead_hashes(beam).expand(batch, beam).clone()
    prefix_BK[:, 0] = 1
    return Beams(
        blank_BK=blank_BK,
        token_BK=never_BK,
        bonus_BK=torch.zeros_like(never_BK),
        last_BK=torch.full_like(zeros_BK, BLANK),
        prefix_BK=prefix_BK,
        parent_BK=zeros_BK,
        row_BK=zeros_BK,
        # The lengths are changed in place.
        length_BK=zeros_BK.clone(),
        tokens_BKU=torch.zeros(batch, beam, FEW_UNSETTLED, dtype=torch.int64),
        best_BK2=torch.stack((blank_BK, never_BK), dim=-1),
        trail_BK2U2=torch.zeros(batch, beam, 2, FEW_UNSETTLED, 2, dtype=torch.float64),
    )


def prefix_beam(
    logits_BSV: Tensor,
    lengths_B: Tensor,
    beam: int = 10,
    candidates: int = 20,
    n_best: int = 1,
    fusion: Fusion | None = None,
) -> list[list[Hypothesis]]:
    """The `n_best` most probable texts of each utterance over its valid frames, best first."""
    search = PrefixBeamSearch(len(logits_BSV), beam, candidates, fusion)
    search.advance(logits_BSV, lengths_B)
    return search.finish(n_best)
