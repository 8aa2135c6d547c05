"""CTC prefix beam search (Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition, 2014).

A prefix carries the probability of all paths that write it, split by whether they end in a blank, and the best one of
these paths for the times of its tokens. All prefixes of all utterances take a frame together. Prefixes are told apart
by a 64-bit hash of their tokens. With `beam` and `candidates` wide enough the search is exact.

The state of a search does not grow with the frames, only the settled text does: what all prefixes of an utterance agree
upon is settled, and a prefix that still differs from the best one more than MOST_UNSETTLED / 2 tokens ago is given up.

Shapes: B batch, S frames, V vocabulary, K prefixes, C candidate tokens, U tokens that are not settled; a trailing 2 is
(ends in a blank, ends in a token), or (frame, log posterior) in trails.
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

    blank_BK, token_BK log probability of the paths that end in a blank, in the last token; bonus_BK points of the
    fusion; last_BK last token, BLANK for none; prefix_BK, parent_BK hashes of the prefix, and of it without its last
    token; row_BK state of the fusion; length_BK, tokens_BKU what is not settled; best_BK2 log probability of the best
    path; trail_BK2U2 where that path starts each token, and with what log posterior.
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
        """These where active, the other's elsewhere."""
        chosen = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            chosen[field.name] = torch.where(active_B.view(-1, *[1] * (mine.dim() - 1)), mine, theirs)
        return Beams(**chosen)


@dataclass
class _Frame:
    """What one frame makes of the prefixes: scores_BV its log posteriors; blank_BK, token_BK as in Beams when prefixes
    stay; grown_BKC log probabilities of extensions; origin_BK the prefix that is this one without its last token,
    where joined_BK says that the beam holds it."""

    scores_BV: Tensor
    blank_BK: Tensor
    token_BK: Tensor
    origin_BK: Tensor
    joined_BK: Tensor
    grown_BKC: Tensor


@dataclass
class _Chosen:
    """Which prefixes a frame leaves: stays_BK as they are, else a token longer by token_BK (extension_BK counts
    [K, C]), from source_BK; dead_BK fill the places of prefixes that there are not."""

    stays_BK: Tensor
    source_BK: Tensor
    token_BK: Tensor
    extension_BK: Tensor
    dead_BK: Tensor


class PrefixBeamSearch:
    """Prefix beam search over utterances that arrive in pieces, however they are cut.

    A token's confidence is its highest posterior on the frames that it takes on the best path of its prefix.
    """

    def __init__(self, num_utterances: int, beam: int = 10, candidates: int = 20, fusion: Fusion | None = None):
        """`candidates` tokens besides the blank are tried at each frame."""
        self.beam, self.candidates = beam, candidates
        self.table = FusionTable(fusion) if fusion else None
        self._settled: list[list[tuple[int, int, float]]] = [[] for _ in range(num_utterances)]
        self._num_frames_B = torch.zeros(num_utterances, dtype=torch.int64)
        self._beams = _start(num_utterances, beam)

    @property
    def num_unsettled(self) -> int:
        """Tokens per prefix that the state has room for."""
        return self._beams.tokens_BKU.shape[2]

    @torch.no_grad()
    def advance(self, logits_BSV: Tensor, lengths_B: Tensor) -> None:
        """Search the next frames of each utterance: logits and how many of their frames are valid, 0 for none."""
        log_probs_BSV = logits_BSV.float().log_softmax(-1)
        num_candidates = min(self.candidates, log_probs_BSV.shape[-1] - 1)
        points_BSC, tokens_BSC = log_probs_BSV[..., BLANK + 1 :].topk(num_candidates, -1)
        log_probs_BSV, points_BSC = log_probs_BSV.cpu(), points_BSC.cpu().double()
        tokens_BSC, lengths_B = tokens_BSC.cpu() + BLANK + 1, lengths_B.cpu()
        for frame in range(int(lengths_B.max())):
            active_B = frame < lengths_B
            self._make_room()
            after, moves_BK = self._step(log_probs_BSV[:, frame].double(), tokens_BSC[:, frame], points_BSC[:, frame])
            self._beams = after if bool(active_B.all()) else after.where(active_B, self._beams)
            if self.table:
                moves_BK = moves_BK & active_B[:, None]
                row_BK = self.table.advance(self._beams.row_BK, self._beams.last_BK, moves_BK)
                self._beams = replace(self._beams, row_BK=row_BK)
            self._num_frames_B += active_B

    def finish(self, n_best: int = 1) -> list[list[Hypothesis]]:
        """The best texts of each utterance so far, best first; the score is the fused log probability.

        Nothing is changed: the search may go on, as it does for partial results.
        """
        beams, scores_BK = self._beams, self._beams.scores()
        if self.table:
            scores_BK = scores_BK + self.table.end(beams.row_BK)
        order_BK = scores_BK.argsort(dim=-1, descending=True, stable=True)
        results = []
        for row, order in enumerate(order_BK.tolist()):
            alive = [k for k in order if scores_BK[row, k] > NEVER]
            scores = [float(scores_BK[row, k]) for k in alive]
            ranked = list(zip(alive, scores, shares(scores), strict=True))[:n_best]
            results.append([self._hypothesis(row, *entry) for entry in ranked])
        return results

    def _hypothesis(self, row: int, k: int, score: float, probability: float) -> Hypothesis:
        beams, length = self._beams, int(self._beams.length_BK[row, k])
        tokens = [token for token, _, _ in self._settled[row]] + beams.tokens_BKU[row, k, :length].tolist()
        trail_U2 = beams.trail_BK2U2[row, k, int(beams.best_BK2[row, k].argmax()), :length]
        frames = [frame for _, frame, _ in self._settled[row]] + trail_U2[:, 0].long().tolist()
        points = [point for _, _, point in self._settled[row]] + trail_U2[:, 1].tolist()
        confidences = torch.tensor(points, dtype=torch.float64).exp().tolist()
        return Hypothesis(tokens, frames, score, confidences, probability)

    # --- one frame ----------------------------------------------------------------------------------

    def _step(self, scores_BV: Tensor, tokens_BC: Tensor, points_BC: Tensor) -> tuple[Beams, Tensor]:
        """All prefixes after a frame, and which of them are a token longer; rows are still those from before."""
        frame = self._stay(scores_BV, tokens_BC, points_BC)
        gain_BKC = self._beams.bonus_BK[..., None].expand_as(frame.grown_BKC)
        if self.table:
            gain_BKC = gain_BKC + self.table.scores(self._beams.row_BK, tokens_BC[:, None])
        staying_BK = torch.logaddexp(frame.blank_BK, frame.token_BK) + self._beams.bonus_BK
        scores_BN = torch.cat((staying_BK, (frame.grown_BKC + gain_BKC).flatten(1)), dim=1)
        best = scores_BN.topk(self.beam, -1)
        stays_BK, extension_BK = best.indices < self.beam, (best.indices - self.beam).clamp(min=0)
        chosen = _Chosen(
            stays_BK,
            torch.where(stays_BK, best.indices, extension_BK // tokens_BC.shape[1]),
            tokens_BC.gather(1, extension_BK % tokens_BC.shape[1]),
            extension_BK,
            best.values == NEVER,
        )
        return self._rebuild(frame, chosen, gain_BKC), ~stays_BK & ~chosen.dead_BK

    def _stay(self, scores_BV: Tensor, tokens_BC: Tensor, points_BC: Tensor) -> _Frame:
        """Probabilities of prefixes that stay as they are, and of those one token longer."""
        beams = self._beams
        whole_BK = torch.logaddexp(beams.blank_BK, beams.token_BK)
        joins_BKK = beams.parent_BK[:, :, None] == beams.prefix_BK[:, None, :]
        joined_BK, origin_BK = joins_BKK.any(-1), joins_BKK.int().argmax(-1)
        # A token right after itself is the same token unless there was a blank.
        repeats_BK = beams.last_BK.gather(1, origin_BK) == beams.last_BK
        arriving_BK = torch.where(repeats_BK, beams.blank_BK.gather(1, origin_BK), whole_BK.gather(1, origin_BK))
        arriving_BK = arriving_BK.masked_fill(~joined_BK, NEVER)
        last_BK = scores_BV.gather(1, beams.last_BK)
        is_last_BKC = tokens_BC[:, None, :] == beams.last_BK[..., None]
        grown_BKC = torch.where(is_last_BKC, beams.blank_BK[..., None], whole_BK[..., None]) + points_BC[:, None]
        # Extensions that are prefixes of the beam already have been counted there.
        counted_BKC = joins_BKK.transpose(1, 2).double() @ is_last_BKC.double() > 0
        return _Frame(
            scores_BV,
            whole_BK + scores_BV[:, BLANK : BLANK + 1],
            torch.logaddexp(beams.token_BK, arriving_BK) + last_BK,
            origin_BK,
            joined_BK,
            grown_BKC.masked_fill(counted_BKC, NEVER),
        )

    def _rebuild(self, frame: _Frame, chosen: _Chosen, gain_BKC: Tensor) -> Beams:
        """The chosen prefixes as new beams."""
        beams, source_BK, stays_BK = self._beams, chosen.source_BK, chosen.stays_BK

        def pick(staying_BK: Tensor, grown_BK: Tensor) -> Tensor:
            return torch.where(stays_BK, staying_BK.gather(1, source_BK), grown_BK)

        last_BK = pick(beams.last_BK, chosen.token_BK)
        source_prefix_BK = beams.prefix_BK.gather(1, source_BK)
        prefix_BK = pick(beams.prefix_BK, _extend(source_prefix_BK, chosen.token_BK))
        length_BK = beams.length_BK.gather(1, source_BK) + ~stays_BK
        tokens_BKU = beams.tokens_BKU.gather(1, source_BK[..., None].expand_as(beams.tokens_BKU))
        best_BK2, trail_BK2U2 = self._best_paths(frame, chosen, length_BK)
        return Beams(
            blank_BK=pick(frame.blank_BK, torch.full_like(beams.blank_BK, NEVER)),
            token_BK=pick(frame.token_BK, frame.grown_BKC.flatten(1).gather(1, chosen.extension_BK)),
            bonus_BK=pick(beams.bonus_BK, gain_BKC.flatten(1).gather(1, chosen.extension_BK)),
            last_BK=last_BK,
            prefix_BK=torch.where(chosen.dead_BK, _nobody(self.beam), prefix_BK),
            parent_BK=torch.where(chosen.dead_BK, 0, pick(beams.parent_BK, source_prefix_BK)),
            row_BK=beams.row_BK.gather(1, source_BK),
            length_BK=length_BK,
            tokens_BKU=tokens_BKU.scatter(2, (length_BK - 1).clamp(min=0)[..., None], last_BK[..., None]),
            best_BK2=best_BK2,
            trail_BK2U2=trail_BK2U2,
        )

    def _best_paths(self, frame: _Frame, chosen: _Chosen, length_BK: Tensor) -> tuple[Tensor, Tensor]:
        """The best path of each chosen prefix and its trail: the same recursion with maxima in place of sums."""
        beams, source_BK, stays_BK = self._beams, chosen.source_BK, chosen.stays_BK
        rows_B1 = torch.arange(len(source_BK))[:, None]
        whole_BK, which_BK = beams.best_BK2.max(-1)

        def leaving(prefix_BK: Tensor, token_BK: Tensor) -> tuple[Tensor, Tensor]:
            """The best path of a prefix that the token can follow, and which of its two that is."""
            repeats_BK = beams.last_BK.gather(1, prefix_BK) == token_BK
            in_blank_BK = beams.best_BK2[rows_B1, prefix_BK, ENDS_IN_BLANK]
            best_BK = torch.where(repeats_BK, in_blank_BK, whole_BK.gather(1, prefix_BK))
            return best_BK, torch.where(repeats_BK, ENDS_IN_BLANK, which_BK.gather(1, prefix_BK))

        origin_BK = frame.origin_BK.gather(1, source_BK)
        token_BK = torch.where(stays_BK, beams.last_BK.gather(1, source_BK), chosen.token_BK)
        points_BK = frame.scores_BV.gather(1, token_BK)
        # A prefix that stays repeats its last token or is reached anew from the prefix before it.
        repeated_BK = beams.best_BK2[rows_B1, source_BK, ENDS_IN_TOKEN].masked_fill(~stays_BK, NEVER)
        before_BK = torch.where(stays_BK, origin_BK, source_BK)
        reached_BK, reached_which_BK = leaving(before_BK, token_BK)
        reached_BK = reached_BK.masked_fill(stays_BK & ~frame.joined_BK.gather(1, source_BK), NEVER)
        starts_BK = reached_BK > repeated_BK
        in_token_BK = torch.where(starts_BK, reached_BK, repeated_BK) + points_BK
        in_token_trail = beams.trail_BK2U2[
            rows_B1,
            torch.where(starts_BK, before_BK, source_BK),
            torch.where(starts_BK, reached_which_BK, ENDS_IN_TOKEN),
        ]
        self._mark(in_token_trail, length_BK, starts_BK, points_BK)
        in_blank_BK = (whole_BK + frame.scores_BV[:, BLANK : BLANK + 1]).gather(1, source_BK)
        in_blank_BK = in_blank_BK.masked_fill(~stays_BK, NEVER)
        in_blank_trail = beams.trail_BK2U2[rows_B1, source_BK, which_BK.gather(1, source_BK)]
        best_BK2 = torch.stack((in_blank_BK, in_token_BK), dim=-1)
        return best_BK2, torch.stack((in_blank_trail, in_token_trail), dim=2)

    def _mark(self, trail_BKU2: Tensor, length_BK: Tensor, starts_BK: Tensor, points_BK: Tensor) -> None:
        """Write the last token of each prefix into its trail: begun at this frame, or seen again, maybe clearer."""
        place_BK11 = (length_BK - 1).clamp(min=0)[..., None, None]
        seen_BK2 = trail_BKU2.gather(2, place_BK11.expand(-1, -1, 1, 2)).squeeze(2)
        frame_BK = torch.where(starts_BK, self._num_frames_B[:, None].double(), seen_BK2[..., 0])
        point_BK = torch.where(starts_BK, points_BK, torch.maximum(points_BK, seen_BK2[..., 1]))
        mark_BK12 = torch.stack((frame_BK, point_BK), dim=-1)[:, :, None]
        trail_BKU2.scatter_(2, place_BK11.expand_as(mark_BK12), mark_BK12)

    # --- memory -------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Make sure that every prefix can take one more token."""
        room = self.num_unsettled
        if int(self._beams.length_BK.max()) < room:
            return
        full = (self._beams.length_BK.max(-1).values == room).nonzero().flatten().tolist()
        for row in full:
            self._settle(row)
            if room == MOST_UNSETTLED and int(self._beams.length_BK[row].max()) == room:
                self._follow_the_best(row, MOST_UNSETTLED // 2)
                self._settle(row)
        if int(self._beams.length_BK.max()) == room:
            self._beams = replace(
                self._beams,
                tokens_BKU=functional.pad(self._beams.tokens_BKU, (0, room)),
                trail_BK2U2=functional.pad(self._beams.trail_BK2U2, (0, 0, 0, room)),
            )

    def _settle(self, row: int) -> None:
        """Move the tokens and times that no prefix of an utterance doubts any more out of the beams.

        Every prefix keeps its last token, whose confidence may still rise.
        """
        beams = self._beams
        alive_K = beams.scores()[row] > NEVER
        tokens_NU = beams.tokens_BKU[row, alive_K]
        trail_NU2 = beams.trail_BK2U2[row][(beams.best_BK2[row] > NEVER) & alive_K[:, None]]
        agreed_U = (tokens_NU == tokens_NU[:1]).all(0) & (trail_NU2 == trail_NU2[:1]).all(-1).all(0)
        shortest = int(beams.length_BK[row, alive_K].min())
        agreed = int(agreed_U[: max(shortest - 1, 0)].long().cumprod(0).sum())
        for token, (frame, point) in zip(tokens_NU[0, :agreed].tolist(), trail_NU2[0, :agreed].tolist(), strict=True):
            self._settled[row].append((token, int(frame), point))
        beams.length_BK[row] = (beams.length_BK[row] - agreed).clamp(min=0)
        beams.tokens_BKU[row] = beams.tokens_BKU[row].roll(-agreed, -1)
        beams.trail_BK2U2[row] = beams.trail_BK2U2[row].roll(-agreed, -2)

    def _follow_the_best(self, row: int, num_tokens: int) -> None:
        """Give up the prefixes that differ from the best one in their first tokens, and take its times for these."""
        beams = self._beams
        differs_K = (beams.tokens_BKU[row, :, :num_tokens] != beams.tokens_BKU[row, 0, :num_tokens]).any(-1)
        differs_K |= beams.length_BK[row] <= num_tokens
        differs_K[0] = False
        for scores_BK in (beams.blank_BK, beams.token_BK):
            scores_BK[row, differs_K] = NEVER
        beams.best_BK2[row, differs_K] = NEVER
        beams.prefix_BK[row, differs_K] = _nobody(self.beam)[differs_K]
        beams.parent_BK[row, differs_K] = 0
        beams.length_BK[row, differs_K] = 0
        best = beams.trail_BK2U2[row, 0, beams.best_BK2[row, 0].argmax(), :num_tokens]
        beams.trail_BK2U2[row, :, :, :num_tokens] = best.clone()


def _nobody(beam: int) -> Tensor:
    """Hashes [K] of what stands for no prefix and must not be taken for one."""
    return -1 - torch.arange(beam)


def _extend(prefix_BK: Tensor, token_BK: Tensor) -> Tensor:
    """The hashes of prefixes with a token more, by a multiplication that wraps and a fold of the high bits."""
    mixed_BK = (prefix_BK + token_BK) * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407
    return mixed_BK ^ (mixed_BK >> 31)


def _start(batch: int, beam: int) -> Beams:
    """The empty prefix of every utterance, and places for more."""
    never_BK = torch.full((batch, beam), NEVER, dtype=torch.float64)
    empty_BK = never_BK.clone()
    empty_BK[:, 0] = 0.0
    zeros_BK = torch.zeros(batch, beam, dtype=torch.int64)
    prefix_BK = _nobody(beam).expand(batch, beam).clone()
    prefix_BK[:, 0] = 1
    return Beams(
        blank_BK=empty_BK,
        token_BK=never_BK,
        bonus_BK=torch.zeros_like(never_BK),
        last_BK=torch.full_like(zeros_BK, BLANK),
        prefix_BK=prefix_BK,
        parent_BK=zeros_BK,
        row_BK=zeros_BK,
        length_BK=zeros_BK.clone(),
        tokens_BKU=torch.zeros(batch, beam, FEW_UNSETTLED, dtype=torch.int64),
        best_BK2=torch.stack((empty_BK, never_BK), dim=-1),
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
