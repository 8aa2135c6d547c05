"""A teacher's folder from elsewhere is data: nothing in it runs, and nobody is asked whether it may."""

import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from launcher.errors import CheckpointError  # noqa: E402
from launcher.recipe.teachers import read_spec  # noqa: E402
from launcher.training.teachers.waveform import TransformersTeacher  # noqa: E402

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor
class Own(HubertModel): pass
class OwnConfig(HubertConfig): pass
class OwnExtractor(Wav2Vec2FeatureExtractor): pass
"""


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "hubert"
    config = transformers.HubertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        conv_dim=(4,),
        conv_stride=(320,),
        conv_kernel=(400,),
        num_feat_extract_layers=1,
        num_conv_pos_embeddings=2,
        num_conv_pos_embedding_groups=1,
    )
    transformers.HubertModel(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    def ask(*_):
        raise AssertionError("a question on standard input")

    monkeypatch.setattr("builtins.input", ask)
    return Path(shutil.copytree(saved, tmp_path / "hubert"))


def change(file: Path, **keys) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def open_teacher(folder: Path) -> TransformersTeacher:
    return TransformersTeacher(folder, read_spec(folder, "The teacher"), torch.device("cpu"))


def test_weights_that_are_a_pickle_are_not_opened(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    for name in ("pytorch_model.bin", "model.bin"):
        (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match="cannot be opened by transformers"):
        open_teacher(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_code_in_the_folder_does_not_run_and_nobody_is_asked(folder, tmp_path, name):
    (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own", "AutoFeatureExtractor": "own.OwnExtractor"}
    change(folder / name, auto_map=classes)
    if name == "preprocessor_config.json":
        # No class of transformers: only the folder's own would do.
        change(folder / name, feature_extractor_type="OwnExtractor")
    with suppress(CheckpointError):
        open_teacher(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_cut_short_are_a_paragraph(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be opened by transformers"):
        open_teacher(folder)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("config.json", {"attn_implementation": "strangers/kernel"}),
        ("adapter_config.json", {"base_model_name_or_path": "strangers/model"}),
    ],
)
def test_names_of_code_or_weights_elsewhere_are_refused(folder, name, keys):
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    change(folder / name, **keys)
    with pytest.raises(CheckpointError, match="names code or weights elsewhere"):
        open_teacher(folder)
