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

All prefixes of all utterances take a frame together, as tensors (`prefixes.py`).

The state of a search does not grow with the frames, only the settled text does: what all prefixes of an utterance agree
upon is settled, and a prefix that still differs from the best one more than MOST_UNSETTLED / 2 tokens ago is dropped.

Shapes: B batch, S frames, V vocabulary, K prefixes, C candidate tokens, N = K + K C continuations, U tokens that are
not settled; a trailing 2 is (ends in a blank, ends in a token), a trailing 3 (first frame, log posterior, frame after
the last) in trails.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.recognizer import BLANK
from model.search.fusion import Fusion, FusionTable
from model.search.hypothesis import Hypothesis, shares
from model.search.prefixes import (
    NEVER,
    Beams,
    TextToken,
    dead_hashes,
    drop_disagreeing,
    extend_hash,
    initial_beams,
    settle,
    text_tokens,
)

ENDS_IN_BLANK = 0
ENDS_IN_TOKEN = 1
MOST_UNSETTLED = 256


@dataclass
class _FrameScores:
    """What one frame makes of the prefixes.

    log_probs_BV: the frame's log posteriors. blank_BK, token_BK: as in Beams, for prefixes that stay as they are.
    origin_BK: the place of the prefix without its last token, valid where joined_BK says that the beam holds it.
    extended_BKC, bonus_BKC: log probabilities and scores of the fusion of the prefixes with a candidate token more.
    """

    log_probs_BV: Tensor
    blank_BK: Tensor
    token_BK: Tensor
    origin_BK: Tensor
    joined_BK: Tensor
    extended_BKC: Tensor
    bonus_BKC: Tensor


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


class PrefixBeamSearch:
    """Prefix beam search over utterances that arrive in pieces, however they are cut.

    A token's confidence is its highest posterior on the frames that it takes on the best path of its prefix.
    """

    def __init__(
        self,
        num_utterances: int,
        beam: int = 10,
        candidates: int = 20,
        fusion: Fusion | None = None,
    ):
        """`candidates` tokens besides the blank are tried at each frame."""
        self.beam = beam
        self.candidates = candidates
        self.table = None
        if fusion is not None:
            self.table = FusionTable(fusion)
        self._settled: list[list[TextToken]] = [[] for _ in range(num_utterances)]
        self._num_frames_B = torch.zeros(num_utterances, dtype=torch.int64)
        self._beams = initial_beams(num_utterances, beam)

    @property
    def num_unsettled(self) -> int:
        """Tokens per prefix that the state has room for."""
        return self._beams.room

    @torch.no_grad()
    def advance(self, logits_BSV: Tensor, lengths_B: Tensor) -> None:
        """Search the next frames of each utterance: logits and how many of their frames are valid, 0 for none."""
        log_probs_BSV = logits_BSV.float().log_softmax(-1)
        num_tokens = log_probs_BSV.shape[-1] - 1
        num_candidates = min(self.candidates, num_tokens)
        # The blank is no candidate: it is token 0, so that the slice without it shifts the ids by one.
        top_BSC, tokens_BSC = log_probs_BSV[..., BLANK + 1 :].topk(num_candidates, -1)
        tokens_BSC = tokens_BSC.cpu() + BLANK + 1

        # The loop over frames is of many small operations: it runs on the CPU, with sums in fp64.
        log_probs_BSV = log_probs_BSV.cpu()
        top_BSC = top_BSC.cpu().double()
        lengths_B = lengths_B.cpu()

        for frame in range(int(lengths_B.max())):
            self._make_room()
            beams, extended_BK = self._step(
                log_probs_BSV[:, frame].double(),
                tokens_BSC[:, frame],
                top_BSC[:, frame],
            )
            active_B = frame < lengths_B
            # Utterances that are over stay as they were after their last frame.
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
        beams = self._beams
        scores_BK = beams.scores()
        if self.table:
            scores_BK = scores_BK + self.table.end(beams.row_BK)
        order_BK = scores_BK.argsort(dim=-1, descending=True, stable=True)

        results = []
        for row, order in enumerate(order_BK.tolist()):
            places = []
            scores = []
            for place in order:
                score = float(scores_BK[row, place])
                if score > NEVER:  # neither a place without a prefix nor NaN
                    places.append(place)
                    scores.append(score)
            # Shares are among all prefixes of the beam, also those that are not returned.
            probabilities = shares(scores)

            hypotheses = []
            for rank, place in enumerate(places[:n_best]):
                # What is still in the beams has the times of the prefix's best path.
                best_path = int(beams.best_BK2[row, place].argmax())
                unsettled = text_tokens(
                    beams.tokens_BKU[row, place],
                    beams.trail_BK2U3[row, place, best_path],
                    int(beams.length_BK[row, place]),
                )
                text = self._settled[row] + unsettled
                log_probs = [entry.log_prob for entry in text]
                confidences = torch.tensor(log_probs, dtype=torch.float64).exp()
                hypothesis = Hypothesis(
                    tokens=[entry.token for entry in text],
                    frames=[entry.frame for entry in text],
                    score=scores[rank],
                    confidences=confidences.tolist(),
                    probability=probabilities[rank],
                    ends=[entry.end for entry in text],
                )
                hypotheses.append(hypothesis)
            results.append(hypotheses)
        return results

    # --- one frame ----------------------------------------------------------------------------------

    def _step(
        self,
        log_probs_BV: Tensor,
        tokens_BC: Tensor,
        top_BC: Tensor,
    ) -> tuple[Beams, Tensor]:
        """All prefixes after a frame, and which of them are a token longer.

        Rows of the fusion are still those from before the frame.
        """
        frame = self._score_frame(log_probs_BV, tokens_BC, top_BC)

        # One choice among all continuations of an utterance: first the K that stay, then the K C extensions.
        staying_BK = torch.logaddexp(frame.blank_BK, frame.token_BK)
        staying_BK = staying_BK + self._beams.bonus_BK
        extended_BKC = frame.extended_BKC + frame.bonus_BKC
        extended_BN = extended_BKC.flatten(1)
        continuations_BN = torch.cat((staying_BK, extended_BN), dim=1)
        best_BK, chosen_BK = continuations_BN.topk(self.beam, -1)

        stays_BK = chosen_BK < self.beam
        # Where there are fewer texts than places, as after the first frames, some places stay empty.
        dead_BK = best_BK == NEVER
        # Continuation K + k C + c is prefix k with candidate c.
        num_candidates = tokens_BC.shape[1]
        extension_BK = chosen_BK - self.beam
        extension_BK = extension_BK.clamp(min=0)
        prefix_place_BK = extension_BK // num_candidates
        candidate_BK = extension_BK % num_candidates
        selection = _Selection(
            stays_BK=stays_BK,
            source_BK=torch.where(stays_BK, chosen_BK, prefix_place_BK),
            token_BK=tokens_BC.gather(1, candidate_BK),
            extension_BK=extension_BK,
            dead_BK=dead_BK,
        )
        extended_BK = ~stays_BK & ~dead_BK
        return self._select(frame, selection), extended_BK

    def _score_frame(
        self,
        log_probs_BV: Tensor,
        tokens_BC: Tensor,
        top_BC: Tensor,
    ) -> _FrameScores:
        """Log probabilities of prefixes that stay as they are, and of those one token longer."""
        beams = self._beams
        last_BK = beams.last_BK
        total_BK = torch.logaddexp(beams.blank_BK, beams.token_BK)

        # joins[k, j]: prefix j with one token more is prefix k, which is in the beam too.
        parent_BK1 = beams.parent_BK[:, :, None]
        prefix_B1K = beams.prefix_BK[:, None, :]
        joins_BKK = parent_BK1 == prefix_B1K
        joined_BK = joins_BKK.any(-1)
        origin_BK = joins_BKK.int().argmax(-1)

        # A token right after itself is the same token unless there was a blank.
        repeats_BK = last_BK.gather(1, origin_BK) == last_BK
        origin_blank_BK = beams.blank_BK.gather(1, origin_BK)
        origin_total_BK = total_BK.gather(1, origin_BK)
        arriving_BK = torch.where(repeats_BK, origin_blank_BK, origin_total_BK)
        arriving_BK = arriving_BK.masked_fill(~joined_BK, NEVER)

        # Prefixes that stay: a blank follows, or the last token is repeated, or reached anew.
        blank_log_prob_B1 = log_probs_BV[:, BLANK : BLANK + 1]
        blank_BK = total_BK + blank_log_prob_B1
        token_BK = torch.logaddexp(beams.token_BK, arriving_BK)
        token_BK = token_BK + log_probs_BV.gather(1, last_BK)

        # Prefixes that are extended. The last token is new only after a blank.
        tokens_B1C = tokens_BC[:, None]
        is_last_BKC = tokens_B1C == last_BK[..., None]
        before_blank_BK1 = beams.blank_BK[..., None]
        before_BK1 = total_BK[..., None]
        before_BKC = torch.where(is_last_BKC, before_blank_BK1, before_BK1)
        extended_BKC = before_BKC + top_BC[:, None]

        # Extensions that the beam holds already arrive there, above. The product of matrices asks, for prefix j and
        # candidate c, whether any prefix that j extends to ends in c.
        joins_to_BKK = joins_BKK.transpose(1, 2).double()
        num_held_BKC = joins_to_BKK @ is_last_BKC.double()
        extended_BKC = extended_BKC.masked_fill(num_held_BKC > 0, NEVER)

        bonus_BKC = beams.bonus_BK[..., None].expand_as(extended_BKC)
        if self.table:
            token_bonus_BKC = self.table.scores(beams.row_BK, tokens_B1C)
            bonus_BKC = bonus_BKC + token_bonus_BKC
        return _FrameScores(
            log_probs_BV=log_probs_BV,
            blank_BK=blank_BK,
            token_BK=token_BK,
            origin_BK=origin_BK,
            joined_BK=joined_BK,
            extended_BKC=extended_BKC,
            bonus_BKC=bonus_BKC,
        )

    def _select(self, frame: _FrameScores, selection: _Selection) -> Beams:
        """The selected prefixes as new beams."""
        beams = self._beams
        source_BK = selection.source_BK
        stays_BK = selection.stays_BK
        dead_BK = selection.dead_BK

        def pick(staying_BK: Tensor, extended_BK: Tensor) -> Tensor:
            source_values_BK = staying_BK.gather(1, source_BK)
            return torch.where(stays_BK, source_values_BK, extended_BK)

        def extended(values_BKC: Tensor) -> Tensor:
            values_BN = values_BKC.flatten(1)
            return values_BN.gather(1, selection.extension_BK)

        # A prefix that is extended: its last token is the added one, its parent the prefix that it comes from.
        last_BK = pick(beams.last_BK, selection.token_BK)
        source_prefix_BK = beams.prefix_BK.gather(1, source_BK)
        extended_prefix_BK = extend_hash(source_prefix_BK, selection.token_BK)
        prefix_BK = pick(beams.prefix_BK, extended_prefix_BK)
        parent_BK = pick(beams.parent_BK, source_prefix_BK)

        length_BK = beams.length_BK.gather(1, source_BK)
        length_BK = length_BK + ~stays_BK
        source_BKU = source_BK[..., None].expand_as(beams.tokens_BKU)
        tokens_BKU = beams.tokens_BKU.gather(1, source_BKU)
        # Written for prefixes that stay too: their last token is there already.
        last_place_BK = (length_BK - 1).clamp(min=0)
        last_place_BK1 = last_place_BK[..., None]
        last_BK1 = last_BK[..., None]
        tokens_BKU = tokens_BKU.scatter(2, last_place_BK1, last_BK1)

        # A prefix that was just extended has no path that ends in a blank.
        no_blank_BK = torch.full_like(beams.blank_BK, NEVER)
        best_BK2, trail_BK2U3 = self._best_paths(frame, selection, length_BK)
        extended_BK = extended(frame.extended_BKC)
        extended_bonus_BK = extended(frame.bonus_BKC)
        return Beams(
            blank_BK=pick(frame.blank_BK, no_blank_BK),
            token_BK=pick(frame.token_BK, extended_BK),
            bonus_BK=pick(beams.bonus_BK, extended_bonus_BK),
            last_BK=last_BK,
            # Empty places get hashes of their own, so that no prefix joins them.
            prefix_BK=torch.where(dead_BK, dead_hashes(self.beam), prefix_BK),
            parent_BK=torch.where(dead_BK, 0, parent_BK),
            row_BK=beams.row_BK.gather(1, source_BK),
            length_BK=length_BK,
            tokens_BKU=tokens_BKU,
            best_BK2=best_BK2,
            trail_BK2U3=trail_BK2U3,
        )

    def _best_paths(
        self,
        frame: _FrameScores,
        selection: _Selection,
        length_BK: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The best paths of each selected prefix and their trails: the same recursion with maxima in place of sums."""
        beams = self._beams
        source_BK = selection.source_BK
        stays_BK = selection.stays_BK
        rows_B1 = torch.arange(len(source_BK))[:, None]
        best_BK, best_end_BK = beams.best_BK2.max(-1)

        source_last_BK = beams.last_BK.gather(1, source_BK)
        token_BK = torch.where(stays_BK, source_last_BK, selection.token_BK)
        log_prob_BK = frame.log_probs_BV.gather(1, token_BK)

        # Paths that end in the token: a prefix that stays repeats its last token ...
        repeated_BK = beams.best_BK2[rows_B1, source_BK, ENDS_IN_TOKEN]
        repeated_BK = repeated_BK.masked_fill(~stays_BK, NEVER)

        # ... or is reached anew from the prefix before it, as an extended one is.
        origin_BK = frame.origin_BK.gather(1, source_BK)
        before_BK = torch.where(stays_BK, origin_BK, source_BK)
        same_token_BK = beams.last_BK.gather(1, before_BK) == token_BK
        before_blank_BK = beams.best_BK2[rows_B1, before_BK, ENDS_IN_BLANK]
        before_best_BK = best_BK.gather(1, before_BK)
        before_end_BK = best_end_BK.gather(1, before_BK)
        # As in the sums: after the same token only a path that ends in a blank begins another one.
        reached_BK = torch.where(same_token_BK, before_blank_BK, before_best_BK)
        reached_end_BK = torch.where(same_token_BK, ENDS_IN_BLANK, before_end_BK)
        joined_BK = frame.joined_BK.gather(1, source_BK)
        reached_BK = reached_BK.masked_fill(stays_BK & ~joined_BK, NEVER)

        # The better of the two is the best path; a repetition wins a tie, so that the token keeps its first frame.
        starts_BK = reached_BK > repeated_BK
        in_token_BK = torch.where(starts_BK, reached_BK, repeated_BK)
        in_token_BK = in_token_BK + log_prob_BK
        trail_source_BK = torch.where(starts_BK, before_BK, source_BK)
        trail_end_BK = torch.where(starts_BK, reached_end_BK, ENDS_IN_TOKEN)
        # A copy, as indexing with tensors makes one: the last token is written into it.
        in_token_trail = beams.trail_BK2U3[rows_B1, trail_source_BK, trail_end_BK]
        self._write_last_token(in_token_trail, length_BK, starts_BK, log_prob_BK)

        # Paths that end in a blank: only those of prefixes that stay.
        blank_log_prob_B1 = frame.log_probs_BV[:, BLANK : BLANK + 1]
        in_blank_BK = best_BK + blank_log_prob_B1
        in_blank_BK = in_blank_BK.gather(1, source_BK)
        in_blank_BK = in_blank_BK.masked_fill(~stays_BK, NEVER)
        source_end_BK = best_end_BK.gather(1, source_BK)
        in_blank_trail = beams.trail_BK2U3[rows_B1, source_BK, source_end_BK]

        best_BK2 = torch.stack((in_blank_BK, in_token_BK), dim=-1)
        trail_BK2U3 = torch.stack((in_blank_trail, in_token_trail), dim=2)
        return best_BK2, trail_BK2U3

    def _write_last_token(
        self,
        trail_BKU3: Tensor,
        length_BK: Tensor,
        starts_BK: Tensor,
        log_prob_BK: Tensor,
    ) -> None:
        """Write the last token of each prefix into its trail, in place: begun at this frame, or seen again."""
        last_place_BK = (length_BK - 1).clamp(min=0)
        last_place_BK13 = last_place_BK[..., None, None].expand(-1, -1, 1, 3)
        last_BK13 = trail_BKU3.gather(2, last_place_BK13)
        start_BK, highest_BK, _ = last_BK13.squeeze(2).unbind(-1)

        this_frame_B1 = self._num_frames_B[:, None].double()
        start_BK = torch.where(starts_BK, this_frame_B1, start_BK)
        # The confidence is the highest posterior on the token's frames, which may come after its first.
        highest_BK = torch.maximum(log_prob_BK, highest_BK)
        highest_BK = torch.where(starts_BK, log_prob_BK, highest_BK)
        end_BK = (this_frame_B1 + 1).expand_as(start_BK)
        entry_BK3 = torch.stack((start_BK, highest_BK, end_BK), dim=-1)
        trail_BKU3.scatter_(2, last_place_BK13, entry_BK3[:, :, None])

    # --- memory -------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Make sure that every prefix can take one more token."""
        room = self._beams.room
        length_B = self._beams.length_BK.max(-1).values
        if int(length_B.max()) < room:
            return

        # Settling goes over utterances one by one, and is done only when the room is used up.
        for row, length in enumerate(length_B.tolist()):
            if length < room:
                continue
            settled = self._settled[row]
            settled += settle(self._beams, row)
            still_full = int(self._beams.length_BK[row].max()) == room
            if room == MOST_UNSETTLED and still_full:
                drop_disagreeing(self._beams, row, MOST_UNSETTLED // 2)
                settled += settle(self._beams, row)

        if int(self._beams.length_BK.max()) == room:
            self._beams = self._beams.double_room()


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
