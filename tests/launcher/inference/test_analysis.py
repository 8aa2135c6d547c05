"""What an evaluation keeps for its report: the hardest utterances, and what experts are chosen for."""

import base64
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from made_shards import RATE_HZ, Said, write_set
from phrases import phrase_utterances
from small_models import write_small_model

from data.remote.settings import StorageConfig
from data.shards.writer import write_split
from launcher.errors import Preempted
from launcher.inference import analysis
from launcher.inference.analysis import NUM_HARDEST, analyse_evaluation, analyse_if_possible
from launcher.inference.evaluation import evaluate_model
from launcher.inference.expert_choices import PAUSE, SILENCE_DB, frame_letters, frame_loudness
from launcher.inference.finished_model import FinishedModel
from launcher.report.analysis_data import PROPERTIES, read_analysis
from launcher.run_folder import RunFolder, read_json, write_lines
from model.search import Hypothesis

PIECES = ["", "\u2581", "\u2581on", "e"]


def test_a_frame_is_of_the_nearest_letter_and_far_from_all_of_them_a_pause():
    aligned = Hypothesis(tokens=[2, 3], frames=[2, 6], ends=[4, 7], score=0.0)
    assert frame_letters(aligned, PIECES, 16) == [*"ooonneeeee"] + [PAUSE] * 6


@pytest.mark.parametrize("tokens", [[], [1], [2, 3]])
def test_without_letters_or_without_times_all_frames_are_a_pause(tokens):
    assert frame_letters(Hypothesis(tokens=tokens, frames=[], score=0.0), PIECES, 3) == [PAUSE] * 3


def test_loudness_is_that_of_each_frame_and_silence_has_one_too():
    waveform = np.concatenate([np.full(100, 0.1), np.zeros(100), np.full(50, 1.0)]).astype(np.float32)
    np.testing.assert_allclose(frame_loudness(waveform, 4, 100.0), [-20, SILENCE_DB, 0, SILENCE_DB], atol=0.01)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A finished evaluation of a model with experts and one without, on a few phrases of two languages."""
    folder = tmp_path_factory.mktemp("analysed")
    run = RunFolder(folder / "run")
    utterances = []
    for number, utterance in enumerate(phrase_utterances(6)):
        utterances.append(replace(utterance, language=("ru", "xx")[number % 2], split="test"))
    write_split(utterances, folder / "test", sample_rate_hz=16_000, shard_seconds=60.0, seed=1)
    stage = SimpleNamespace(models=("sparse", "dense"), split="test", search=None, device="cpu")
    recipe = SimpleNamespace(
        present_folders=lambda run, split: {"": folder / "test"}, cluster=SimpleNamespace(storage=StorageConfig())
    )
    context = SimpleNamespace(stage=stage, recipe=recipe, run=run, folder=run.stage("evaluation"))
    for name, kind in (("sparse", "shared with experts"), ("dense", "full")):
        write_small_model(run.stage(name).model, kind)
        model = FinishedModel.load(run.stage(name).model)
        result = evaluate_model(model, folder / "test", "test", on_batch=lambda done: None)
        write_lines(context.folder.hypotheses_file(name), result["hypotheses"])
    analyse_evaluation(context)
    return context


def test_the_hardest_utterances_have_their_sound_and_the_words_of_every_model(context):
    record = read_json(context.folder.hardest_file)
    assert len(record["utterances"]) == 6
    for utterance in record["utterances"]:
        sound, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(utterance["audio"])))
        assert rate_hz == 16_000
        assert len(sound) / rate_hz == pytest.approx(utterance["seconds"], abs=0.2)
        assert sorted(utterance["models"]) == ["dense", "sparse"]
        for hypothesis in utterance["models"].values():
            assert " ".join(word["word"] for word in hypothesis["words"]) == " ".join(hypothesis["text"].split())


def test_every_choice_of_an_expert_is_counted_once_for_each_property(context):
    record = read_json(context.folder.experts_file("sparse"))
    # Two places of experts in each of four layers; a frame goes to two of three experts.
    assert len(record["layers"]) == 8
    totals = set()
    for layer in record["layers"].values():
        assert sorted(layer) == sorted(PROPERTIES)
        assert layer["language"]["classes"] != [""]
        for choices in layer.values():
            counts_CE = np.array(choices["counts"])
            assert counts_CE.shape == (len(choices["classes"]), 3)
            totals.add(int(counts_CE.sum()))
    assert len(totals) == 1
    assert not context.folder.experts_file("dense").exists()


def test_the_report_reads_what_the_evaluation_keeps(context):
    gaps = []
    read = read_analysis(context.run, ["evaluation"], ["sparse", "dense"], gaps)
    assert gaps == []
    assert len(read.utterances) == 6
    assert all(utterance.audio_url.startswith("data:audio/") for utterance in read.utterances)
    assert [use.model for use in read.experts] == ["sparse"]


def test_an_analysis_can_be_made_again_and_is_the_same(context):
    files = [context.folder.hardest_file, context.folder.experts_file("sparse")]
    before = [path.read_bytes() for path in files]
    analyse_evaluation(context)
    assert [path.read_bytes() for path in files] == before


def test_only_the_hardest_utterances_are_kept_and_long_ones_are_cut(context, tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "MAX_AUDIO_S", 0.5)
    said = [Said(f"u{number:02d}", "да" * (1 + number)) for number in range(NUM_HARDEST + 3)]
    write_set(tmp_path / "test", said)
    context.recipe.present_folders = lambda run, split: {"": tmp_path / "test"}
    rows = [{"key": one.key, "reference": one.text, "hypothesis": ""} for one in said[1:]]
    rows.append({"key": "u00", "reference": "да", "hypothesis": "да"})
    stage = SimpleNamespace(models=("dense",), split="test", search=None, device="cpu")
    folder = context.run.stage("second")
    write_lines(folder.hypotheses_file("dense"), rows)
    second = SimpleNamespace(stage=stage, recipe=context.recipe, run=context.run, folder=folder)
    analyse_evaluation(second)
    utterances = read_json(folder.hardest_file)["utterances"]
    assert [utterance["key"] for utterance in utterances] == [one.key for one in said[: -NUM_HARDEST - 1 : -1]]
    assert utterances[0]["audio_seconds"] == 0.5 < utterances[0]["seconds"]
    sound, _ = soundfile.read(io.BytesIO(base64.b64decode(utterances[0]["audio"])))
    assert len(sound) < RATE_HZ


def test_an_evaluation_whose_hypotheses_are_gone_is_done_and_its_log_says_what_is_missing(context, caplog):
    folder = context.run.stage("without")
    analyse_if_possible(SimpleNamespace(**vars(context) | {"folder": folder}))
    assert "is not analysed for the report: There is no" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(("error", "passes"), [(RuntimeError("out of memory"), False), (Preempted("stop"), True)])
def test_what_nobody_expects_is_logged_whole_and_a_request_to_stop_is_heeded(monkeypatch, caplog, error, passes):
    def fail(*_):
        raise error

    monkeypatch.setattr(analysis, "analyse_evaluation", fail)
    if passes:
        with pytest.raises(Preempted):
            analyse_if_possible(SimpleNamespace())
    else:
        analyse_if_possible(SimpleNamespace())
        assert "Traceback" in caplog.text
        assert "out of memory" in caplog.text
