"""A recording that is still going on: samples in pieces, the hypothesis so far at any time.

What comes out is what the same model gives for the whole recording with the same chunk. Between pieces it keeps less
than a window of samples, what `StreamingEncoder` keeps, and the state of the search.

Shapes: S samples, T feature frames, D model width, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from launcher.errors import ConfigError
from launcher.inference.finished_model import FinishedModel
from launcher.recipe.search import GreedyConfig, PrefixBeamConfig
from model.search import GreedySearch, Hypothesis, PrefixBeamSearch
from model.streaming import StreamingEncoder


class StreamingRecognizer:
    """One recording through a finished model whose search has a chunk and reads CTC alone; else ConfigError."""

    def __init__(self, model: FinishedModel):
        config = model.search.config
        if config.chunk is None:
            raise ConfigError(
                "Audio that is still arriving needs chunks, and the search has none. Say how many encoder frames are "
                f"seen at once, such as --chunk 16 ({16 * model.frame_s:.2g} s), and with --left-chunks how far back."
            )
        if isinstance(config, PrefixBeamConfig):
            self._search = PrefixBeamSearch(1, config.beam, config.candidates, model.search.fusion)
        elif isinstance(config, GreedyConfig):
            self._search = GreedySearch(1)
        else:
            raise ConfigError(
                f"The search {config.kind} needs the whole recording. While audio arrives, search with greedy or "
                "prefix_beam."
            )
        self.model = model
        self._encoder = StreamingEncoder(model.recognizer.encoder, config.chunk.chunk)
        self._waiting_S = torch.zeros(0, device=model.device)

    @property
    def chunk_samples(self) -> int:
        """The samples of one chunk at the model's rate: after so many more there is something new to read."""
        factor = self.model.recognizer.encoder.subsampling.factor
        feature_frames = self._encoder.chunk.frames * factor
        return feature_frames * self.model.features.config.hop_samples

    @torch.inference_mode()
    def push(self, waveform: np.ndarray) -> Hypothesis:
        """The next mono float32 samples at the model's rate, any number of them; the best text so far."""
        samples_S = torch.cat((self._waiting_S, torch.from_numpy(waveform).to(self.model.device)))
        num_frames = self.model.features.num_frames(len(samples_S))
        lengths_B = torch.tensor([len(samples_S)], device=self.model.device)
        features_BTF, _ = self.model.features(samples_S[None], lengths_B)
        # The next window starts one hop after the last; a copy, because a view would keep the samples before it.
        next_window = num_frames * self.model.features.config.hop_samples
        self._waiting_S = samples_S[next_window:].clone()
        with self.model.autocast():
            self._advance(self._encoder.push(features_BTF[0]))
        return self.hypotheses()[0]

    @torch.inference_mode()
    def finish(self) -> list[Hypothesis]:
        """The recording has ended: its texts, best first, as many as the search's `n_best`."""
        # The encoder holds back frames until a chunk is full; the last one may stay short.
        with self.model.autocast():
            self._advance(self._encoder.finish())
        config = self.model.search.config
        if isinstance(config, PrefixBeamConfig):
            return self.hypotheses(config.n_best)
        return self.hypotheses()

    def hypotheses(self, n_best: int = 1) -> list[Hypothesis]:
        """The best texts of what has been read so far."""
        if isinstance(self._search, PrefixBeamSearch):
            return self._search.finish(n_best)[0]
        return self._search.finish()

    def _advance(self, frames_SD: Tensor) -> None:
        if len(frames_SD) == 0:
            return
        logits_SV = self.model.recognizer.ctc(frames_SD)
        lengths_B = torch.tensor([len(frames_SD)], device=self.model.device)
        # A batch of one utterance.
        self._search.advance(logits_SV[None], lengths_B)
