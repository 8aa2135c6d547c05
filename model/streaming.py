"""The encoder on an utterance that comes piece by piece.

Its frames are those of `encoder(features, lengths, chunk)` on the whole utterance, however that is cut into pieces.
Between pieces it keeps less than a chunk of features, the features under the subsampling's edge, and each layer's past:
bounded by `chunk.left_chunks`, or, where that is None, growing with the utterance.

Shapes: T feature frames, S encoder frames, F mel bins, D model width.
"""

import torch
from torch import Tensor

from model.block import Frames
from model.encoder import Encoder
from model.layers.chunk_mask import ChunkMask
from model.layers.streaming_cache import LayerCache


class StreamingEncoder:
    """Runs one utterance through an encoder in evaluation mode, a chunk at a time.

    A chunk is run when its `chunk.frames` x `factor` feature frames are there; nothing waits for features after it.
    Raises ValueError for an encoder in training mode or without causal convolutions.
    """

    def __init__(self, encoder: Encoder, chunk: ChunkMask):
        if encoder.training or not encoder.config.causal_convolution:
            state = "in training mode" if encoder.training else "that was trained with causal_convolution: false"
            raise ValueError(f"an encoder {state} cannot run on pieces: it needs eval() and causal convolutions")
        self.encoder, self.chunk = encoder, chunk
        self._pasts = [LayerCache(chunk.left_frames) for _ in encoder.layers]
        self._waiting: Tensor | None = None  # features of the next chunk [T, F]
        self._edge: Tensor | None = None  # the last `factor` features before them
        self._finished = False

    @torch.inference_mode()
    def push(self, features_TF: Tensor) -> Tensor:
        """The next features, any number of them, to the frames [S, D] of the chunks that they complete."""
        if self._finished:
            raise ValueError("the utterance was finished: make a StreamingEncoder for the next one")
        waiting = features_TF if self._waiting is None else torch.cat((self._waiting, features_TF))
        size = self.chunk.frames * self.encoder.subsampling.factor
        complete = len(waiting) // size * size
        # A copy: a view would keep the features before it.
        self._waiting = waiting[complete:].clone()
        return self._join([self._run(piece) for piece in waiting[:complete].split(size) if len(piece)], features_TF)

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """The utterance has ended: the frames [S, D] of its last, incomplete chunk, none if there is none."""
        rest = self._waiting
        if rest is None or self._finished:
            raise ValueError("there is no utterance to finish: push its features first, and finish once")
        self._finished, self._waiting = True, None
        return self._join([self._run(rest)] if len(rest) else [], rest)

    def _run(self, features_TF: Tensor) -> Tensor:
        """The frames of one chunk."""
        factor = self.encoder.subsampling.factor
        features = features_TF if self._edge is None else torch.cat((self._edge, features_TF))
        lengths_B = torch.tensor([len(features)], device=features.device)
        x_BSD, _ = self.encoder.subsampling(features[None], lengths_B)
        if self._edge is not None:
            x_BSD = x_BSD[:, 1:]  # made of the edge, and of zeros where features were before it
        self._edge = features[-factor:].clone()
        num_frames = x_BSD.shape[1]
        positions = self.encoder.encode_positions(self._pasts[0].num_frames + num_frames)
        valid_BS = torch.ones(1, num_frames, dtype=torch.bool, device=features.device)
        outputs = self.encoder.run_layers(x_BSD[0], Frames.of(valid_BS, positions), self._pasts)
        return outputs[-1].frames_ND

    def _join(self, pieces: list[Tensor], like: Tensor) -> Tensor:
        return torch.cat(pieces) if pieces else like.new_zeros(0, self.encoder.config.width)
