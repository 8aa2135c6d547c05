"""A finished model in the layout of Hugging Face, for `transformers` and its hub.

config.json model.safetensors            the recogniser; blocks that layers share are stored once
preprocessor_config.json                 the front-end and its statistics
tokenizer.model tokenizer_config.json    SentencePiece
*_chorus.py                              the code that runs it, which needs nothing of Chorus
README.md                                the model card
"""

import json
import shutil
from pathlib import Path
from typing import Any

from launcher.export import remote_code
from launcher.export.model_files import HUB_FEATURES_FILE, HUB_TOKENIZER_DESCRIPTION, ModelFiles
from launcher.export.stored_dtype import StoredDtype, stored_as
from model.export import HUB_DESCRIPTION_FILE, describe_recognizer, save_weights

CODE_FILES = (
    "configuration_chorus.py",
    "feature_extraction_chorus.py",
    "modeling_chorus.py",
    "network_chorus.py",
    "tokenization_chorus.py",
)


def write_hub_folder(folder: Path, model: ModelFiles, card: str, dtype: StoredDtype = "fp32") -> None:
    """Write the model and its card into an empty folder; ConfigError where `dtype` does not hold a weight."""
    recognizer = model.recognizer
    save_weights(folder, stored_as(recognizer.state_dict(), dtype))
    config = {
        "model_type": "chorus",
        "architectures": ["ChorusModel"],
        "auto_map": {
            "AutoConfig": "configuration_chorus.ChorusConfig",
            "AutoModel": "modeling_chorus.ChorusModel",
            "AutoModelForCTC": "modeling_chorus.ChorusModel",
        },
        # What transformers computes in, however the weights are stored.
        "dtype": "float32",
        "pad_token_id": 0,
        **describe_recognizer(recognizer.config, recognizer.mel_bins, recognizer.vocabulary_size),
    }
    _write_json(folder / HUB_DESCRIPTION_FILE, config)

    front_end = {
        "feature_extractor_type": "ChorusFeatureExtractor",
        "auto_map": {"AutoFeatureExtractor": "feature_extraction_chorus.ChorusFeatureExtractor"},
        "config": model.features.model_dump(mode="json"),
        **model.statistics,
    }
    _write_json(folder / HUB_FEATURES_FILE, front_end)

    tokenizer = model.tokenizer
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    tokenizer_config = {
        "tokenizer_class": "ChorusTokenizer",
        # A list of the plain and the fast class, as transformers writes it; there is no fast one.
        "auto_map": {"AutoTokenizer": ["tokenization_chorus.ChorusTokenizer", None]},
        "kind": tokenizer.kind,
        "sha256": tokenizer.sha256,
        "vocabulary_size": tokenizer.vocabulary_size,
    }
    _write_json(folder / HUB_TOKENIZER_DESCRIPTION, tokenizer_config)

    code = Path(remote_code.__path__[0])
    for name in CODE_FILES:
        shutil.copyfile(code / name, folder / name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
