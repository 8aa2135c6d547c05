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

from data.sidecars import Arrays
from launcher.errors import ConfigError
from launcher.training.teachers.cache_match import CacheContents
from launcher.training.teachers.teacher import TeacherOutput

# Arrays of one utterance: `frames` their number, `layer-NN` states [S, D]; of each posterior NAME [P, K] the log
# probabilities, NAME_tokens [P, K] whose they are and NAME_rest [P] what is left, or NAME [P, V] of all tokens.
FRAMES, LAYER = "frames", "layer-{:02d}"


def compact(output: TeacherOutput, token_lengths_B: Tensor, kept: CacheContents) -> list[Arrays]:
    """The arrays of each utterance of a batch. ConfigError when a state is beyond what fp16 holds."""
    frames = output.lengths_B.tolist()
    batch = [{FRAMES: np.array(length, np.int32)} for length in frames]
    for layer in kept.layers:
        states_BSD = output.layers[layer].half().cpu()
        for arrays, states_SD, length in zip(batch, states_BSD, frames, strict=True):
            if not states_SD[:length].isfinite().all():
                raise ConfigError(
                    f"Layer {layer} of the teacher has a state that fp16 cannot hold (beyond 65504, or not a number). "
                    "Compare another layer, or let the teacher hear every step (distill.cache.use: never)."
                )
            arrays[LAYER.format(layer)] = states_SD[:length].numpy()
    posteriors = {"ctc": output.ctc_BSV if kept.ctc else None, "decoder": output.decoder_BUV if kept.decoder else None}
    for name, logits_BPV in posteriors.items():
        if logits_BPV is not None:
            lengths = frames if name == "ctc" else [length + 1 for length in token_lengths_B.tolist()]
            for part, values_BP in _keep_top(logits_BPV, kept.top_tokens).items():
                for arrays, values_P, length in zip(batch, values_BP, lengths, strict=True):
                    arrays[f"{name}{part}"] = values_P[:length]
    return batch


def _keep_top(logits_BPV: Tensor, top_tokens: int) -> dict[str, np.ndarray]:
    log_probs_BPV = logits_BPV.float().log_softmax(-1)
    vocabulary = log_probs_BPV.shape[-1]
    if top_tokens >= vocabulary:
        return {"": log_probs_BPV.half().cpu().numpy()}
    top = log_probs_BPV.topk(top_tokens)
    rest_BP = log_probs_BPV.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    return {
        "": top.values.half().cpu().numpy(),
        "_tokens": top.indices.cpu().numpy().astype(np.uint16 if vocabulary <= 2**16 else np.uint32),
        "_rest": rest_BP.half().cpu().numpy(),
    }


def empty(width: int, vocabulary: int, kept: CacheContents) -> Arrays:
    """The arrays of an utterance of no frames and no targets."""
    states = {LAYER.format(layer): np.zeros((0, width), np.float16) for layer in kept.layers}
    posteriors = {name: np.zeros((0, vocabulary), np.float16) for name in ("ctc", "decoder") if getattr(kept, name)}
    return {FRAMES: np.array(0, np.int32), **states, **posteriors}


def restore(
    batch: Sequence[Arrays], vocabulary: int, device: torch.device, num_frames: int = 1, num_targets: int = 1
) -> TeacherOutput:
    """The output on the device, in fp32, padded with zeros to so many frames, or more where a teacher has more, and
    targets; posteriors are log probabilities over the vocabulary."""
    frames = [int(arrays[FRAMES]) for arrays in batch]
    num_frames = max(num_frames, *frames)
    ctc_BSV = _spread(batch, "ctc", num_frames, vocabulary, device)
    decoder_BUV = _spread(batch, "decoder", num_targets, vocabulary, device)
    return TeacherOutput(
        StoredLayers(batch, num_frames, device), torch.tensor(frames, device=device), ctc_BSV, decoder_BUV
    )


class StoredLayers:
    """The stored layers of a batch, each [B, S, D], made when it is asked for."""

    def __init__(self, batch: Sequence[Arrays], num_frames: int, device: torch.device):
        self._batch, self._num_frames, self._device = batch, num_frames, device

    def __len__(self) -> int:
        return sum(name.startswith(LAYER.partition("{")[0]) for name in self._batch[0])

    def __getitem__(self, layer: int) -> Tensor:
        return _pad(self._batch, LAYER.format(layer), self._num_frames, self._device).float()


def _spread(batch: Sequence[Arrays], name: str, positions: int, vocabulary: int, device: torch.device) -> Tensor | None:
    """Log probabilities [B, P, V] of all tokens, zeros where there is nothing; None where they were not stored."""
    if name not in batch[0]:
        return None
    values_BPK = _pad(batch, name, positions, device).float()
    num_kept = values_BPK.shape[-1]
    if num_kept == vocabulary:
        return values_BPK
    tail_BP = _pad(batch, f"{name}_rest", positions, device).float() - np.log(vocabulary - num_kept)
    tokens_BPK = _pad(batch, f"{name}_tokens", positions, device)
    return tail_BP[..., None].repeat(1, 1, vocabulary).scatter(-1, tokens_BPK, values_BPK)


def _pad(batch: Sequence[Arrays], name: str, length: int, device: torch.device) -> Tensor:
    """One array of each utterance, padded to a batch."""
    some = batch[0][name]
    kind = np.int64 if some.dtype.kind == "u" else some.dtype
    padded = np.zeros((len(batch), length, *some.shape[1:]), kind)
    for row, arrays in zip(padded, batch, strict=True):
        row[: len(arrays[name])] = arrays[name]
    return torch.from_numpy(padded).to(device, non_blocking=True)
