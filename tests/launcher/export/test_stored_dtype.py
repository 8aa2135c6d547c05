"""Weights that are stored in fp16: half the file, opened by everything that opens a model."""

import json
import os
import stat
import sys

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from small_models import real_speech, write_small_model

from launcher.cli import main as chorus
from launcher.errors import ConfigError
from launcher.export.stored_dtype import stored_as
from launcher.inference import model_lookup
from launcher.inference.finished_model import FinishedModel
from model.export import load_encoder, save_weights

KINDS = ["full", "shared with experts", "streaming"]


@pytest.fixture(scope="module", params=KINDS)
def folders(request, tmp_path_factory):
    """A model in fp32, and what `chorus export --dtype fp16` makes of it in both layouts."""
    root = tmp_path_factory.mktemp("fp16")
    whole = write_small_model(root / "whole", request.param)
    for layout in ("chorus", "huggingface"):
        out = root / layout
        assert chorus(["export", str(whole), "--format", layout, "--dtype", "fp16", "--out", str(out)]) == 0
    return whole, root / "chorus", root / "huggingface"


def test_matrices_take_half_the_bytes_and_vectors_stay_as_they_were(folders):
    whole, *halves = folders
    expected = load_file(whole / "model.safetensors")
    for half in halves:
        stored = load_file(half / "model.safetensors")
        assert stored.keys() == expected.keys()
        for name, tensor in stored.items():
            if tensor.dim() < 2:
                assert torch.equal(tensor, expected[name])
            else:
                assert tensor.dtype == torch.float16
                assert torch.equal(tensor, expected[name].half())


def test_a_model_of_fp16_computes_in_fp32_and_hears_the_same(folders):
    whole, *halves = folders
    speech = real_speech()
    expected = FinishedModel.load(whole).encode(speech)
    for half in halves:
        model = FinishedModel.load(half)
        assert {parameter.dtype for parameter in model.recognizer.parameters()} == {torch.float32}
        assert {parameter.dtype for parameter in load_encoder(half).parameters()} == {torch.float32}
        output = model.encode(speech)
        difference = (output.ctc_BSV - expected.ctc_BSV).abs()
        # fp16 keeps 11 bits of a weight: 5e-4 of it. A frame between two experts may go to the other one.
        assert difference.median() < 5e-3


def test_transformers_opens_a_model_of_fp16_in_fp32(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    # Code of other tests' models, whose folders it would look in.
    for name in list(sys.modules):
        if name.startswith("transformers_modules"):
            monkeypatch.delitem(sys.modules, name)
    whole = write_small_model(tmp_path / "whole", "full")
    hub = tmp_path / "hub"
    assert chorus(["export", str(whole), "--format", "huggingface", "--dtype", "fp16", "--out", str(hub)]) == 0
    model = transformers.AutoModel.from_pretrained(hub, trust_remote_code=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_export_says_how_large_it_is(tmp_path, capsys):
    whole = write_small_model(tmp_path / "whole", "full")
    rows = {}
    for dtype in ("fp32", "fp16"):
        out = tmp_path / dtype
        assert chorus(["export", str(whole), "--dtype", dtype, "--out", str(out), "--json"]) == 0
        rows[dtype] = json.loads(capsys.readouterr().out)
        assert rows[dtype]["dtype"] == dtype
        assert rows[dtype]["weights_bytes"] == (out / "model.safetensors").stat().st_size
    assert rows["fp16"]["weights_bytes"] < rows["fp32"]["weights_bytes"]
    assert chorus(["export", str(whole), "--dtype", "fp16", "--out", str(tmp_path / "told")]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("weights in fp16: 0.")


@pytest.mark.parametrize("layout", ["onnx", "sherpa-onnx", "torch-export"])
def test_formats_that_know_no_fp16_refuse_it(tmp_path, capsys, layout):
    whole = write_small_model(tmp_path / "whole", "one layer")
    arguments = ["export", str(whole), "--format", layout, "--dtype", "fp16", "--out", str(tmp_path / "out")]
    assert chorus(arguments) == 2
    assert "--dtype is for --format chorus and huggingface" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weight", [1e5, -7e4])
def test_a_weight_that_fp16_does_not_hold_is_named(weight):
    state = {"ctc.bias": torch.full((2,), 1e6), "ctc.weight": torch.tensor([[1.0, weight]])}
    with pytest.raises(ConfigError, match=r"its ctc\.weight has a weight of (1e\+05|7e\+04), and fp16 ends at 65504"):
        stored_as(state, "fp16")
    assert stored_as(state, "fp32") is state


def test_a_model_of_the_package_is_transcribed_evaluated_and_exported_by_its_name(tmp_path, monkeypatch, capsys):
    package = tmp_path / "packaged"
    whole = write_small_model(tmp_path / "whole", "full")
    assert chorus(["export", str(whole), "--dtype", "fp16", "--out", str(package / "aelita")]) == 0
    monkeypatch.setattr(model_lookup, "PACKAGED_MODELS", package)
    monkeypatch.chdir(tmp_path)
    soundfile.write("speech.wav", real_speech()[0], 16_000)
    assert chorus(["transcribe", "aelita", "speech.wav"]) == 0
    assert chorus(["export", "aelita", "--format", "huggingface", "--out", "hub"]) == 0
    assert chorus(["publish", "aelita", "--dry-run", "--out", "sent"]) == 0
    assert chorus(["transcribe", "hub", "speech.wav"]) == 0
    capsys.readouterr()
    assert chorus(["export", "aelita", "--format", "huggingface"]) == 2
    assert "say with --out" in capsys.readouterr().err
    assert chorus(["export", "alita", "--format", "huggingface", "--out", "none"]) == 4
    assert "There is no model called alita" in capsys.readouterr().err


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_may_be_read_by_those_who_may_read_the_rest_of_the_folder(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        folder = write_small_model(tmp_path / "model", "one layer")
        # Once more in its own place.
        save_weights(folder, load_file(folder / "model.safetensors"))
    finally:
        os.umask(before)
    for path in folder.rglob("*.*"):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
