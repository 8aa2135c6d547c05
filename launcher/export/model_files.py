"""The parts of a finished model, from a folder in the layout of Chorus or of Hugging Face.

                            Chorus                      Hugging Face
the recogniser              model.json                  config.json
its weights                 model.safetensors           model.safetensors
the front-end               features.json               preprocessor_config.json
the tokenizer               tokenizer/tokenizer.model   tokenizer.model
what it must be             tokenizer/tokenizer.json    tokenizer_config.json

The files of Hugging Face's layout hold the fields of ours beside those that transformers reads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from data.errors import DataError
from data.features import FeaturesConfig
from data.text.tokenizer import Tokenizer
from launcher.errors import CheckpointError
from launcher.run_files import read_statistics
from model.export import holds_encoder_alone, is_hub_layout, load_model
from model.merging import merge_adapters, merge_views
from model.recognizer import Recognizer

FEATURES_FILE = "features.json"
HUB_FEATURES_FILE = "preprocessor_config.json"
TOKENIZER_FOLDER = "tokenizer"
HUB_TOKENIZER_DESCRIPTION = "tokenizer_config.json"


@dataclass(frozen=True)
class ModelFiles:
    """A finished model that is to be written in another layout.

    features: the configuration of the front-end. statistics: `mean` and `std` of its filters.
    """

    recognizer: Recognizer
    features: FeaturesConfig
    statistics: dict[str, list[float]]
    tokenizer: Tokenizer


def features_file(folder: Path) -> Path:
    """The file of a finished model that holds the front-end's configuration and statistics."""
    if is_hub_layout(folder):
        return folder / HUB_FEATURES_FILE
    return folder / FEATURES_FILE


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a finished model; DataError as `Tokenizer.load`."""
    if is_hub_layout(folder):
        return Tokenizer.load(folder, HUB_TOKENIZER_DESCRIPTION)
    return Tokenizer.load(folder / TOKENIZER_FOLDER)


def open_model_files(folder: Path) -> ModelFiles:
    """Read a finished model in either layout; CheckpointError when a part is missing, torn, or no recogniser's."""
    if holds_encoder_alone(folder):
        raise CheckpointError(
            f"{folder} holds an encoder that learnt without transcripts: it has no output that other programs could "
            "read. Train a recogniser from it (initialize_from), and export that."
        )
    try:
        stored: dict[str, Any] = read_statistics(features_file(folder))
        features = FeaturesConfig.model_validate(stored["config"])
        statistics = {"mean": stored["mean"], "std": stored["std"]}
        # Other programs know no adapters and no views.
        recognizer = merge_views(merge_adapters(load_model(folder)))
        return ModelFiles(recognizer, features, statistics, load_tokenizer(folder))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, DataError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder} cannot be opened as a finished model: {reason}. Name a training stage that is done, such as "
            "runs/mini/student, or copy the folder again from where it was trained."
        ) from None
