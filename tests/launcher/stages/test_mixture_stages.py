"""Runs over a mixture: what is done, what changes when a corpus joins, what the stages in the launcher make."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from made_shards import RATE_HZ, Said, some_speech, speech, write_set

from data.errors import DataError
from data.shards.joined_split import read_split
from data.text.tokenizer import Tokenizer
from launcher.errors import ConfigError
from launcher.executor import Executor
from launcher.inference.mixture_evaluation import join_evaluations
from launcher.monitoring.progress import PlainDisplay
from launcher.planning.mixtures import plan_mixture
from launcher.processes.stop_request import StopRequest
from launcher.recipe import load_recipe
from launcher.report.results import tabulate
from launcher.run_folder import RunFolder
from launcher.stages.context import StageContext
from launcher.stages.feasibility import feasibility_warnings
from launcher.stages.pipeline import Pipeline
from launcher.stages.preparation import count_joining_tokens, make_tokenizer, prepare_corpus, training_texts
from launcher.stages.start_checks import check_splits
from launcher.training.inputs import open_inputs


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Three corpora with the splits train and dev; the third has a letter that the others lack, and no dev."""
    folder = tmp_path_factory.mktemp("corpora")
    for number, name in enumerate(("first", "second", "third")):
        said = some_speech(24 - 8 * number, prefix=name)
        for utterance in said:
            utterance.language = "de" if number else "en"
        if name == "third":
            said[0].text = "zzz abc"
        write_set(folder / name / "train", said)
        if name != "third":
            write_set(folder / name / "dev", some_speech(4, prefix=f"{name}-dev"))
    return folder


def load(corpora, mix, *overrides, **options):
    entries = []
    for name, keys in mix.items():
        entries.append({"shards": str(corpora / name), **(keys or {})})
    corpus = {"mix": entries, **options}
    if mix == {"first": None}:
        corpus = {"shards": str(corpora / "first")}
    text = yaml.safe_dump(corpus, default_flow_style=True, width=10**6)
    settings = (f"features.sample_rate_hz={RATE_HZ}", "features.high_hz=3800", "stages.evaluation.split=dev")
    batches = "batches={lanes: 2, seconds: 8}"
    return load_recipe("mini", [f"corpus={text}", batches, *settings, *overrides])


ALONE = {"first": None}
BOTH = {"first": {}, "second": {}}


def tokenized(corpora, run, mix, *overrides, **options):
    recipe = load(corpora, mix, *overrides, **options)
    lines = []
    display = PlainDisplay(sys.stdout)
    display.say = lines.append
    run.path.mkdir(exist_ok=True)
    make_tokenizer(recipe, run, display)
    return recipe, lines


# --- tokenizer and statistics ---------------------------------------------------------------------------------


def test_one_vocabulary_is_made_of_all_corpora_but_those_that_join_later(corpora, tmp_path):
    run = RunFolder(tmp_path / "run")
    tokenized(corpora, run, {**BOTH, "third": {}})
    assert "z" in Tokenizer.load(run.tokenizer).pieces
    tokenized(corpora, run, {**BOTH, "third": {"from_step": 7}})
    assert "z" not in Tokenizer.load(run.tokenizer).pieces
    files = {path.name for path in run.tokenizer.glob("counts-*")}
    assert files == {
        *(f"counts-train-{name}.npz" for name in ("first", "second", "third")),
        "counts-dev-first.npz",
        "counts-dev-second.npz",
    }


def test_the_vocabulary_is_drawn_by_the_temperature_of_the_mixture(corpora, tmp_path):
    counts = {}
    for temperature in (0.0, 1.0):
        recipe = load(corpora, {"first": {}, "third": {}}, temperature=temperature)
        folders = recipe.initial_folders(RunFolder(tmp_path), "train")
        index = read_split(folders)
        texts = list(training_texts(recipe, RunFolder(tmp_path), index))
        assert set(texts) == set(index.transcripts())
        # A text of the third corpus alone.
        counts[temperature] = texts.count("zzz abc")
        hours = {label: part.samples.sum() for label, part in index.indexes.items()}
    assert counts[1.0] == 1
    assert counts[0.0] == pytest.approx(hours["first"] / hours["third"], abs=1)


def test_what_the_tokenizer_does_not_know_of_a_corpus_that_joins_is_said_once(corpora, tmp_path):
    run = RunFolder(tmp_path / "run")
    mix = {"first": {}, "third": {"from_step": 4}}
    tokenized(corpora, run, {"first": {}})
    lines = []
    display = PlainDisplay(sys.stdout)
    display.say = lines.append
    for _ in range(2):
        count_joining_tokens(load(corpora, mix), run, display)
    assert lines == [
        "third: 1 of 8 texts have characters that the tokenizer does not know, and no model will write them: z"
    ]


def test_a_corpus_that_joins_changes_neither_the_tokenizer_nor_the_statistics(corpora, tmp_path):
    contents = []
    for number, mix in enumerate((ALONE, {"first": {"weight": 5}, "third": {"from_step": 0}})):
        run = RunFolder(tmp_path / str(number))
        tokenized(corpora, run, mix)
        contents.append([(run.tokenizer / name).read_bytes() for name in ("tokenizer.model", "features.json")])
    assert contents[0] == contents[1]


def test_what_ctc_cannot_write_is_named_and_counted_when_tokens_are_counted_and_when_a_run_is_planned(tmp_path):
    said = [*some_speech(12), Said("cut-off", "a text of very many characters", waveform=0.1 * np.ones(RATE_HZ // 2))]
    said[-1].waveform[::2] *= -1
    write_set(tmp_path / "first" / "train", said)
    run = RunFolder(tmp_path / "run")
    recipe = load(tmp_path, ALONE)
    (planned,) = [warning["text"] for warning in feasibility_warnings(recipe, run) if warning["stage"] == "teacher"]
    assert "1 of 13 training utterance has more text than CTC can write" in planned
    assert "cut-off (0.5 s, " in planned
    _, lines = tokenized(tmp_path, run, ALONE)
    assert any(planned in line for line in lines if "teacher" in line)
    rows = [json.loads(line) for line in run.infeasible_file.read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"teacher", "student"}
    assert {row["key"] for row in rows} == {"cut-off"}
    assert all(row["frames"] < row["needed_frames"] == len("a text of very many characters") for row in rows)
    assert next(feasibility_warnings(recipe, run))["text"] == planned


# --- preparation -------------------------------------------------------------------------------------------------


def test_a_corpus_of_a_mixture_that_has_to_be_prepared_lies_under_its_label_and_counts_by_its_recordings(
    corpora, tmp_path
):
    manifest = tmp_path / "own" / "manifest.jsonl"
    manifest.parent.mkdir()
    rows = []
    for number in range(6):
        samples = speech(1.5, number)
        soundfile.write(manifest.parent / f"{number}.wav", samples, RATE_HZ)
        rows.append({"audio": f"{number}.wav", "text": f"word {'abcdef'[number]}", "split": "train"})
    manifest.write_text("\n".join(map(json.dumps, rows)))
    own = {"name": "folder", "manifest": str(manifest), "label": "own"}
    corpus = {"mix": [{"shards": str(corpora / "first")}, own]}
    text = yaml.safe_dump(corpus, default_flow_style=True, width=10**6)
    recipe = load_recipe("mini", [f"corpus={text}", f"features.sample_rate_hz={RATE_HZ}", "features.high_hz=3800"])
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    assert [key for key, _ in recipe.corpus_paths()] == ["corpus.mix.own.manifest"]

    recipe = recipe.model_copy(update={"stages": recipe.stages[:2]})
    pipeline = Pipeline(recipe, run)
    node = pipeline.node("prepare")
    pipeline.started(node, pipeline.status_of(node))
    prepare_corpus(recipe, run, PlainDisplay(sys.stdout))
    pipeline.ended(node, "done")
    assert (run.corpus / "own" / "train" / "shards.json").is_file()
    index = StageContext.training(recipe, run, "teacher").read_index("train")
    assert {label: len(part) for label, part in index.indexes.items()} == {"first": 24, "own": 6}
    assert Pipeline(recipe, run).status_of(node).done

    soundfile.write(manifest.parent / "3.wav", speech(1.5, 33), RATE_HZ)
    assert "1 recordings" in Pipeline(recipe, run).status_of(node).reason


# --- batches ------------------------------------------------------------------------------------------------------


def batches_of(recipe, run, lanes, split="train", steps=6):
    context = StageContext.training(recipe, run, "teacher")
    inputs = open_inputs(context, split, lanes, torch.device("cpu"))
    return [[(batch.step, batch.lane, batch.keys, batch.texts) for batch in step] for step in inputs.steps(0, steps)]


def test_two_processes_read_together_what_one_reads_and_every_corpus_is_there(corpora, tmp_path):
    run = RunFolder(tmp_path / "run")
    recipe, _ = tokenized(corpora, run, BOTH, temperature=0.0)
    whole = batches_of(recipe, run, (0, 1))
    apart = [batches_of(recipe, run, (lane,)) for lane in (0, 1)]
    assert [first + second for first, second in zip(*apart, strict=True)] == whole
    keys = [key for step in whole for _, _, batch_keys, _ in step for key in batch_keys]
    assert {key[:5] for key in keys} == {"first", "secon"}
    texts = {text for step in whole for *_, batch_texts in step for text in batch_texts}
    assert len(texts) > 10


def test_validation_reads_the_sets_of_all_corpora_once(corpora, tmp_path):
    run = RunFolder(tmp_path / "run")
    recipe, _ = tokenized(corpora, run, {**BOTH, "third": {}})
    context = StageContext.training(recipe, run, "teacher")
    steps = open_inputs(context, "dev", (0, 1), torch.device("cpu")).sampler.steps_per_epoch
    keys = [key for step in batches_of(recipe, run, (0, 1), "dev", steps) for batch in step for key in batch[2]]
    assert sorted(keys) == sorted(f"{name}-dev{number:03d}" for name in BOTH for number in range(4))


def test_a_temperature_over_languages_reads_each_language_as_often_as_the_other(corpora, tmp_path):
    run = RunFolder(tmp_path / "run")
    recipe, _ = tokenized(corpora, run, {**BOTH, "third": {}}, temperature=0.0, over="languages")
    rows = plan_mixture(recipe, run, recipe.training_stage("teacher"))
    assert [row["corpus"] for row in rows] == ["first/en", "second/de", "third/de"]
    assert rows[0]["share"] == pytest.approx(0.5, abs=1e-3)
    assert sorted(path.name for path in (run.path / ".languages").iterdir()) == ["first.npz", "second.npz", "third.npz"]
    # From the files, which say the same.
    assert plan_mixture(recipe, run, recipe.training_stage("teacher")) == rows


def test_a_plan_says_hours_shares_and_epochs_of_each_corpus(corpora, tmp_path):
    run = RunFolder(tmp_path / "run")
    recipe = load(
        corpora, {"first": {"weight": 3}, "second": {}, "third": {"from_step": 20}}, "stages.teacher.steps=60"
    )
    first, second, third = plan_mixture(recipe, run, recipe.training_stage("teacher"))
    assert first["hours"] > second["hours"] > third["hours"] > 0
    assert [row["share"] for row in (first, second, third)] == pytest.approx([0.6, 0.2, 0.2], abs=1e-3)
    for row in (first, second, third):
        assert row["hours_read"] == pytest.approx(row["epochs"] * row["hours"], rel=0.05, abs=1e-3)
    assert third["from_step"] == 20
    assert second["hours_read"] > third["hours_read"] > 0
    alone = load(corpora, ALONE)
    assert plan_mixture(alone, run, alone.training_stage("teacher")) == []


def test_corpora_at_different_rates_and_one_without_a_training_split_are_refused(corpora, tmp_path):
    run = RunFolder(tmp_path / "run")
    write_set(tmp_path / "wide" / "train", some_speech(3), sample_rate_hz=16000)
    shutil.copytree(corpora / "first", tmp_path / "first")
    recipe = load(tmp_path, {"first": {}, "wide": {}})
    with pytest.raises(DataError, match="first 8000 Hz and wide 16000 Hz"):
        StageContext.training(recipe, run, "teacher").read_index("train")
    shutil.move(tmp_path / "wide" / "train", tmp_path / "wide" / "training")
    with pytest.raises(DataError, match=r"wide has no split train.*Rename training to train"):
        check_splits(recipe, run)


# --- what counts as done -----------------------------------------------------------------------------------------


def settings_of(corpora, mix, stage="teacher", **options):
    run = RunFolder(corpora / "nowhere")
    pipeline = Pipeline(load(corpora, mix, **options), run)
    node = pipeline.node(stage)
    return node.settings.values, node.inputs, pipeline


def test_a_recipe_without_a_mixture_has_the_settings_that_it_had(corpora):
    for stage in ("prepare", "tokenizer", "teacher", "evaluation"):
        values, inputs, pipeline = settings_of(corpora, ALONE, stage)
        assert "mixture" not in values
        mixed, mixed_inputs, mixed_pipeline = settings_of(corpora, {"first": {"weight": 4}}, stage)
        assert (mixed, mixed_inputs) == (values, inputs)
        for name in ("corpus/train", "corpus/dev"):
            assert mixed_pipeline._input_hash(name) == pipeline._input_hash(name)


class HalfTrained:
    """A run whose teacher has a checkpoint of some step; nothing is trained."""

    def __init__(self, corpora, folder, mix, step, **options):
        self.corpora = corpora
        self.run = RunFolder(folder)
        tokenized(corpora, self.run, mix, **options)
        pipeline = self.executor(mix, **options)._pipeline
        for name in ("prepare", "tokenizer", "teacher"):
            node = pipeline.node(name)
            pipeline.started(node, pipeline.status_of(node))
            pipeline.ended(node, "stopped" if name == "teacher" else "done")
        checkpoint = self.run.stage("teacher").checkpoints / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
        assert self.run.stage("teacher").checkpoint_steps() == [step]

    def executor(self, mix, extended=(), **options):
        recipe = load(self.corpora, mix, **options)
        executor = Executor(recipe, self.run, StopRequest(), PlainDisplay(sys.stdout), extended=extended)
        executor._perform = lambda node: None
        return executor

    def go_on(self, mix, **options):
        """The events of a run that goes on under another mixture, up to the training."""
        executor = self.executor(mix, **options)
        executor.check_half_trained()
        executor.run(only=frozenset({"prepare", "tokenizer", "teacher"}))
        return [event for event in self.run.events() if event["event"].startswith(("stage_", "plan"))]


@pytest.mark.parametrize("begun", [ALONE, {"first": {}}, BOTH])
def test_a_half_trained_stage_goes_on_when_a_corpus_joins_after_what_it_has_done(corpora, tmp_path, begun):
    half = HalfTrained(corpora, tmp_path, begun, step=8)
    joined = {**{name: {} for name in begun}, "third": {"from_step": 8}}
    events = half.go_on(joined)
    extended = [event for event in events if event["event"] == "stage_extended"]
    assert len(extended) == 1
    assert (extended[0]["stage"], extended[0]["from_step"]) == ("teacher", 8)
    assert "third" in extended[0]["changes"]
    assert "stage_set_aside" not in {event["event"] for event in events}
    # The tokenizer is not made again, and the same command does not extend again.
    assert "tokenizer" not in {event["stage"] for event in events}
    assert len([event for event in half.go_on(joined) if event["event"] == "stage_extended"]) == 1


@pytest.mark.parametrize(
    ("changed", "options", "named"),
    [
        ({"first": {}, "third": {"from_step": 7}}, {}, "third"),
        ({"first": {}, "third": {}}, {}, "third"),
        ({"second": {}, "third": {"from_step": 8}}, {}, "input corpus/train"),
        ({"first": {}}, {"over": "languages"}, "mixture.over"),
    ],
)
def test_a_half_trained_stage_is_refused_when_the_mixture_changes_what_it_has_read(
    corpora, tmp_path, changed, options, named
):
    half = HalfTrained(corpora, tmp_path, ALONE, step=8)
    with pytest.raises(ConfigError, match=named):
        half.executor(changed, **options).check_half_trained()


def test_an_evaluation_depends_on_the_sets_of_all_corpora(corpora):
    _, _, alone = settings_of(corpora, ALONE)
    _, _, both = settings_of(corpora, BOTH)
    _, _, later = settings_of(corpora, {"first": {}, "second": {"from_step": 5}})
    assert alone._input_hash("corpus/dev") != both._input_hash("corpus/dev") == later._input_hash("corpus/dev")
    assert alone._input_hash("corpus/train") == later._input_hash("corpus/train") != both._input_hash("corpus/train")


# --- evaluation ---------------------------------------------------------------------------------------------------


def evaluation(rows, seconds, quarantined=0):
    return {
        "parameters": 7,
        "dev": {
            "cer": 0.0,
            "wer": 0.0,
            "utterances": len(rows),
            "quarantined": quarantined,
            "seconds": seconds,
            "rtf": 0.5,
            "search": {"kind": "greedy"},
        },
        "hypotheses": [{"key": key, "reference": ref, "hypothesis": hyp} for key, ref, hyp in rows],
    }


def test_an_evaluation_of_a_mixture_lists_every_set_and_the_total_of_all_utterances():
    joint = join_evaluations(
        "dev",
        {
            "long": evaluation([("a", "one two three four", "one two three for")], 8.0),
            "short": evaluation([("a", "five", "six"), ("b", "seven", "seven")], 2.0, quarantined=1),
        },
    )
    total = joint["dev"]
    assert total["wer"] == pytest.approx(2 / 6)
    assert (total["utterances"], total["quarantined"], total["seconds"]) == (3, 1, 10.0)
    assert total["rtf"] == pytest.approx(0.5)
    assert list(total["sets"]) == ["long", "short"]
    assert [(row["corpus"], row["key"]) for row in joint["hypotheses"]] == [
        ("long", "a"),
        ("short", "a"),
        ("short", "b"),
    ]
    table = str(tabulate({"student": joint}, {}))
    assert [line.split("  ")[0] for line in table.splitlines()[1:]] == [
        "student",
        "student on long",
        "student on short",
    ]
