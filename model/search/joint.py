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
    hypothesis and end in its last token, or in a blank; before_BJCS of either over the first s frames.
    """

    def __init__(self, logits_BSV: Tensor, lengths_B: Tensor):
        # fp64: differences of cumulative sums over all frames are taken.
        log_probs_BSV = logits_BSV.float().log_softmax(-1).cpu().double()
        log_probs_BSV = log_probs_BSV.clamp(min=LEAST_LOG_PROB)
        num_frames = log_probs_BSV.shape[1]
        self.lengths_B = lengths_B.cpu()
        self.log_probs_BVS = log_probs_BSV.transpose(1, 2)
        self.valid_BS = valid_mask(self.lengths_B, num_frames)

        # The empty hypothesis: blanks alone.
        self.blank_sum_BS = self.log_probs_BVS[:, BLANK].cumsum(-1)
        self.in_blank_BJS = self.blank_sum_BS[:, None]
        self.in_token_BJS = torch.full_like(self.in_blank_BJS, NEVER)
        batch = len(log_probs_BSV)
        self.last_BJ = torch.full((batch, 1), BLANK)
        self.empty = True

    def extend(self, tokens_BJC: Tensor) -> tuple[Tensor, Tensor]:
        """See `PrefixScores`."""
        batch, hypotheses = tokens_BJC.shape[:2]
        rows_B11 = torch.arange(batch)[:, None, None]
        token_BJCS = self.log_probs_BVS[rows_B11, tokens_BJC]
        exactly_BJS = torch.logaddexp(self.in_token_BJS, self.in_blank_BJS)

        # The paths that a candidate may follow: a token after itself needs a blank in between.
        repeats_BJC = tokens_BJC == self.last_BJ[..., None]
        exactly_BJ1S = exactly_BJS[:, :, None]
        in_blank_BJ1S = self.in_blank_BJS[:, :, None]
        before_BJCS = torch.where(repeats_BJC[..., None], in_blank_BJ1S, exactly_BJ1S)
        # Before the first frame the empty hypothesis has probability 1, any other 0.
        before_first = NEVER
        if self.empty:
            before_first = 0.0
        before_BJCS = _delay(before_BJCS, before_first)

        # The candidate begins at frame s; whatever follows, the text begins with hypothesis and candidate.
        begins_BJCS = before_BJCS + token_BJCS
        valid_B11S = self.valid_BS[:, None, None]
        prefix_BJC = begins_BJCS.masked_fill(~valid_B11S, NEVER).logsumexp(-1)

        # in_token(s) = token(s) x (in_token(s - 1) + before(s)): divided by the products of the token's probabilities
        # so far, it is a cumulative sum.
        sum_BJCS = token_BJCS.cumsum(-1)
        in_token_BJCS = sum_BJCS + (begins_BJCS - sum_BJCS).logcumsumexp(-1)

        # in_blank(s) = blank(s) x (in_blank(s - 1) + in_token(s - 1)): in the same way, of blanks.
        blank_sum_B11S = self.blank_sum_BS[:, None, None]
        after_BJCS = in_token_BJCS - blank_sum_B11S
        after_BJCS = _delay(after_BJCS, NEVER)
        in_blank_BJCS = blank_sum_B11S + after_BJCS.logcumsumexp(-1)

        # A text that ends here is what the hypothesis is after the last valid frame.
        last_frame_B = (self.lengths_B - 1).clamp(min=0)
        last_frame_BJ1 = last_frame_B[:, None, None].expand(batch, hypotheses, 1)
        whole_BJ = exactly_BJS.gather(2, last_frame_BJ1).squeeze(2)
        # Without frames the empty text is the only one, and certain.
        if self.empty:
            has_no_frames_B1 = self.lengths_B[:, None] == 0
            whole_BJ = torch.where(has_no_frames_B1, 0.0, whole_BJ)

        self._tokens_BJC = tokens_BJC
        self._in_token_BJCS = in_token_BJCS
        self._in_blank_BJCS = in_blank_BJCS
        return prefix_BJC, whole_BJ

    def select(self, source_BJ: Tensor, candidate_BJ: Tensor) -> None:
        """See `PrefixScores`."""
        rows_B1 = torch.arange(len(source_BJ))[:, None]
        chosen = (rows_B1, source_BJ, candidate_BJ)
        self.in_token_BJS = self._in_token_BJCS[chosen]
        self.in_blank_BJS = self._in_blank_BJCS[chosen]
        self.last_BJ = self._tokens_BJC[chosen]
        self.empty = False


def _delay(x_BJCS: Tensor, first: float) -> Tensor:
    """Each frame's value at the frame after it; `first` at the first one."""
    return functional.pad(x_BJCS[..., :-1], (1, 0), value=first)


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
    prefix_scores = CtcPrefixScores(logits_BSV, lengths_B)
    hypotheses = attention_beam(
        decoder,
        frames_BSD,
        lengths_B,
        options,
        n_best,
        fusion,
        prefix_scores,
    )
    return with_times(hypotheses, logits_BSV, lengths_B)
