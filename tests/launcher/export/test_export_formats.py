"""`chorus export --format`: whole or not at all, and one paragraph for what cannot be exported."""

import errno
import json
import shutil

import pytest
from small_models import write_small_model

from launcher.cli import main as chorus
from launcher.export import hub_folder, whole_folder
from launcher.inference.finished_model import FinishedModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("export") / "model", "full")


def run(capsys, *arguments) -> tuple[int, str]:
    code = chorus(["export", *map(str, arguments)])
    return code, capsys.readouterr().err


def test_a_model_folder_is_exported_and_named(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "hub"
    assert chorus(["export", str(folder), "--format", "huggingface", "--out", str(out), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row.pop("weights_bytes") > 0
    assert row == {"model": str(out), "format": "huggingface", "dtype": "fp32"}
    assert FinishedModel.load(out)
    assert "# model" in (out / "README.md").read_text()
    # From the layout of Hugging Face too.
    assert chorus(["export", str(out), "--format", "huggingface", "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "config.json").read_bytes() == (out / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (("{model}", "--format", "huggingface"), 2, "lies in no run"),
        (("{model}", "--format", "huggingface", "--out", "{full}"), 2, "is there already"),
        (("{model}", "--format", "torch-export", "--out", "{new}", "--int8"), 2, "--int8 is for"),
        (("{model}", "--format", "sherpa-onnx", "--out", "{new}", "--evaluate", "x"), 2, "--evaluate is for"),
        (("{model}", "--format", "onnx", "--out", "{new}", "--licence", "mit"), 2, "--licence is for"),
        (("{model}", "--format", "onnx", "--out", "{new}", "--step", "3"), 2, "leave --step out"),
        (("{new}", "--format", "onnx", "--out", "{new}"), 4, "holds no finished model"),
        (("{full}", "--format", "onnx", "--out", "{new}"), 4, "holds no finished model"),
    ],
)
def test_what_cannot_be_exported_is_one_paragraph(folder, tmp_path, capsys, arguments, code, fragment):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    places = {"model": folder, "full": full, "new": tmp_path / "new"}
    result, message = run(capsys, *(argument.format(**places) for argument in arguments))
    assert result == code
    assert fragment in message
    assert message.count("\n") == 1
    assert not places["new"].exists()
    assert (full / "thesis.txt").read_text() == "years of work"


def test_a_torn_model_is_one_paragraph(folder, tmp_path, capsys):
    torn = tmp_path / "torn"
    shutil.copytree(folder, torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    code, message = run(capsys, torn, "--format", "huggingface", "--out", tmp_path / "new")
    assert code == 4
    assert message.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_an_export_that_is_cut_off_leaves_nothing(folder, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(hub_folder.shutil, "copyfile", fail)
    arguments = ["export", str(folder), "--format", "huggingface", "--out", str(tmp_path / "new")]
    if isinstance(error, ValueError):
        with pytest.raises(ValueError):  # noqa: PT011
            chorus(arguments)
    else:
        assert chorus(arguments) == {OSError: 2, KeyboardInterrupt: 130}[type(error)]
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_removed_by_the_next_export(tmp_path):
    left = tmp_path / ".new.tmp"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    with whole_folder.whole_folder(tmp_path / "new") as folder:
        assert not list(folder.iterdir())
        (folder / "whole").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(folder, tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    code, message = run(capsys, folder, "--format", "onnx", "--out", tmp_path / "new")
    assert code == 2
    assert "chorus-asr[onnx]" in message
    assert package in message
    assert not (tmp_path / "new").exists()
