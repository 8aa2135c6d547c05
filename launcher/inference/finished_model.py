"""A finished model: a folder with everything that recognition needs, and nothing of the run that made it.

model.json model.safetensors    the recogniser (model/export.py)
tokenizer/                      SentencePiece
features.json                   the front-end's configuration and statistics

A folder in the layout of Hugging Face holds the same (launcher/export/model_files.py).

A stage that learns without transcripts leaves an encoder alone, and no tokenizer: a start for recognisers.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from data.errors import DataError
from data.features import FeaturesConfig, LogMel
from data.files import remove_path
from data.text.tokenizer import Tokenizer
from launcher.errors import CheckpointError, ConfigError
from launcher.export.model_files import features_file, load_tokenizer
from launcher.inference.search import Search
from launcher.recipe import GreedyConfig, SearchConfig
from launcher.run_files import read_statistics
from launcher.run_folder import RunFolder, write_json
from model.export import holds_encoder_alone, load_model, save_encoder, save_model
from model.masked_prediction import MaskedPredictorConfig
from model.recognizer import Recognizer, RecognizerConfig, RecognizerOutput
from model.search import Hypothesis
from model.student import without_auxiliary_heads

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
PROCESSORS = torch.device("cpu")


class FinishedModel:
    """A recogniser with its front-end and tokenizer, on a device, and a way to search."""

    def __init__(self, recognizer: Recognizer, features: LogMel, tokenizer: Tokenizer, search: Search):
        self.recognizer = recognizer
        self.features = features
        self.tokenizer = tokenizer
        self.search = search
        # None: as the weights are stored. See `launcher/inference/precision.py`.
        self.autocast_dtype: torch.dtype | None = None

    @classmethod
    def load(
        cls, folder: Path, search: SearchConfig | None = None, device: torch.device = PROCESSORS
    ) -> "FinishedModel":
        """Open a model folder, to be searched greedily unless another search is given.

        CheckpointError when a part is missing or cannot be read; ConfigError or DataError when the search does not go
        with the model or lacks a file.
        """
        try:
            stored = read_statistics(features_file(folder))
            features = build_features(FeaturesConfig.model_validate(stored["config"]), stored)
            if holds_encoder_alone(folder):
                raise CheckpointError(
                    f"{folder} holds an encoder that learnt without transcripts, and no recogniser. Start one from it: "
                    "a pretrain stage whose initialize_from names this folder or its stage."
                )
            recognizer = load_model(folder)
            tokenizer = load_tokenizer(folder)
        # DataError: of features.json and of the tokenizer.
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, DataError, SafetensorError) as error:
            # Of a configuration pydantic tells over several lines.
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{folder} cannot be opened as a finished model: {reason}. Copy it again from where it was trained, or "
                "remove the folder and run the recipe again: the stage's last checkpoint makes it anew."
            ) from None
        searcher = Search(search or GreedyConfig(), recognizer, tokenizer, f"the model in {folder}")
        return cls(recognizer.to(device), features.to(device), tokenizer, searcher)

    @property
    def device(self) -> torch.device:
        return next(self.recognizer.parameters()).device

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the recogniser computes."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def report_to(self, on_progress: Callable[[], None]) -> None:
        """Call `on_progress` from now on as recognition gets on: at each block of the encoder, each token of a decoder
        or a transducer, and every few frames of a prefix beam search."""
        recognizer = self.recognizer
        modules: list[nn.Module] = [*recognizer.encoder.blocks]
        for decoder in (recognizer.decoder, recognizer.reverse_decoder):
            if decoder is not None:
                # Each step of a decoder begins with it, in training's form and in the search's.
                modules.append(decoder.embedding)
        if recognizer.transducer is not None:
            modules.append(recognizer.transducer.prediction)
        for module in modules:
            module.register_forward_pre_hook(lambda module, inputs: on_progress())
        self.search.on_progress = on_progress

    @property
    def frame_s(self) -> float:
        """Seconds from one encoder frame to the next."""
        hop_s = self.features.config.hop_samples / self.features.config.sample_rate_hz
        return hop_s * self.recognizer.encoder.subsampling.factor

    def recognise(self, waveforms: list[np.ndarray]) -> list[str]:
        """The texts of mono float32 waveforms at the model's sample rate, as one batch."""
        texts = []
        for hypotheses in self.hypotheses(waveforms):
            texts.append(self.tokenizer.decode(hypotheses[0].tokens))
        return texts

    @torch.inference_mode()
    def hypotheses(self, waveforms: list[np.ndarray]) -> list[list[Hypothesis]]:
        """The search's hypotheses for each waveform, best first."""
        with self.autocast():
            return self.search(self.encode(waveforms))

    @torch.inference_mode()
    def encode(self, waveforms: list[np.ndarray]) -> RecognizerOutput:
        """The recogniser's output for the waveforms, as one batch, for a search to read."""
        samples_B = torch.tensor([len(waveform) for waveform in waveforms])
        # At least one window: a shorter recording is padded to one.
        longest = int(samples_B.max())
        num_samples = max(longest, self.features.config.window_samples)
        waveforms_BS = torch.zeros(len(waveforms), num_samples)
        for row, waveform in zip(waveforms_BS, waveforms, strict=True):
            row[: len(waveform)] = torch.from_numpy(waveform)
        features_BTF, lengths_B = self.features(waveforms_BS.to(self.device), samples_B.to(self.device))
        chunk = None
        if self.search.config.chunk:
            # As while audio arrives, so that both give the same.
            chunk = self.search.config.chunk.chunk
        with self.autocast():
            return self.recognizer(features_BTF, lengths_B, chunk=chunk)


def build_features(config: FeaturesConfig, statistics: dict[str, Any]) -> LogMel:
    """The feature front-end with the `mean` and `std` per mel bin that were measured on the training split."""
    features = LogMel(config)
    mean_F = torch.tensor(statistics["mean"])
    std_F = torch.tensor(statistics["std"])
    features.set_statistics(mean_F, std_F)
    return features


def read_features(folder: Path) -> FeaturesConfig:
    """The front-end's configuration of a finished model; CheckpointError when it cannot be read."""
    try:
        stored = read_statistics(features_file(folder))
        return FeaturesConfig.model_validate(stored["config"])
    except (OSError, ValueError, KeyError, DataError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / 'features.json'} of a finished model cannot be read: {reason}. Copy the folder again from "
            "where it was trained."
        ) from None


def write_finished_model(
    folder: Path,
    origin: RunFolder | Path,
    config: RecognizerConfig | MaskedPredictorConfig,
    features: FeaturesConfig,
    state: dict[str, Tensor],
) -> None:
    """Write a model folder from weights and the tokenizer and feature statistics of a run, or of the finished model in
    a folder; whole or not at all.

    Auxiliary heads, which only served the training, are not part of it. ConfigError when it cannot be written there.
    """
    # Hidden: what is half written under a final name would count as the stage's model.
    temporary = folder.with_name(f".{folder.name}.tmp")
    remove_path(temporary)
    try:
        temporary.mkdir(parents=True)
        if isinstance(config, MaskedPredictorConfig):
            assert isinstance(origin, RunFolder), "only runs train encoders alone"
            save_encoder(temporary, config.encoder, features.mel_bins, state)
            statistics = read_statistics(origin.statistics_file)
        else:
            (temporary / "tokenizer").mkdir()
            if isinstance(origin, RunFolder):
                vocabulary_size = Tokenizer.load(origin.tokenizer).vocabulary_size
                for name in TOKENIZER_FILES:
                    shutil.copy(origin.tokenizer / name, temporary / "tokenizer" / name)
                statistics = read_statistics(origin.features_file)
            else:
                tokenizer = load_tokenizer(origin)
                tokenizer.save(temporary / "tokenizer")
                vocabulary_size = tokenizer.vocabulary_size
                statistics = read_statistics(features_file(origin))
            save_model(temporary, config, features.mel_bins, vocabulary_size, without_auxiliary_heads(state))
        write_json(temporary / "features.json", {"config": features.model_dump(mode="json"), **statistics})
        # A folder that is not empty cannot be replaced by a rename. A kill in between leaves none, and the stage, which
        # is not done without it, writes it anew.
        remove_path(folder)
        temporary.rename(folder)
    # A full disk is no OSError of safetensors.
    except (OSError, SafetensorError) as error:
        remove_path(temporary)
        raise ConfigError(
            f"The model could not be written to {folder}: {error}. Make room there, or mend what is named, and give "
            "the same command again."
        ) from None
