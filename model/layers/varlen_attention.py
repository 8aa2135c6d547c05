"""Attention within each of several utterances that lie one after the other, without padding between them.

On a CPU this is faster than one fused call per utterance where gradients are wanted: probabilities are kept for the
backward pass, which is then four matrix products, instead of being computed again. They take `bytes H T^2` per
utterance of T frames. Scores and their softmax are fp32 where queries and keys are less.

Shapes: H heads, N frames of all utterances, K head width, T frames of one utterance.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def attend_within(query_HNK: Tensor, key_HNK: Tensor, value_HNK: Tensor, lengths: Sequence[int]) -> Tensor:
    """Values mixed within utterances of these lengths, which add up to N: [H, N, K]."""
    if torch.is_grad_enabled() and query_HNK.requires_grad:
        return _AttendWithin.apply(query_HNK, key_HNK, value_HNK, lengths)
    utterances = zip(*(part.split(lengths, dim=1) for part in (query_HNK, key_HNK, value_HNK)), strict=True)
    return torch.cat([functional.scaled_dot_product_attention(*parts) for parts in utterances], dim=1)


class _AttendWithin(torch.autograd.Function):
    """softmax(Q K^T / sqrt(K)) V, utterance by utterance."""

    @staticmethod
    def forward(context, query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:  # pyright: ignore
        context.lengths, context.scale = lengths, query.shape[-1] ** -0.5
        with torch.autocast(query.device.type, enabled=False):
            precise = torch.promote_types(query.dtype, torch.float32)
            scaled = query.to(precise) * context.scale
            parts = (part.split(lengths, dim=1) for part in (scaled, key.to(precise)))
            shares = [torch.bmm(q, k.transpose(1, 2)).softmax(-1).to(value.dtype) for q, k in zip(*parts, strict=True)]
            mixed = [torch.bmm(p, v) for p, v in zip(shares, value.split(lengths, dim=1), strict=True)]
            output = torch.cat(mixed, dim=1)
        context.save_for_backward(query, key, value, output, *shares)
        return output

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor):  # pyright: ignore
        query, key, value, output, *shares = context.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            # The softmax's gradient is P (dP - delta), where delta, the sum of P dP over keys, is that of O dO too.
            precise = torch.promote_types(gradient.dtype, torch.float32)
            delta = (output.to(precise) * gradient).sum(-1, keepdim=True).to(gradient.dtype)
            parts = (part.split(context.lengths, dim=1) for part in (query, key, value, gradient, delta))
            of_queries, of_keys, of_values = [], [], []
            for share, q, k, v, g, d in zip(shares, *parts, strict=True):
                of_scores = torch.baddbmm(d, g, v.transpose(1, 2), beta=-1).mul_(share)
                of_queries.append(torch.bmm(of_scores, k))
                of_keys.append(torch.bmm(of_scores.transpose(1, 2), q))
                of_values.append(torch.bmm(share.transpose(1, 2), g))
            of_query, of_key = (torch.cat(of, dim=1).mul_(context.scale) for of in (of_queries, of_keys))
        return of_query, of_key, torch.cat(of_values, dim=1), None
