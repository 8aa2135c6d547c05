"""A model in the layout of Hugging Face: transformers loads it without Chorus, and Chorus loads it back."""

import ast
import json
import sys

import pytest
import torch
from small_models import real_speech, write_small_model

from launcher.cli import main as chorus
from launcher.export.hub_folder import CODE_FILES, write_hub_folder
from launcher.export.model_files import open_model_files
from launcher.inference.finished_model import FinishedModel

transformers = pytest.importorskip("transformers")

ALLOWED = {"torch", "numpy", "sentencepiece", "transformers", *sys.stdlib_module_names}


@pytest.fixture(scope="module", params=["shared with experts", "full"])
def exported(request, tmp_path_factory):
    """A model folder, and the same in the layout of Hugging Face."""
    root = tmp_path_factory.mktemp("hub")
    folder = write_small_model(root / "model", request.param)
    hub = root / "hub"
    hub.mkdir()
    write_hub_folder(hub, open_model_files(folder), "# A card\n")
    return folder, hub


@pytest.fixture
def load(exported, tmp_path, monkeypatch):
    """Loads a part of the model by a class of transformers, from code that is cached for this test alone."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    # Code of other tests' models, whose folders it would look in.
    for name in list(sys.modules):
        if name.startswith("transformers_modules"):
            monkeypatch.delitem(sys.modules, name)

    def load(kind):
        return kind.from_pretrained(exported[1], trust_remote_code=True)

    return load


def test_the_code_needs_nothing_of_chorus(exported):
    for name in CODE_FILES:
        for node in ast.walk(ast.parse((exported[1] / name).read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                assert module.split(".")[0] in ALLOWED, f"{name} imports {module}"


@torch.inference_mode()
def test_auto_classes_give_the_logits_and_the_texts_of_chorus(exported, load):
    waveforms = real_speech()
    ours = FinishedModel.load(exported[0])
    extractor = load(transformers.AutoFeatureExtractor)
    model = load(transformers.AutoModel)
    tokenizer = load(transformers.AutoTokenizer)
    assert type(model).__module__.startswith("transformers_modules")
    assert not model.training

    inputs = extractor(waveforms, sampling_rate=16000)
    output = model(**inputs)
    expected = ours.encode(waveforms)
    torch.testing.assert_close(output.logits, expected.ctc_BSV, atol=1e-5, rtol=0)
    assert output.lengths.equal(expected.encoder.lengths_B)
    texts = tokenizer.batch_decode(model.greedy_tokens(output), group_tokens=False)
    assert texts == ours.recognise(waveforms)
    assert all(texts)
    # A path of CTC, as the pipelines of transformers decode it.
    best_S = output.logits[0].argmax(-1)[: output.lengths[0]]
    assert tokenizer.decode(best_S.tolist()) == texts[0]


def test_weights_are_stored_once_and_under_the_names_of_training(exported):
    folder, hub = exported
    size = (hub / "model.safetensors").stat().st_size
    assert size == (folder / "model.safetensors").stat().st_size


def test_a_waveform_shorter_than_a_window_gives_no_frames(exported, load):
    extractor = load(transformers.AutoFeatureExtractor)
    inputs = extractor(real_speech(1)[0][:100], sampling_rate=16000)
    assert inputs["attention_mask"].sum() == 0
    assert load(transformers.AutoModel)(**inputs).lengths.tolist() == [0]


def test_another_rate_is_refused(exported, load):
    with pytest.raises(ValueError, match="takes 16000 Hz"):
        load(transformers.AutoFeatureExtractor)(real_speech(1)[0], sampling_rate=8000)


def test_a_model_that_transformers_saves_anew_is_the_same(exported, load, tmp_path):
    model = load(transformers.AutoModel)
    model.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    first = json.loads((exported[1] / "config.json").read_text())
    for key in ("recognizer", "mel_bins", "vocabulary_size", "block_of_layer", "format"):
        assert again[key] == first[key]


def test_chorus_loads_the_folder_back(exported):
    folder, hub = exported
    waveforms = real_speech()
    assert FinishedModel.load(hub).recognise(waveforms) == FinishedModel.load(folder).recognise(waveforms)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_a_folder_that_lacks_a_file_is_refused_in_one_paragraph(exported, tmp_path, name, capsys):
    for path in exported[1].iterdir():
        if path.is_file() and path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert chorus(["export", str(tmp_path), "--format", "huggingface", "--out", str(tmp_path / "out")]) == 4
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(tmp_path) in message
    assert not (tmp_path / "out").exists()
