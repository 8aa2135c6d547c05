"""A teacher's output as a few small arrays per utterance, and back.

States are fp16. Of a posterior the `top_tokens` likeliest are kept, as log probabilities in fp16, and the logarithm of
what is left of 1, which the other tokens share equally when it is read: a distribution again. With p the posterior, p'
that distribution, r what is left, V tokens and k of them kept, the divergence from any q moves by no more than

    |KL(p || q) - KL(p' || q)| <= r (log(V - k) + the range of log q over the tokens that are not kept).

A posterior whose tokens are all kept is exact up to fp16.

Shapes: B batch, S teacher frames, P positions of any kind, U tokens, V vocabulary, K tokens kept.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.shards.sidecars import Arrays
from launcher.errors import ConfigError
from launcher.training.teachers.cache_match import CacheContents
from launcher.training.teachers.teacher import TeacherOutput

# The arrays of one utterance. FRAMES: how many there are, int32.
FRAMES = "frames"
# layer-NN: states [S, D] of a layer.
LAYER_PREFIX = "layer-"
# Posteriors: NAME the log probabilities [P, K] of the tokens NAME_tokens [P, K], and NAME_rest [P] of all others
# together. Where all tokens are kept there is NAME [P, V] alone.
CTC = "ctc"
DECODER = "decoder"
TOKENS_SUFFIX = "_tokens"
REST_SUFFIX = "_rest"


def compact(output: TeacherOutput, token_lengths_B: Tensor, contents: CacheContents) -> list[Arrays]:
    """The arrays of each utterance of a batch. ConfigError when a state is beyond what fp16 holds."""
    num_frames = output.lengths_B.tolist()
    batch: list[Arrays] = []
    for length in num_frames:
        batch.append({FRAMES: np.array(length, np.int32)})

    for layer in contents.layers:
        states_BSD = output.layers[layer].half().cpu()
        for arrays, padded_SD, length in zip(batch, states_BSD, num_frames, strict=True):
            states_SD = padded_SD[:length]
            # A larger state would become infinite, and with it the loss of every step that reads it.
            if not states_SD.isfinite().all():
                raise ConfigError(
                    f"Layer {layer} of the teacher has a state that fp16 cannot hold (beyond 65504, or not a number). "
                    "Compare another layer, or let the teacher run at every step (distill.cache.use: never)."
                )
            arrays[_layer_name(layer)] = states_SD.numpy()

    if contents.ctc and output.ctc_BSV is not None:
        _store_posterior(batch, CTC, output.ctc_BSV, num_frames, contents.top_tokens)
    if contents.decoder and output.decoder_BUV is not None:
        # The tokens and the end.
        num_targets = (token_lengths_B + 1).tolist()
        _store_posterior(batch, DECODER, output.decoder_BUV, num_targets, contents.top_tokens)
    return batch


def _store_posterior(
    batch: list[Arrays],
    name: str,
    logits_BPV: Tensor,
    lengths: Sequence[int],
    top_tokens: int,
) -> None:
    """Add the arrays of a posterior to those of each utterance."""
    log_probs_BPV = logits_BPV.float().log_softmax(-1)
    vocabulary = log_probs_BPV.shape[-1]
    stored: Arrays = {}
    if top_tokens >= vocabulary:
        stored[name] = log_probs_BPV.half().cpu().numpy()
    else:
        top = log_probs_BPV.topk(top_tokens)
        # The sum of the others, not 1 minus the sum of these: that would cancel where these have nearly all.
        others_BPV = log_probs_BPV.scatter(-1, top.indices, -torch.inf)
        rest_BP = others_BPV.logsumexp(-1)
        # Half the bytes for all vocabularies of characters, and for most of pieces.
        token_type = np.uint16
        if vocabulary > 2**16:
            token_type = np.uint32
        stored[name] = top.values.half().cpu().numpy()
        tokens_BPK = top.indices.cpu().numpy()
        stored[name + TOKENS_SUFFIX] = tokens_BPK.astype(token_type)
        stored[name + REST_SUFFIX] = rest_BP.half().cpu().numpy()

    for array_name, values_BP in stored.items():
        for arrays, values_P, length in zip(batch, values_BP, lengths, strict=True):
            arrays[array_name] = values_P[:length]


def empty(width: int, vocabulary: int, contents: CacheContents) -> Arrays:
    """The arrays of an utterance of no frames and no targets."""
    arrays: Arrays = {FRAMES: np.array(0, np.int32)}
    no_states = np.zeros((0, width), np.float16)
    no_posteriors = np.zeros((0, vocabulary), np.float16)
    for layer in contents.layers:
        arrays[_layer_name(layer)] = no_states
    if contents.ctc:
        arrays[CTC] = no_posteriors
    if contents.decoder:
        arrays[DECODER] = no_posteriors
    return arrays


def restore(
    batch: Sequence[Arrays],
    vocabulary: int,
    device: torch.device,
    num_frames: int = 1,
    num_targets: int = 1,
) -> TeacherOutput:
    """The output on the device, in fp32, padded with zeros to so many frames, or more where a teacher has more, and
    targets; posteriors are log probabilities over the vocabulary."""
    lengths = [int(arrays[FRAMES]) for arrays in batch]
    num_frames = max(num_frames, *lengths)
    return TeacherOutput(
        layers=StoredLayers(batch, num_frames, device),
        lengths_B=torch.tensor(lengths, device=device),
        ctc_BSV=_restore_posterior(batch, CTC, num_frames, vocabulary, device),
        decoder_BUV=_restore_posterior(batch, DECODER, num_targets, vocabulary, device),
    )


class StoredLayers:
    """The stored layers of a batch, each [B, S, D], padded and moved to the device when it is asked for."""

    def __init__(self, batch: Sequence[Arrays], num_frames: int, device: torch.device):
        self._batch = batch
        self._num_frames = num_frames
        self._device = device

    def __len__(self) -> int:
        return sum(name.startswith(LAYER_PREFIX) for name in self._batch[0])

    def __getitem__(self, layer: int) -> Tensor:
        states_BSD = _pad(self._batch, _layer_name(layer), self._num_frames, self._device)
        return states_BSD.float()


def _layer_name(layer: int) -> str:
    return f"{LAYER_PREFIX}{layer:02d}"


def _restore_posterior(
    batch: Sequence[Arrays],
    name: str,
    positions: int,
    vocabulary: int,
    device: torch.device,
) -> Tensor | None:
    """Log probabilities [B, P, V] of all tokens, zeros where there is nothing; None where they were not stored."""
    if name not in batch[0]:
        return None
    values_BPK = _pad(batch, name, positions, device).float()
    num_kept = values_BPK.shape[-1]
    if num_kept == vocabulary:
        return values_BPK

    # The tokens that are not kept share what is left equally.
    rest_BP = _pad(batch, name + REST_SUFFIX, positions, device).float()
    share_BP = rest_BP - np.log(vocabulary - num_kept)
    tokens_BPK = _pad(batch, name + TOKENS_SUFFIX, positions, device)
    shares_BPV = share_BP[..., None].repeat(1, 1, vocabulary)
    return shares_BPV.scatter(-1, tokens_BPK, values_BPK)


def _pad(
    batch: Sequence[Arrays],
    name: str,
    length: int,
    device: torch.device,
) -> Tensor:
    """One array of each utterance, padded to a batch."""
    first = batch[0][name]
    dtype = first.dtype
    # torch scatters by int64 alone.
    if dtype.kind == "u":
        dtype = np.dtype(np.int64)
    shape = (len(batch), length, *first.shape[1:])
    padded = np.zeros(shape, dtype)
    for row, arrays in zip(padded, batch, strict=True):
        values = arrays[name]
        row[: len(values)] = values
    return torch.from_numpy(padded).to(device, non_blocking=True)
