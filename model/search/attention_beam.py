"""Beam search with the attention decoder, and, joined with it, with CTC (joint.py).

All hypotheses of all utterances take a token together; the decoder keeps the keys and values of what they have read. A
hypothesis that may end is kept with its score divided by (tokens + 1) ** length_power. An utterance is done when
`beam` hypotheses have ended and none that goes on is better, as it is now, than the worst of these; or when there are
as many tokens as frames. Without points from a fusion, and with a length_power of 0, that loses nothing.

Shapes: B batch, S encoder frames, D width, V vocabulary, J hypotheses per utterance, C candidate tokens, U tokens.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from model.decoder import Decoder, DecoderState
from model.layers.subsampling import valid_mask
from model.recognizer import BLANK, END, START
from model.search.fusion import Fusion, FusionTable
from model.search.hypothesis import Hypothesis, ranked

NEVER = -torch.inf


class PrefixScores(Protocol):
    """Log probabilities that a text begins with certain tokens, as CTC sees it."""

    def extend(self, tokens_BJC: Tensor) -> tuple[Tensor, Tensor]:
        """Of each hypothesis with each candidate token after it [B, J, C], and of the text ending here [B, J]."""
        ...

    def select(self, source_BJ: Tensor, candidate_BJ: Tensor) -> None:
        """Go on with these hypotheses and candidates of the last `extend`."""
        ...


@dataclass(frozen=True)
class AttentionOptions:
    """beam hypotheses per utterance; candidates tokens tried after each; length_power as above; ctc_weight share of
    CTC, the decoder's is the rest."""

    beam: int = 10
    candidates: int = 20
    length_power: float = 0.6
    ctc_weight: float = 0.0


@dataclass
class _Live:
    """Hypotheses that go on: decoder_BJ sum of the decoder's log probabilities, bonus_BJ points of the fusion, row_BJ
    its states, score_BJ all of it together, tokens_BJU and log_probs_BJU the log probability of each."""

    decoder_BJ: Tensor
    bonus_BJ: Tensor
    score_BJ: Tensor
    row_BJ: Tensor
    tokens_BJU: Tensor
    log_probs_BJU: Tensor


@dataclass
class _Ended:
    """The best hypotheses of an utterance that have ended, best first."""

    hypotheses: list[Hypothesis] = field(default_factory=list)
    done: bool = False


class _AttentionBeam:
    """One search, from the empty hypotheses of a batch to those that have ended."""

    def __init__(
        self,
        decoder: Decoder,
        frames_BSD: Tensor,
        lengths_B: Tensor,
        options: AttentionOptions,
        fusion: Fusion | None,
        prefix_scores: PrefixScores | None,
    ):
        self.decoder = decoder
        self.options = options
        self.prefix_scores = prefix_scores
        self.lengths_B = lengths_B.cpu()
        self.device = frames_BSD.device
        self.table = None
        if fusion is not None:
            self.table = FusionTable(fusion)

        batch, num_frames, _ = frames_BSD.shape
        valid_BS = valid_mask(lengths_B, num_frames)
        self.state: DecoderState = decoder.begin(frames_BSD, valid_BS)
        self.ended = [_Ended() for _ in range(batch)]
        # One empty hypothesis per utterance. fp64, as scores are sums over a whole text.
        zeros_B1 = torch.zeros(batch, 1, dtype=torch.float64)
        self.live = _Live(
            decoder_BJ=zeros_B1,
            bonus_BJ=zeros_B1,
            score_BJ=zeros_B1,
            row_BJ=zeros_B1.long(),
            tokens_BJU=torch.zeros(batch, 1, 0, dtype=torch.int64),
            log_probs_BJU=torch.zeros(batch, 1, 0, dtype=torch.float64),
        )

    def run(self) -> list[list[Hypothesis]]:
        """The hypotheses that have ended, of each utterance."""
        batch = len(self.ended)
        max_tokens = int(self.lengths_B.max())
        last_BJ = torch.full((batch, 1), START)
        for num_tokens in range(max_tokens + 1):
            logits_BJV = self.decoder.step(self.state, last_BJ.to(self.device))
            # On the CPU, where the fusion's tables are and the choice of hypotheses is made.
            log_probs_BJV = logits_BJV.float().log_softmax(-1).cpu().double()
            tokens_BJC, grown_BJC, ends_BJ = self._score(log_probs_BJV)

            # One choice among all candidates of all hypotheses of an utterance.
            grown_BN = grown_BJC.flatten(1)
            num_chosen = min(self.options.beam, grown_BN.shape[1])
            chosen = grown_BN.topk(num_chosen, -1)

            self._end(ends_BJ, chosen.values[:, 0], num_tokens)
            if all(ended.done for ended in self.ended):
                break
            last_BJ = self._grow(log_probs_BJV, tokens_BJC, chosen.values, chosen.indices)
        return [ended.hypotheses for ended in self.ended]

    def _score(self, log_probs_BJV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidate tokens [B, J, C], the scores of hypotheses with them, and [B, J] of ending here."""
        live = self.live
        ctc_weight = self.options.ctc_weight
        decoder_weight = 1 - ctc_weight
        decoder_BJV = live.decoder_BJ[..., None] + log_probs_BJV
        bonus_BJV = live.bonus_BJ[..., None].expand_as(decoder_BJV)
        end_bonus_BJ = live.bonus_BJ
        if self.table:
            bonus_BJV = bonus_BJV + self.table.all_scores(live.row_BJ)
            end_bonus_BJ = end_bonus_BJ + self.table.end(live.row_BJ)
        scores_BJV = decoder_weight * decoder_BJV + bonus_BJV
        ends_BJ = decoder_weight * decoder_BJV[..., END] + end_bonus_BJ

        # None of these is a token of a text.
        not_tokens = [BLANK, START, END]
        scores_BJV[..., not_tokens] = NEVER
        num_tokens = scores_BJV.shape[-1] - len(not_tokens)
        num_candidates = min(self.options.candidates, num_tokens)
        # CTC scores the decoder's best candidates alone: all tokens would cost a recursion over frames each.
        scores_BJC, tokens_BJC = scores_BJV.topk(num_candidates, -1)
        if self.prefix_scores:
            prefixes_BJC, whole_BJ = self.prefix_scores.extend(tokens_BJC)
            scores_BJC = scores_BJC + ctc_weight * prefixes_BJC
            ends_BJ = ends_BJ + ctc_weight * whole_BJ

        dead_BJ = live.score_BJ == NEVER
        scores_BJC = scores_BJC.masked_fill(dead_BJ[..., None], NEVER)
        ends_BJ = ends_BJ.masked_fill(dead_BJ, NEVER)
        return tokens_BJC, scores_BJC, ends_BJ

    def _end(
        self,
        ends_BJ: Tensor,
        best_B: Tensor,
        num_tokens: int,
    ) -> None:
        """Keep what ends here, if it is among the best, and find the utterances that are done.

        `best_B` is the best score of each utterance's hypotheses that go on, with one token more.
        """
        live = self.live
        length_power = self.options.length_power
        # The end counts as a token.
        length_norm = (num_tokens + 1) ** length_power
        normalised_best_B = best_B / (num_tokens + 2) ** length_power

        for row, ended in enumerate(self.ended):
            if ended.done:
                continue
            for place, score in enumerate(ends_BJ[row].tolist()):
                if not score > NEVER:  # NaN too
                    continue
                hypothesis = Hypothesis(
                    tokens=live.tokens_BJU[row, place].tolist(),
                    frames=[],
                    score=score / length_norm,
                    confidences=live.log_probs_BJU[row, place].exp().tolist(),
                )
                ended.hypotheses.append(hypothesis)
            ended.hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
            del ended.hypotheses[self.options.beam :]

            none_is_better = False
            if len(ended.hypotheses) == self.options.beam:
                worst = ended.hypotheses[-1]
                none_is_better = float(normalised_best_B[row]) <= worst.score
            as_long_as_frames = num_tokens >= int(self.lengths_B[row])
            none_goes_on = float(best_B[row]) == NEVER
            if none_is_better or as_long_as_frames or none_goes_on:
                ended.done = True

    def _grow(
        self,
        log_probs_BJV: Tensor,
        tokens_BJC: Tensor,
        score_BJ: Tensor,
        chosen_BJ: Tensor,
    ) -> Tensor:
        """Go on with the chosen ones of [hypotheses, candidates]; returns their last tokens."""
        live = self.live
        batch, _, num_candidates = tokens_BJC.shape
        rows_B1 = torch.arange(batch)[:, None]
        source_BJ = chosen_BJ // num_candidates
        candidate_BJ = chosen_BJ % num_candidates
        token_BJ = tokens_BJC[rows_B1, source_BJ, candidate_BJ]
        log_prob_BJ = log_probs_BJV[rows_B1, source_BJ, token_BJ]
        decoder_BJ = live.decoder_BJ.gather(1, source_BJ)

        row_BJ = live.row_BJ.gather(1, source_BJ)
        bonus_BJ = live.bonus_BJ.gather(1, source_BJ)
        if self.table:
            token_bonus_BJ1 = self.table.scores(row_BJ, token_BJ[..., None])
            bonus_BJ = bonus_BJ + token_bonus_BJ1.squeeze(-1)
            row_BJ = self.table.advance(row_BJ, token_BJ, score_BJ > NEVER)

        tokens_BJU = live.tokens_BJU[rows_B1, source_BJ]
        log_probs_BJU = live.log_probs_BJU[rows_B1, source_BJ]
        self.live = _Live(
            decoder_BJ=decoder_BJ + log_prob_BJ,
            bonus_BJ=bonus_BJ,
            score_BJ=score_BJ,
            row_BJ=row_BJ,
            tokens_BJU=torch.cat((tokens_BJU, token_BJ[..., None]), dim=-1),
            log_probs_BJU=torch.cat((log_probs_BJU, log_prob_BJ[..., None]), dim=-1),
        )
        # The decoder and CTC keep states of their own, in the order of the hypotheses.
        self.state.select(source_BJ.to(self.device))
        if self.prefix_scores:
            self.prefix_scores.select(source_BJ, candidate_BJ)
        return token_BJ


@torch.no_grad()
def attention_beam(
    decoder: Decoder,
    frames_BSD: Tensor,
    lengths_B: Tensor,
    options: AttentionOptions,
    n_best: int = 1,
    fusion: Fusion | None = None,
    prefix_scores: PrefixScores | None = None,
) -> list[list[Hypothesis]]:
    """The best texts of each utterance, best first, without times (see `with_times`).

    A token's confidence is its probability in the decoder; the score is normalised by length.
    """
    search = _AttentionBeam(decoder, frames_BSD, lengths_B, options, fusion, prefix_scores)
    results = []
    for hypotheses in search.run():
        results.append(ranked(hypotheses)[:n_best])
    return results
