"""The encoder on an utterance that comes piece by piece.

Its frames are those of `encoder(features, lengths, chunk)` on the whole utterance, however that is cut into pieces.
Between pieces it keeps less than a chunk of features, the features under the subsampling's edge, and each layer's
cache: bounded by `chunk.left_chunks`, or, where that is None, growing with the utterance.

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
        if encoder.training:
            raise ValueError("an encoder in training mode cannot run on pieces: it needs eval()")
        if not encoder.config.causal_convolution:
            raise ValueError(
                "an encoder that was trained with causal_convolution: false cannot run on pieces: it needs causal "
                "convolutions"
            )
        self.encoder = encoder
        self.chunk = chunk
        self._caches = []
        for _ in encoder.layers:
            # One for each layer, also where layers share a block: their keys differ.
            self._caches.append(LayerCache(chunk.left_frames))
        self._waiting: Tensor | None = None  # features of the next chunk [T, F]
        self._edge: Tensor | None = None  # the last `factor` features before them
        self._finished = False

    @torch.inference_mode()
    def push(self, features_TF: Tensor) -> Tensor:
        """The next features, any number of them, to the frames [S, D] of the chunks that they complete."""
        if self._finished:
            raise ValueError("the utterance was finished: make a StreamingEncoder for the next one")
        waiting_TF = features_TF
        if self._waiting is not None:
            waiting_TF = torch.cat((self._waiting, features_TF))
        # A chunk is complete with its own features: subsampling looks no further.
        chunk_features = self.chunk.frames * self.encoder.subsampling.factor

        frames = []
        start = 0
        while start + chunk_features <= len(waiting_TF):
            end = start + chunk_features
            chunk_SD = self._run_chunk(waiting_TF[start:end])
            frames.append(chunk_SD)
            start = end
        # A copy: a view would keep the features before it.
        self._waiting = waiting_TF[start:].clone()
        if not frames:
            return self._no_frames(features_TF)
        return torch.cat(frames)

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """The utterance has ended: the frames [S, D] of its last, incomplete chunk, none if there is none."""
        remaining_TF = self._waiting
        if remaining_TF is None or self._finished:
            raise ValueError("there is no utterance to finish: push its features first, and finish once")
        self._finished = True
        self._waiting = None
        if not len(remaining_TF):
            return self._no_frames(remaining_TF)
        return self._run_chunk(remaining_TF)

    def _run_chunk(self, features_TF: Tensor) -> Tensor:
        """The frames [S, D] of one chunk."""
        device = features_TF.device
        factor = self.encoder.subsampling.factor
        with_edge_TF = features_TF
        if self._edge is not None:
            with_edge_TF = torch.cat((self._edge, features_TF))
        # A stream is a batch of one utterance.
        features_1TF = with_edge_TF[None]
        lengths_1 = torch.tensor([len(with_edge_TF)], device=device)
        x_1SD, _ = self.encoder.subsampling(features_1TF, lengths_1)
        x_SD = x_1SD[0]
        if self._edge is not None:
            # The first frame is made of the edge, and of zeros where features were before it.
            x_SD = x_SD[1:]
        self._edge = with_edge_TF[-factor:].clone()

        num_frames = len(x_SD)
        # Positions are counted from the oldest cached key, so that an utterance may be of any length. There is no mask:
        # the caches hold the frames that a chunk attends to, and no others.
        num_keys = self._caches[0].num_frames + num_frames
        positions = self.encoder.encode_positions(num_keys)
        valid_1S = torch.ones(1, num_frames, dtype=torch.bool, device=device)
        frames = Frames.from_valid(valid_1S, positions)
        outputs = self.encoder.run_layers(x_SD, frames, self._caches)
        return outputs[-1].frames_ND

    def _no_frames(self, like: Tensor) -> Tensor:
        return like.new_zeros(0, self.encoder.config.width)
