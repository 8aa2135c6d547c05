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


def attend_within(
    query_HNK: Tensor,
    key_HNK: Tensor,
    value_HNK: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """Attention of each frame over its own utterance [H, N, K]; `lengths` add up to N."""
    if torch.is_grad_enabled() and query_HNK.requires_grad:
        return _AttendWithin.apply(query_HNK, key_HNK, value_HNK, lengths)

    queries = query_HNK.split(lengths, dim=1)
    keys = key_HNK.split(lengths, dim=1)
    values = value_HNK.split(lengths, dim=1)
    outputs = []
    for utterance in zip(queries, keys, values, strict=True):
        mixed_HTK = functional.scaled_dot_product_attention(*utterance)
        outputs.append(mixed_HTK)
    return torch.cat(outputs, dim=1)


class _AttendWithin(torch.autograd.Function):
    """softmax(Q K^T / sqrt(K)) V, utterance by utterance."""

    @staticmethod
    def forward(
        context,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: Sequence[int],
    ) -> Tensor:  # pyright: ignore
        context.lengths = lengths
        context.scale = query.shape[-1] ** -0.5

        # Autocast would round the scores to bf16 before their softmax.
        with torch.autocast(query.device.type, enabled=False):
            precise = torch.promote_types(query.dtype, torch.float32)
            # Queries are scaled, and not the scores, of which there are more.
            scaled_query = query.to(precise) * context.scale
            precise_key = key.to(precise)
            scaled_queries = scaled_query.split(lengths, dim=1)
            keys = precise_key.split(lengths, dim=1)
            values = value.split(lengths, dim=1)

            probabilities = []
            outputs = []
            for q_HTK, k_HTK, v_HTK in zip(scaled_queries, keys, values, strict=True):
                k_HKT = k_HTK.transpose(1, 2)
                p_HTT = torch.bmm(q_HTK, k_HKT).softmax(-1)
                p_HTT = p_HTT.to(value.dtype)
                probabilities.append(p_HTT)
                mixed_HTK = torch.bmm(p_HTT, v_HTK)
                outputs.append(mixed_HTK)
            output = torch.cat(outputs, dim=1)

        # The output is kept for delta, which the backward pass needs.
        context.save_for_backward(query, key, value, output, *probabilities)
        return output

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor):  # pyright: ignore
        query, key, value, output, *probabilities = context.saved_tensors
        lengths = context.lengths

        with torch.autocast(gradient.device.type, enabled=False):
            # The softmax's gradient is P (dP - delta). delta is the sum of P dP over the keys, which is the sum of O dO
            # over the head's width: a few values per frame instead of one per pair of frames.
            precise = torch.promote_types(gradient.dtype, torch.float32)
            delta = (output.to(precise) * gradient).sum(-1, keepdim=True)
            delta = delta.to(gradient.dtype)

            queries = query.split(lengths, dim=1)
            keys = key.split(lengths, dim=1)
            values = value.split(lengths, dim=1)
            gradients = gradient.split(lengths, dim=1)
            deltas = delta.split(lengths, dim=1)

            grad_queries = []
            grad_keys = []
            grad_values = []
            for utterance, p_HTT in enumerate(probabilities):
                g_HTK = gradients[utterance]
                v_HKT = values[utterance].transpose(1, 2)
                # dP - delta: the product and the subtraction in one pass.
                grad_scores_HTT = torch.baddbmm(deltas[utterance], g_HTK, v_HKT, beta=-1)
                grad_scores_HTT.mul_(p_HTT)

                grad_query_HTK = torch.bmm(grad_scores_HTT, keys[utterance])
                grad_key_HTK = torch.bmm(grad_scores_HTT.transpose(1, 2), queries[utterance])
                grad_value_HTK = torch.bmm(p_HTT.transpose(1, 2), g_HTK)
                grad_queries.append(grad_query_HTK)
                grad_keys.append(grad_key_HTK)
                grad_values.append(grad_value_HTK)

            grad_query = torch.cat(grad_queries, dim=1)
            grad_key = torch.cat(grad_keys, dim=1)
            grad_value = torch.cat(grad_values, dim=1)
            # Scores are of scaled queries: the scale is a factor of both gradients, applied once to all utterances.
            grad_query.mul_(context.scale)
            grad_key.mul_(context.scale)
        return grad_query, grad_key, grad_value, None
