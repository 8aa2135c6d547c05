"""Parts of a lane's micro-batch, which together are the whole.

Shapes: B batch, T feature frames, U tokens, S samples.
"""

from dataclasses import replace

import torch

from launcher.training.feature_batch import CleanInputs, FeatureBatch


def split(batch: FeatureBatch, num_parts: int) -> list[FeatureBatch]:
    """Cut a micro-batch of B >= 1 utterances into parts of about as many, each no longer than its own utterances.

    What is augmented and masked stays so: masks are drawn for the whole. Where the utterances are fewer than the parts,
    the last parts hold none of them: their lengths are 0, which adds nothing to a loss.
    """
    num_rows = len(batch.lengths_B)
    parts: list[FeatureBatch] = []
    for rows in torch.arange(num_rows).tensor_split(num_parts):
        if len(rows):
            parts.append(_take(batch, int(rows[0]), int(rows[-1]) + 1))
        else:
            parts.append(_nothing_of(parts[0]))
    return parts


def _take(batch: FeatureBatch, start: int, stop: int) -> FeatureBatch:
    """The utterances from `start` up to `stop`, without the padding that longer ones of the others brought."""
    lengths_B = batch.lengths_B[start:stop]
    token_lengths_B = batch.token_lengths_B[start:stop]
    # At least one frame and one token, which is padding: layers take no empty tensors.
    num_frames = max(1, int(lengths_B.max()))
    num_tokens = max(1, int(token_lengths_B.max()))
    source = None
    if batch.source is not None:
        num_samples = max(1, int(batch.source.samples_B[start:stop].max()))
        source = CleanInputs(
            features_BTF=batch.source.features_BTF[start:stop, :num_frames],
            masked_BT=batch.source.masked_BT[start:stop, :num_frames],
            waveforms_BS=batch.source.waveforms_BS[start:stop, :num_samples],
            samples_B=batch.source.samples_B[start:stop],
        )
    sidecars = {}
    for name, arrays in batch.sidecars.items():
        sidecars[name] = arrays[start:stop]
    return FeatureBatch(
        features_BTF=batch.features_BTF[start:stop, :num_frames],
        lengths_B=lengths_B,
        tokens_BU=batch.tokens_BU[start:stop, :num_tokens],
        token_lengths_B=token_lengths_B,
        source=source,
        sidecars=sidecars,
    )


def _nothing_of(part: FeatureBatch) -> FeatureBatch:
    """One row without a valid frame, as an empty lane is: it enters every collective that a part does."""
    first = _take(part, 0, 1)
    nothing_B = torch.zeros_like(first.lengths_B)
    source = None
    if first.source is not None:
        nothing_BT = torch.zeros_like(first.source.masked_BT)
        source = replace(first.source, samples_B=nothing_B, masked_BT=nothing_BT)
    no_sidecars = {name: [] for name in part.sidecars}
    return replace(
        first,
        lengths_B=nothing_B,
        token_lengths_B=nothing_B,
        source=source,
        sidecars=no_sidecars,
    )
