"""A teacher's folder from elsewhere is data: nothing in it runs, and nobody is asked whether it may."""

import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

from launcher.errors import CheckpointError  # noqa: E402
from launcher.recipe.teachers import TeacherSpec, read_spec  # noqa: E402
from launcher.training.teachers.cache_match import CacheContents, CacheDescription, CacheInputs  # noqa: E402
from launcher.training.teachers.cached import CachedTeacher  # noqa: E402
from launcher.training.teachers.waveform import TorchaudioTeacher, TransformersTeacher  # noqa: E402

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
        ("config.json", {"_attn_implementation": "strangers/kernel"}),
        ("config.json", {"experts_implementation": {"": "strangers/kernel"}}),
        ("adapter_config.json", {"base_model_name_or_path": "strangers/model"}),
    ],
)
def test_names_of_code_or_weights_elsewhere_are_refused(folder, name, keys):
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    change(folder / name, **keys)
    with pytest.raises(CheckpointError, match="names code or weights elsewhere"):
        open_teacher(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "adapter_config.json"])
@pytest.mark.parametrize("content", ["[]", "null", "3", '"x"', "true", "[" * 10**5, "1" * 5000, "", "\xff"])
def test_a_description_that_is_none_is_a_paragraph(folder, name, content):
    spec = read_spec(folder, "The teacher")
    (folder / name).write_text(content, "latin1")
    with pytest.raises(CheckpointError, match=r"^The teacher in .*hubert") as refusal:
        TransformersTeacher(folder, spec, torch.device("cpu"))
    assert "\n" not in str(refusal.value)


ODD_SETTINGS = [
    {"num_attention_heads": 0},
    {"num_attention_heads": [1]},
    {"vocab_size": "x"},
    {"pad_token_id": {"a": 1}},
    {"conv_kernel": 3},
    {"num_conv_pos_embeddings": 10**19},
    {"hidden_act": "os.system"},
    {"dtype": "float7"},
]


@pytest.mark.parametrize("keys", ODD_SETTINGS, ids=lambda keys: next(iter(keys)))
def test_a_setting_that_transformers_stumbles_over_is_a_paragraph(folder, keys):
    change(folder / "config.json", **keys)
    with pytest.raises(CheckpointError, match="cannot be opened by transformers") as refusal:
        open_teacher(folder)
    assert "\n" not in str(refusal.value)


def test_a_teacher_that_lacks_weights_is_not_filled_up_at_random(folder):
    weights = load_file(folder / "model.safetensors")
    # What transformers itself leaves out of some models; it serves training.
    save_file({name: weights[name] for name in weights if name != "masked_spec_embed"}, folder / "model.safetensors")
    change(folder / "config.json")
    open_teacher(folder)
    del weights["encoder.layers.0.attention.k_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights of the model.*k_proj"):
        open_teacher(folder)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 50, "intermediate_size": 2**16}, {"hidden_size": 2**15}])
def test_a_teacher_that_is_larger_than_its_weights_gets_no_memory(folder, changes, monkeypatch):
    # 2^15 is beyond the memory of most machines; fifty layers would be drawn at random.
    change(folder / "config.json", **changes)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", None)
    with pytest.raises(CheckpointError, match=r"its model has [0-9,]+ values, and [0-9,]+ are stored"):
        open_teacher(folder)


TORCHAUDIO = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [[4, 400, 320]],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 8,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 2,
    "encoder_pos_conv_groups": 1,
    "encoder_num_layers": 1,
    "encoder_num_heads": 1,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 8,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
    "aux_num_out": None,
}
HOSTILE_TORCHAUDIO = {
    "a list": [],
    "nothing": None,
    "no model": {},
    "a model that is a list": {"model": [1]},
    "a text as heads": {"model": TORCHAUDIO | {"encoder_num_heads": "x"}},
    "no heads": {"model": TORCHAUDIO | {"encoder_num_heads": 0}},
    "a million layers": {"model": TORCHAUDIO | {"encoder_ff_interm_features": 2**30}},
    "an unknown key": {"model": TORCHAUDIO | {"os": "system"}},
    "other weights": {"model": TORCHAUDIO},
}


@pytest.mark.parametrize("name", HOSTILE_TORCHAUDIO)
def test_a_model_of_torchaudio_that_is_none_is_a_paragraph(tmp_path, name):
    pytest.importorskip("torchaudio")
    (tmp_path / "torchaudio.json").write_text(json.dumps(HOSTILE_TORCHAUDIO[name]))
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    spec = TeacherSpec(kind="torchaudio", layers=1, width=8, frame_s=0.02)
    with pytest.raises(CheckpointError, match=r"cannot be (read|opened by torchaudio)") as refusal:
        TorchaudioTeacher(tmp_path, spec, torch.device("cpu"))
    assert "\n" not in str(refusal.value)


WAVEFORM = {"model_type": "wav2vec2", "num_hidden_layers": 1, "hidden_size": 8, "conv_stride": [5, 2]}
FILTERBANK = {"model_type": "speech_to_text", "encoder_layers": 1, "d_model": 8, "num_conv_layers": 2}
HOSTILE_SHAPES = [
    WAVEFORM | {"conv_stride": [10**300] * 5},
    WAVEFORM | {"conv_stride": [0]},
    WAVEFORM | {"conv_stride": []},
    WAVEFORM | {"conv_stride": [1] * 10**5},
    WAVEFORM | {"conv_stride": [float("inf")]},
    WAVEFORM | {"conv_stride": "52"},
    WAVEFORM | {"hidden_size": 10**9},
    FILTERBANK | {"num_conv_layers": 60_000},
    FILTERBANK | {"model_type": ["speech_to_text"]},
]


@pytest.mark.parametrize("description", HOSTILE_SHAPES, ids=range(len(HOSTILE_SHAPES)))
def test_a_shape_that_no_model_has_is_refused(tmp_path, description):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_spec(tmp_path, "The teacher")


# --- stored outputs of a stranger's -------------------------------------------------------------------


VOCABULARY = 38
WIDTH = 8


@pytest.fixture
def cached(tmp_path):
    inputs = CacheInputs(teacher="t", shards=("s",), features=None, tokenizer="t", precision="fp32")
    contents = CacheContents(
        speeds=(1.0,), min_utterance_s=0, max_utterance_s=9, layers=(0,), ctc=True, decoder=True, top_tokens=2
    )
    # By the names that teacher.json has.
    description = CacheDescription(name="t", heard=inputs, kept=contents, same_tokens=True, has_decoder=True)
    spec = TeacherSpec(kind="chorus", layers=1, width=WIDTH, frame_s=0.04)
    return CachedTeacher("t", tmp_path, description, tmp_path, spec, VOCABULARY, torch.device("cpu"))


def stored(**changes):
    """Arrays of three frames and two targets, as they are stored; those that are None are left out."""
    arrays = {"frames": np.array(3, np.int32), "layer-00": np.zeros((3, WIDTH), np.float16)}
    for name, length in (("ctc", 3), ("decoder", 2)):
        arrays[name] = np.zeros((length, 2), np.float16)
        arrays[name + "_tokens"] = np.zeros((length, 2), np.uint16)
        arrays[name + "_rest"] = np.zeros(length, np.float16)
    arrays |= changes
    return {name: values for name, values in arrays.items() if values is not None}


def test_stored_outputs_are_taken_with_some_tokens_and_with_all(cached):
    cached.check_stored(cached.empty_arrays)
    cached.check_stored(stored())
    whole = np.zeros((3, VOCABULARY), np.float16)
    cached.check_stored(stored(ctc=whole, ctc_tokens=None, ctc_rest=None))


HOSTILE_OUTPUTS = {
    "a billion frames": {"frames": np.array(10**9, np.int32)},
    "fewer than no frames": {"frames": np.array(-3, np.int32)},
    "frames in words": {"frames": np.array("three")},
    "several numbers of frames": {"frames": np.zeros(3, np.int32)},
    "no number of frames": {"frames": None},
    "no layer": {"layer-00": None},
    "a layer of another width": {"layer-00": np.zeros((3, 10**6), np.float16)},
    "a layer of another type": {"layer-00": np.zeros((3, WIDTH), np.float64)},
    "a layer of other frames": {"layer-00": np.zeros((4, WIDTH), np.float16)},
    "a layer in words": {"layer-00": np.zeros((3, WIDTH), "U2")},
    "a posterior over too many tokens": {"ctc": np.zeros((3, 10**6), np.float16)},
    "a posterior over no token": {"ctc": np.zeros((3, 0), np.float16)},
    "a token that there is not": {"ctc_tokens": np.full((3, 2), 60_000, np.uint16)},
    "tokens below zero": {"ctc_tokens": np.full((3, 2), -1, np.int16)},
    "no tokens": {"decoder_tokens": None},
    "tokens of other frames": {"decoder_tokens": np.zeros((3, 2), np.uint16)},
    "nothing left": {"decoder_rest": None},
    "what is left of other frames": {"ctc_rest": np.zeros(1, np.float16)},
}


@pytest.mark.parametrize("name", HOSTILE_OUTPUTS)
def test_stored_outputs_that_no_teacher_has_are_refused_before_they_get_memory(cached, name):
    with pytest.raises(ValueError, match=r"^its? "):
        cached.check_stored(stored(**HOSTILE_OUTPUTS[name]))
