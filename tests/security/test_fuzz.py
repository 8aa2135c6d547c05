"""Every file of ours, with anything in it: it is read, or one of our errors says what is wrong.

    for every change of every file: read(changed) ends in little memory, or raises one of `OUR_ERRORS`

`make fuzz` tries many more changes than the default run, and other ones each time.
"""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import MEMORY_BYTES

from data.audio import Clip, Utterance
from data.errors import DataError
from data.shard_tools.statistics import stats
from data.shard_tools.survey import survey
from data.shards.index import read_index
from data.shards.reader import ShardReader
from data.shards.sidecars import SidecarWriter, open_sidecars
from data.shards.writer import write_split
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.errors import EXIT_CODES
from launcher.inference.finished_model import FinishedModel
from launcher.monitoring.goodput import measure_goodput
from launcher.monitoring.status import last_rows, open_run, run_status
from launcher.processes.heartbeat import Heartbeat
from launcher.recipe import dump, load_recipe
from launcher.report.run_data import read_run_data
from launcher.run_files import read_done, read_evaluation, read_results, read_set_aside, read_state
from launcher.run_folder import RunFolder, write_json, write_text
from launcher.tracking import read_metrics
from launcher.training.checkpoint.layout import manifest_digest
from launcher.training.checkpoint.reading import Checkpoint
from launcher.training.teachers.cache_match import read_description
from model.encoder import EncoderConfig
from model.export import save_model
from model.layers.subsampling import SubsamplingConfig
from model.recognizer import Recognizer, RecognizerConfig

OUR_ERRORS = tuple(EXIT_CODES)
# Changes of each file: a few, the same in each run; `make fuzz` sets how many others.
EXAMPLES = int(os.environ.get("CHORUS_FUZZ_EXAMPLES", "25"))
FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize="CHORUS_FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
CHECKPOINT = Path(__file__).parents[1] / "fixtures/checkpoints/format-1/step-00000003"
RATE_HZ = 8000

# Values that no file of ours has somewhere.
HOSTILE_VALUES: list[Any] = [None, True, -1, 0, 10**30, 1.5, "", "../x", "x" * 300, [], [[]], {}, {"a": 1}]
HOSTILE_VALUES += [float("nan"), float("inf"), 10**400, -(10**308)]


@dataclass(frozen=True)
class Target:
    """A file in a folder of ours, how the folder is read, and whether a change must be let through by its digest."""

    name: str
    read: Callable[[Path], object]
    seals: bool = False


# --- what is read -------------------------------------------------------------------------------------


def make_split(folder: Path) -> None:
    audio = folder / "a.wav"
    soundfile.write(audio, np.random.default_rng(0).normal(0, 0.1, RATE_HZ), RATE_HZ)
    utterances = []
    for number in range(3):
        utterances.append(Utterance(f"u{number}", (Clip(audio, number / 10, 0.2),), "one two", "train"))
    write_split(utterances, folder / "train", sample_rate_hz=RATE_HZ, shard_seconds=0.3, seed=1)
    split = read_index(folder / "train")
    writer = SidecarWriter(split, folder / "sidecars", (1.0,))
    keys = list(split.keys())
    for shard in range(len(split.names)):
        positions = writer.utterances(shard)
        members = {(row, 0): {"frames": np.arange(3)} for row in range(len(positions))}
        writer.write(shard, keys[positions.start : positions.stop], members)
    writer.finish()
    inputs = {"teacher": "t", "shards": ["s"], "features": None, "tokenizer": None, "precision": "fp32"}
    contents = {"speeds": [1.0], "min_utterance_s": 0.1, "max_utterance_s": 9.0, "layers": [0]}
    contents |= {"ctc": True, "decoder": False, "top_tokens": 4}
    write_json(folder / "sidecars" / "teacher.json", {"name": "t", "heard": inputs, "kept": contents})


def read_split(folder: Path) -> None:
    survey(folder / "train")
    stats(folder / "train")
    index = read_index(folder / "train")
    reader = ShardReader(index, attempts=1)
    for utterance in range(len(index)):
        try:
            reader.read(utterance)
        except DataError:
            continue


def read_sidecars(folder: Path) -> None:
    split = read_index(folder / "train")
    read_description(folder / "sidecars")
    sidecars = open_sidecars(folder / "sidecars", split, attempts=1)
    for utterance, key in enumerate(split.keys()):
        for speed in sidecars.speeds:
            sidecars.read(utterance, speed, key)


def make_run(folder: Path) -> None:
    run = RunFolder(folder / "run")
    run.path.mkdir()
    record = {"kind": "pretrain", "status": "done", "fingerprint": "f", "settings": {}, "inputs": {}, "output": "o"}
    write_json(run.state_file, {"format": 1, "recipe": "mini", "stages": {"teacher": record}})
    write_text(run.recipe_file, dump(load_recipe("mini")))
    for event in ("stage_started", "processes_started", "training_started", "process_lost", "restart"):
        run.append_event(event, stage="teacher", hosts={"here": [0]})
    run.append_event("rolled_back", stage="teacher", step=3, to_step=1)
    stage = run.stage("teacher")
    Heartbeat(stage, 0).beat(3, "train")
    rows = []
    for step in (1, 2, 3):
        row = {"step": step, "time": 1e9 + step, "loss": 2.0, "step_s": 0.5, "data_wait": 0.1, "audio_s_per_s": 3.0}
        rows.append(json.dumps(row | {"experts/layer-00/load": [0.5, 0.5]}))
    write_text(stage.metrics_file, "\n".join(rows) + "\n")
    write_json(stage.done_file, {"status": "done"})
    write_json(stage.record_file, record)
    results = {"models": {"teacher": {"parameters": 9, "test": {"cer": 0.5, "wer": 0.5, "utterances": 2}}}}
    write_json(run.stage("evaluation").evaluation_file, results)
    write_json(run.results_file, results)


def read_run(folder: Path) -> None:
    run = open_run(folder / "run")
    json.dumps(run_status(run))
    read_run_data(run.path)


def read_stage_files(folder: Path) -> None:
    run = RunFolder(folder / "run")
    read_state(run)
    stage = run.stage("teacher")
    stage.read_heartbeats()
    read_done(stage)
    read_set_aside(stage)
    measure_goodput(run.events(), read_metrics(stage.metrics_file), "teacher")
    last_rows(stage.metrics_file)


def read_run_results(folder: Path) -> None:
    run = RunFolder(folder / "run")
    read_evaluation(run.stage("evaluation"))
    read_results(run)


def make_model(folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    values = {"layers": 1, "width": 8, "heads": 2, "feedforward_width": 8, "kernel_size": 3}
    encoder = EncoderConfig.model_validate({**values, "subsampling": SubsamplingConfig(channels=2)})
    config = RecognizerConfig(encoder=encoder)
    tokenizer = train_tokenizer(["one two", "three"], TokenizerConfig(), model / "tokenizer")
    recognizer = Recognizer(config, 80, tokenizer.vocabulary_size)
    save_model(model, config, 80, tokenizer.vocabulary_size, recognizer.state_dict())
    features = load_recipe("mini").features.model_copy(update={"mel_bins": 80}).model_dump(mode="json")
    write_json(model / "features.json", {"config": features, "mean": [0.0] * 80, "std": [1.0] * 80})


def read_model(folder: Path) -> None:
    model = FinishedModel.load(folder / "model")
    model.recognise([np.zeros(4000, np.float32)])


def make_checkpoint(folder: Path) -> None:
    shutil.copytree(CHECKPOINT, folder / "checkpoint")


def read_checkpoint(folder: Path) -> None:
    Checkpoint(folder / "checkpoint").weights()


TARGETS = [
    Target("train/shards.json", read_split),
    Target("train/index.npz", read_split),
    Target("train/transcripts.jsonl", read_split),
    Target("train/shard-000000.tar", read_split),
    Target("sidecars/index.npz", read_sidecars),
    Target("sidecars/teacher.json", read_sidecars),
    Target("sidecars/shard-000000.tar", read_sidecars),
    Target("run/state.json", read_stage_files),
    Target("run/recipe.yaml", read_run),
    Target("run/events.jsonl", read_stage_files),
    Target("run/teacher/metrics.jsonl", read_stage_files),
    Target("run/teacher/heartbeats/rank-00.json", read_stage_files),
    Target("run/teacher/done.json", read_stage_files),
    Target("run/teacher/set-aside.json", read_stage_files),
    Target("run/evaluation/evaluation.json", read_run_results),
    Target("run/results.json", read_run_results),
    Target("model/model.json", read_model),
    Target("model/model.safetensors", read_model),
    Target("model/features.json", read_model),
    Target("model/tokenizer/tokenizer.json", read_model),
    Target("checkpoint/manifest.json", read_checkpoint, seals=True),
    Target("checkpoint/rank-00000.safetensors", read_checkpoint),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of every file of ours."""
    folder = tmp_path_factory.mktemp("ours")
    for make in (make_split, make_run, make_model, make_checkpoint):
        make(folder)
    return folder


# --- how it is changed --------------------------------------------------------------------------------


def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, with bits flipped, or with a stretch replaced."""
    position = draw(st.integers(0, max(0, len(content) - 1)))
    kind = draw(st.sampled_from(["cut", "flip", "replace", "insert", "repeat", "digits"]))
    if kind == "cut":
        return content[:position]
    if kind == "flip":
        flipped = bytearray(content)
        for _ in range(draw(st.integers(1, 4))):
            if flipped:
                flipped[draw(st.integers(0, len(flipped) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(flipped)
    if kind == "digits":
        digits = [place for place, byte in enumerate(content) if byte in b"0123456789"]
        if not digits:
            return content
        place = draw(st.sampled_from(digits))
        return content[:place] + draw(st.sampled_from([b"9", b"-1", b"9" * 30, b"1e999"])) + content[place + 1 :]
    length = draw(st.integers(0, 64))
    if kind == "replace":
        return content[:position] + draw(st.binary(max_size=64)) + content[position + length :]
    if kind == "insert":
        return content[:position] + draw(st.binary(max_size=64)) + content[position:]
    return content[:position] + content[position : position + length] * 2 + content[position + length :]


def changed_value(draw: st.DrawFn, value: Any) -> Any:
    """The same with one value replaced, or one key missing."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        changed = dict(value)
        if draw(st.integers(0, 5)) == 0:
            del changed[key]
        else:
            changed[key] = changed_value(draw, value[key])
        return changed
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], changed_value(draw, value[place]), *value[place + 1 :]]
    return draw(st.sampled_from(HOSTILE_VALUES))


def changed_lines(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON, or lines of JSON, with one value changed."""
    try:
        return json.dumps(changed_value(draw, json.loads(content))).encode()
    except ValueError:
        lines = content.splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    lines[place] = json.dumps(changed_value(draw, json.loads(lines[place]))).encode()
    return b"\n".join(lines) + b"\n"


def seal(content: bytes) -> bytes:
    """A manifest with the digest that it should have, as whoever changes it on purpose would give it."""
    try:
        manifest = json.loads(content)
        manifest.pop("sha256", None)
        return json.dumps(manifest | {"sha256": manifest_digest(manifest)}).encode()
    except (ValueError, AttributeError, TypeError):
        return content


@pytest.fixture(scope="module")
def limited(folder: Path) -> Iterator[None]:
    """A bound on what this process maps beyond what it has when everything was read once: what fails, fails here."""
    for target in TARGETS:
        target.read(folder)
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + MEMORY_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whatever_a_file_holds_it_is_read_or_one_of_our_errors_says_what_is_wrong(folder: Path, target: Target) -> None:
    path = folder / target.name
    content = path.read_bytes()
    is_json = path.suffix in (".json", ".jsonl")

    @FUZZ
    @given(st.data())
    def read_changed(data: st.DataObject) -> None:
        if is_json and data.draw(st.booleans()):
            changed = changed_lines(data.draw, content)
        else:
            changed = changed_bytes(data.draw, content)
        path.write_bytes(seal(changed) if target.seals else changed)
        message = ""
        try:
            target.read(folder)
        except OUR_ERRORS as error:
            message = str(error)
        assert "\n" not in message

    try:
        read_changed()
    finally:
        path.write_bytes(content)
