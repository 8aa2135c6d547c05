"""Joint CTC/attention decoding: CTC's prefix probabilities inside the attention beam (Hori, Watanabe, Hershey, 2017,
equations 10 to 14; Watanabe et al., 2017, algorithm 2).

The recursion over frames is a cumulative sum in the log domain, so that all candidates of all hypotheses are scored
without a loop over frames.

Shapes: B batch, S encoder frames, V vocabulary, J hypotheses per utterance, C candidate tokens, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from model.decoder import Decoder
from model.layers.subsampling import valid_mask
from model.recognizer import BLANK
from model.search.alignment import with_times
from model.search.attention_beam import AttentionOptions, attention_beam
from model.search.fusion import Fusion
from model.search.hypothesis import Hypothesis

NEVER = -torch.inf
# Below every probability that matters, and finite, as sums over frames are subtracted from each other.
LEAST_LOG_PROB = -1e3


class CtcPrefixScores:
    """Probabilities of all paths whose text begins with a hypothesis.

    in_token_BJS, in_blank_BJS log probability of the paths over the first s + 1 frames that write exactly the
    hypothesis and end in its last token, or in a blank; before_BJS of either over the first s frames.
    """

    def __init__(self, logits_BSV: Tensor, lengths_B: Tensor):
        log_probs_BSV = logits_BSV.float().log_softmax(-1).cpu().double().clamp(min=LEAST_LOG_PROB)
        self.lengths_B = lengths_B.cpu()
        self.log_probs_BVS = log_probs_BSV.transpose(1, 2)
        self.valid_BS = valid_mask(self.lengths_B, log_probs_BSV.shape[1])
        # The empty hypothesis: blanks alone.
        self.blank_sum_BS = self.log_probs_BVS[:, BLANK].cumsum(-1)
        self.in_blank_BJS = self.blank_sum_BS[:, None]
        self.in_token_BJS = torch.full_like(self.in_blank_BJS, NEVER)
        self.last_BJ = torch.full(self.in_blank_BJS.shape[:2], BLANK)
        self.empty = True

    def extend(self, tokens_BJC: Tensor) -> tuple[Tensor, Tensor]:
        """See `PrefixScores`."""
        batch, hypotheses = tokens_BJC.shape[:2]
        rows = torch.arange(batch)[:, None, None]
        token_BJCS = self.log_probs_BVS[rows, tokens_BJC]
        repeats_BJC1 = (tokens_BJC == self.last_BJ[..., None])[..., None]
        either_BJS = torch.logaddexp(self.in_token_BJS, self.in_blank_BJS)
        before_BJCS = torch.where(repeats_BJC1, self.in_blank_BJS[:, :, None], either_BJS[:, :, None])
        # Before the first frame the empty hypothesis has probability 1, any other 0.
        before_BJCS = functional.pad(before_BJCS[..., :-1], (1, 0), value=0.0 if self.empty else NEVER)
        begins_BJCS = before_BJCS + token_BJCS
        prefix_BJC = begins_BJCS.masked_fill(~self.valid_BS[:, None, None], NEVER).logsumexp(-1)
        sum_BJCS = token_BJCS.cumsum(-1)
        self._in_token_BJCS = sum_BJCS + (begins_BJCS - sum_BJCS).logcumsumexp(-1)
        blank_sum_B11S = self.blank_sum_BS[:, None, None]
        after_BJCS = functional.pad((self._in_token_BJCS - blank_sum_B11S)[..., :-1], (1, 0), value=NEVER)
        self._in_blank_BJCS = blank_sum_B11S + after_BJCS.logcumsumexp(-1)
        self._tokens_BJC = tokens_BJC
        last_frame_BJ1 = (self.lengths_B - 1).clamp(min=0)[:, None, None].expand(batch, hypotheses, 1)
        whole_BJ = either_BJS.gather(2, last_frame_BJ1).squeeze(2)
        if self.empty:
            whole_BJ = torch.where(self.lengths_B[:, None] == 0, 0.0, whole_BJ)
        return prefix_BJC, whole_BJ

    def select(self, source_BJ: Tensor, candidate_BJ: Tensor) -> None:
        """See `PrefixScores`."""
        rows = torch.arange(len(source_BJ))[:, None]
        self.in_token_BJS = self._in_token_BJCS[rows, source_BJ, candidate_BJ]
        self.in_blank_BJS = self._in_blank_BJCS[rows, source_BJ, candidate_BJ]
        self.last_BJ = self._tokens_BJC[rows, source_BJ, candidate_BJ]
        self.empty = False


def joint(
    decoder: Decoder,
    frames_BSD: Tensor,
    logits_BSV: Tensor,
    lengths_B: Tensor,
    options: AttentionOptions,
    n_best: int = 1,
    fusion: Fusion | None = None,
) -> list[list[Hypothesis]]:
    """The best texts of each utterance by ctc_weight ln p_ctc + (1 - ctc_weight) ln p_decoder, best first."""
    scores = CtcPrefixScores(logits_BSV, lengths_B)
    found = attention_beam(decoder, frames_BSD, lengths_B, options, n_best, fusion, scores)
    return with_times(found, logits_BSV, lengths_B)
