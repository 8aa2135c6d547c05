"""What teachers give, stored beforehand: what is kept of it, when it is used, and what a training makes of it."""

import io
import json
import math
import shutil

import processes
import pytest
import torch
import yaml
from conftest import write_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import STAGE, write_shards, write_teacher
from test_foreign_teachers import save
from torch.nn import functional

import launcher.training.write_teacher_cache
from data.augmentation import AugmentConfig
from data.augmentation.config import WAVEFORM_KINDS
from data.seeds import derive_seed
from data.shards.sidecars import SidecarWriter
from data.text.tokenizer import Tokenizer
from launcher.cli import main
from launcher.errors import ConfigError, Preempted
from launcher.executor import Executor
from launcher.inference.finished_model import FinishedModel
from launcher.monitoring.progress import PlainDisplay
from launcher.processes.stop_request import StopRequest
from launcher.recipe import Recipe, check_model_folders, dump, load_recipe
from launcher.recipe.teachers import MASKS
from launcher.run_folder import RunFolder, write_json
from launcher.stages.context import StageContext
from launcher.stages.pipeline import build_pipeline
from launcher.tracking import read_metrics
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.distillation.setup import load_teachers, read_caches
from launcher.training.initialization import initialize_from_first_teacher
from launcher.training.inputs import Inputs, open_inputs
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.teachers.cache_codec import compact, restore
from launcher.training.teachers.cache_match import DESCRIPTION, CacheContents, choose_caches, describe_choice, spec_of
from launcher.training.teachers.cached import CachedTeacher
from launcher.training.teachers.teacher import TeacherOutput
from model.student import Student

CPU = torch.device("cpu")
# Rounding to fp16, relative: 11 bits.
ROUNDING = 2.0**-11
WHOLE = 10_000
TERMS = {
    "hidden": {"layers": [0, 1], "cosine": 0.5},
    "ctc": {"temperature": 2.0},
    "sequence": {"weight": 0.5},
    "units": {"weight": 0.5, "count": 5, "steps": 1},
    "cache": {"top_tokens": WHOLE},
}


@pytest.fixture(scope="module")
def own_shards(tmp_path_factory):
    """Shards of this module alone: caches lie beside them."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def make_student(make_run, own_shards, tmp_path_factory):
    """Makes runs whose stage learns all terms from one finished teacher; `changes` are recipe overrides."""
    teacher = tmp_path_factory.mktemp("teacher") / "model"

    def make(name: str, *changes: str) -> RunFolder:
        # With this front-end no two texts of the teacher are so near that fp16 decides between them.
        front_end = f"stages.{STAGE}.model.encoder.subsampling.convolutions=separable"
        run = make_run(name, (front_end,))
        if not teacher.exists():
            write_teacher(run, teacher, groups=2, experts=None)
        start = yaml.safe_load((run.path / "start.yaml").read_text())
        start["corpus"]["shards"] = str(own_shards)
        start["stages"][0] |= {"kind": "distill", "distill": TERMS, "steps": 4, "log_every": 1}
        start["stages"][0]["teachers"] = [{"name": "wise", "model": str(teacher), "input": "clean"}]
        (run.path / "start.yaml").write_text(yaml.safe_dump(start))
        write_recipe(run, (front_end, *changes))
        write_json(run.state_file, {"format": 1, "recipe": "small", "stages": {}})
        return run

    return make


@pytest.fixture(scope="module")
def cached(make_student) -> RunFolder:
    """A run whose teacher's outputs are stored, all tokens of them."""
    run = make_student("cached")
    assert main(["cache-teacher", f"{run.path}/{STAGE}"]) == 0
    return run


def store(run: RunFolder, capsys, *options: str) -> dict:
    """`chorus cache-teacher --json`: what it says of the one teacher."""
    assert main(["cache-teacher", f"{run.path}/{STAGE}", "--json", *options]) == 0
    (found,) = json.loads(capsys.readouterr().out)["caches"]
    return found


def chosen(run: RunFolder, *changes: str):
    recipe = load_recipe(run.recipe_file, changes)
    return choose_caches(StageContext(recipe, run, recipe.training_stage(STAGE)))["wise"]


# --- what is kept of an output ----------------------------------------------------------------------


def divergence(p_V: torch.Tensor, q_V: torch.Tensor) -> float:
    log_p, log_q = p_V.double().log_softmax(-1), q_V.double().log_softmax(-1)
    return functional.kl_div(log_q, log_p, reduction="sum", log_target=True).item()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), kept=st.integers(1, 14), sharpness=st.floats(0.1, 9.0))
def test_a_posterior_cut_to_its_likeliest_tokens_is_a_posterior_and_as_far_from_others(seed, kept, sharpness):
    """|KL(p || q) - KL(p' || q)| <= r (log(V - k) + range of log q of the rest) + 2^-10 sum p |log p| (|log p/q| + 1).

    The second part is fp16's: a log probability moves by a share of 2^-11 of itself, and p with it, twice for the norm.
    """
    generator = torch.Generator().manual_seed(seed)
    p_V, q_V = sharpness * torch.randn(12, generator=generator), torch.randn(12, generator=generator)
    output = TeacherOutput([], torch.tensor([1]), ctc_BSV=p_V[None, None])
    keep = CacheContents(
        speeds=(1.0,), min_utterance_s=0, max_utterance_s=9, layers=(), ctc=True, decoder=False, top_tokens=kept
    )
    found = restore(compact(output, torch.tensor([0]), keep), 12, CPU)
    restored_V = found.ctc_BSV[0, 0]
    assert restored_V.logsumexp(-1).item() == pytest.approx(0.0, abs=4 * ROUNDING * (1 + sharpness * 6))
    log_p, log_q = p_V.log_softmax(-1), q_V.log_softmax(-1)
    order = log_p.argsort(descending=True)
    rest = order[kept:]
    assert (restored_V - log_p)[order[:kept]].abs().max() <= ROUNDING * log_p.abs().max()
    cut = 0.0
    if len(rest):
        cut = log_p[rest].exp().sum().item() * (math.log(len(rest)) + (log_q[rest].max() - log_q[rest].min()).item())
    rounding = 2 * ROUNDING * (log_p.exp() * log_p.abs() * ((log_p - log_q).abs() + 1)).sum().item()
    # A rest that is nearly nothing rounds too.
    tail = 2 * ROUNDING * 20 * cut
    assert abs(divergence(restored_V, q_V) - divergence(p_V, q_V)) <= cut + rounding + tail + 1e-6


def test_a_state_that_fp16_cannot_hold_is_refused():
    states = torch.zeros(1, 3, 4)
    states[0, 2, 1] = 7e4
    keep = CacheContents(
        speeds=(1.0,), min_utterance_s=0, max_utterance_s=9, layers=(0,), ctc=False, decoder=False, top_tokens=1
    )
    compact(TeacherOutput([states], torch.tensor([2])), torch.tensor([0]), keep)
    with pytest.raises(ConfigError, match="Layer 0 of the teacher has a state that fp16 cannot hold"):
        compact(TeacherOutput([states], torch.tensor([3])), torch.tensor([0]), keep)


# --- the same losses --------------------------------------------------------------------------------


def open_stage(run: RunFolder, recipe: Recipe, use_cache: bool) -> tuple[DistillationLoss, Student, Inputs]:
    """The stage's loss, student and inputs of all lanes, in this process."""
    stage = recipe.training_stage(STAGE)
    tokenizer = Tokenizer.load(run.tokenizer)
    lanes = tuple(range(recipe.batches.lanes))
    context = StageContext(recipe, run, stage)
    inputs = open_inputs(context, "train", lanes, CPU, recipe.augment)
    caches = choose_caches(context) if use_cache else None
    teachers, auxiliary_heads = load_teachers(context, tokenizer.pieces, CPU, caches)
    width = spec_of(context, stage.named_teachers[0]).width
    teachers[0].centroids_CD = torch.randn(5, width, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    student = Student(stage.model, recipe.features.mel_bins, tokenizer.vocabulary_size, auxiliary_heads).train()
    recognition = RecognitionLoss(stage.objective, stage.model.encoder)
    stage_loss = DistillationLoss(recognition, stage.distill, teachers, auxiliary_heads)
    inputs.keeps_source = not use_cache
    read_caches(stage_loss, inputs, stage.steps)
    return stage_loss, student, inputs


def terms_of(stage_loss: DistillationLoss, student: Student, inputs: Inputs, step: int) -> list[dict[str, float]]:
    found = []
    for batches in inputs.steps(step, step + 1):
        for batch in batches:
            torch.manual_seed(derive_seed(1, "dropout", batch.step, batch.lane))
            terms, _ = stage_loss(student, inputs.micro_batch(batch), inputs.totals(step), 0.0)
            found.append({name: float(term) for name, term in terms.items()})
    return found


@torch.no_grad()
def test_a_stored_teacher_costs_what_one_that_runs_does_at_every_speed(cached):
    """Rounding moves (s - t)^2 by 2 |t / (s - t)| 2^-11 of itself and -log sigmoid(cos) by less; a divergence by
    2^-10 sum p |log p| (|log p / q| + 1) per token or frame, here (V < 50) by less than 2^-10 x 4 x (1 + 1)."""
    recipe = load_recipe(cached.recipe_file, [f"stages.{STAGE}.steps=100"])
    online, stored = (open_stage(cached, recipe, use_cache) for use_cache in (False, True))
    assert isinstance(stored[0].teachers[0].teacher, CachedTeacher)
    sampler = stored[2].sampler
    last = sampler.steps_per_epoch - 1
    speeds = {
        speed for step in (0, last) for lane in range(4) for speed in sampler.micro_batch(step, lane).speeds.tolist()
    }
    assert len(speeds) == 3
    distillation_terms = {f"distill/{term}" for term in ("hidden", "cosine", "ctc", "decoder", "sequence", "units")}
    for step in (0, last):
        for online_terms, stored_terms in zip(terms_of(*online, step), terms_of(*stored, step), strict=True):
            assert distillation_terms < online_terms.keys() == stored_terms.keys()
            for name, value in online_terms.items():
                tolerance = {"rel": 4 * ROUNDING, "abs": 16 * ROUNDING if "distill" in name else 1e-6}
                assert stored_terms[name] == pytest.approx(value, **tolerance), name


@torch.no_grad()
def test_a_teacher_of_waveforms_can_be_stored(make_student, tmp_path, capsys):
    """States of another width and frame rate; those that were rounded are interpolated like the others."""
    save("torchaudio-layer", tmp_path / "model")
    run = make_student(
        "strange",
        f"stages.{STAGE}.steps=100",
        f"stages.{STAGE}.teachers=[{{name: strange, model: {tmp_path}/model, layers: [0, 2]}}]",
        f"stages.{STAGE}.distill={{hidden: {{layers: [0, 1], projection: true, resample: true}}, ctc: {{weight: 0}}, "
        "decoder: {weight: 0}, units: {weight: 1, count: 5}}",
    )
    assert store(run, capsys)["teacher"] == "strange"
    recipe = load_recipe(run.recipe_file)
    online, stored = (open_stage(run, recipe, use_cache) for use_cache in (False, True))
    assert isinstance(stored[0].teachers[0].teacher, CachedTeacher)
    for online_terms, stored_terms in zip(terms_of(*online, 0), terms_of(*stored, 0), strict=True):
        assert {"distill/hidden", "distill/units"} < online_terms.keys()
        assert stored_terms == pytest.approx(online_terms, rel=4 * ROUNDING)


def test_a_lane_without_utterances_reads_nothing_and_costs_nothing(cached):
    stage_loss, student, inputs = open_stage(cached, load_recipe(cached.recipe_file), use_cache=True)
    batch = next(inputs.steps(0, 1))[0]
    empty = type(batch)(0, 0, [], batch.waveforms_BS[:0], batch.samples_B[:0], batch.tokens_BU[:0],
                        batch.token_lengths_B[:0], [], [], {"wise": []})  # fmt: skip
    terms, _ = stage_loss(student, inputs.micro_batch(empty), inputs.totals(0), 0.0)
    assert {"distill/hidden", "distill/ctc", "distill/decoder", "distill/units", "distill/sequence"} < terms.keys()
    assert all(term.item() == 0 for term in terms.values())


def test_a_stored_teacher_is_not_loaded_but_to_start_from_it(cached, monkeypatch):
    loaded = []
    load = FinishedModel.load
    monkeypatch.setattr(FinishedModel, "load", lambda *arguments: loaded.append(arguments) or load(*arguments))
    recipe = load_recipe(cached.recipe_file)
    stage = recipe.training_stage(STAGE)
    stage_loss, student, _ = open_stage(cached, recipe, use_cache=True)
    assert not loaded
    initialize_from_first_teacher(student, stage, stage_loss.teachers[0])
    assert len(loaded) == 1
    assert student.ctc.weight.equal(load(*loaded[0]).recognizer.ctc.weight)


# --- when it is used --------------------------------------------------------------------------------


def test_a_stage_says_which_cache_it_reads_and_why_it_does_not_read_another(cached, make_student, tmp_path):
    found = chosen(cached)
    assert found.folder
    assert describe_choice("wise", found) == f"the outputs of teacher wise are read from {found.folder}"
    stage = f"stages.{STAGE}"
    reasons = {
        "augment.speeds=[0.9, 1.2]": "it lacks the speed factor 1.2",
        f"{stage}.batches={{lanes: 4, seconds: 6, max_utterance_s: 60}}": "holds utterances of 0.1 to 30 s alone",
        f"{stage}.distill.hidden.layers=[0]": "",
        f"{stage}.distill.cache.top_tokens=4": "",
        f"{stage}.distill.cache.top_tokens=20000": "keeps 10000 tokens of a posterior",
        "features.mel_bins=80": "",
        "features.low_hz=50": "other features",
        "cluster.precision=bf16": "precision fp32, and cluster.precision is bf16",
    }
    for change, reason in reasons.items():
        choice = chosen(cached, change)
        assert (choice.folder is None) == bool(reason), change
        assert reason in choice.reason, change
    assert chosen(cached, f"{stage}.distill.cache.use=never").folder is None
    # Its own folder, and nothing there: nothing to tell, unless one is required.
    elsewhere = f"{stage}.distill.cache={{folder: {tmp_path}, top_tokens: {WHOLE}, use: %s}}"
    assert describe_choice("wise", chosen(cached, elsewhere % "auto")) == ""
    with pytest.raises(ConfigError, match=rf"has none in {tmp_path}. Run `chorus cache-teacher .*/{STAGE}`"):
        chosen(cached, elsewhere % "require")


def test_the_launcher_says_before_a_stage_starts_what_its_teachers_do(cached):
    said = io.StringIO()
    recipe = load_recipe(cached.recipe_file)
    context = StageContext.training(recipe, cached, STAGE)
    Executor(recipe, cached, StopRequest(), PlainDisplay(said))._settle_caches(context)
    assert said.getvalue() == f"{STAGE}: the outputs of teacher wise are read from {chosen(cached).folder}\n"


def test_a_stage_may_make_its_caches_when_it_starts(cached, tmp_path):
    change = f"stages.{STAGE}.distill.cache={{use: make, folder: {tmp_path}, top_tokens: 8}}"
    recipe = load_recipe(cached.recipe_file, [change])
    context = StageContext.training(recipe, cached, STAGE)
    for written in ("6 of 6 shards written", "are read from"):
        said = io.StringIO()
        Executor(recipe, cached, StopRequest(), PlainDisplay(said))._settle_caches(context)
        assert written in said.getvalue()
        assert f"are read from {chosen(cached, change).folder}\n" in said.getvalue()
    assert "written" not in said.getvalue()
    assert len(list(tmp_path.iterdir())) == 1


def test_another_teacher_of_the_same_name_is_not_taken_for_the_stored_one(cached, make_student, tmp_path):
    write_teacher(cached, tmp_path / "model", seed=9, groups=2, experts=None)
    teachers = f"stages.{STAGE}.teachers=[{{name: wise, model: {tmp_path}/model, input: clean}}]"
    choice = chosen(cached, teachers)
    assert choice.folder is None
    assert "it was made with another teacher (" in choice.reason
    assert str(chosen(cached).folder) in choice.reason


def test_masks_of_the_teachers_input_cannot_be_stored(cached, capsys):
    recipe = yaml.safe_load(cached.recipe_file.read_text())
    recipe["stages"][0]["teachers"][0]["input"] = "augmented"
    run = RunFolder(cached.path.with_name("masked"))
    shutil.copytree(cached.path, run.path)
    run.recipe_file.write_text(yaml.safe_dump(recipe))
    assert main(["cache-teacher", f"{run.path}/{STAGE}"]) == 2
    said = capsys.readouterr().err
    assert "its input has masks that are drawn anew at every step (augment.frequency_masks is 2)" in said
    assert "input: clean" in said
    assert "masks that are drawn anew" in chosen(run).reason
    with pytest.raises(ConfigError, match=r"is to read its teacher .* there can be none: its input has masks"):
        check_model_folders(load_recipe(run.recipe_file, [f"stages.{STAGE}.distill.cache.use=require"]))
    without = [f"augment.{key}=0" for key in MASKS]
    # Without masks augmented input is clean input.
    assert chosen(run, *without).folder == chosen(cached).folder


@pytest.mark.parametrize("kind", [*WAVEFORM_KINDS, "time_warp"])
def test_what_is_drawn_anew_at_every_step_cannot_be_stored(cached, kind, capsys):
    section = "{probability: 0.25}"
    if kind == "noise":
        section = "{probability: 0.25, recordings: /nowhere}"
    change = f"augment.{kind}={section}"
    run = RunFolder(cached.path.with_name(f"augmented-{kind}"))
    shutil.copytree(cached.path, run.path)
    run.recipe_file.write_text(dump(load_recipe(cached.recipe_file, [change])))
    choice = chosen(run)
    assert choice.folder is None
    assert "anew at every step" in choice.reason
    assert f"(augment.{kind} has a probability of 0.25)" in choice.reason
    assert main(["cache-teacher", f"{run.path}/{STAGE}"]) == 2
    assert f"cannot be stored: {choice.reason}" in capsys.readouterr().err
    for use in ("require", "make"):
        with pytest.raises(ConfigError, match=f"there can be none: .*augment.{kind} has a probability of 0.25"):
            check_model_folders(load_recipe(run.recipe_file, [f"stages.{STAGE}.distill.cache.use={use}"]))
    # What never happens is no reason.
    assert chosen(run, f"augment.{kind}.probability=0").folder == chosen(cached).folder


def test_nothing_else_of_augmentation_changes_from_step_to_step():
    """A new one must be stored, as speeds are, or be among those that cannot be."""
    widths = {"frequency_width_bins", "time_width_s", "time_ratio"}
    assert set(AugmentConfig.model_fields) == {"speeds", *MASKS, *WAVEFORM_KINDS, "time_warp"} | widths


def test_frames_of_warped_features_are_not_compared_with_a_teacher_of_waveforms(cached):
    warped = "augment.time_warp={}"
    waveform = f"stages.{STAGE}.teachers=[{{name: wise, model: %s, input: waveform%s}}]"
    model = yaml.safe_load(cached.recipe_file.read_text())["stages"][0]["teachers"][0]["model"]
    with pytest.raises(
        ConfigError, match=r"frame by frame in distill\.ctc, .* warped along time \(augment\.time_warp\)"
    ):
        check_model_folders(load_recipe(cached.recipe_file, [warped, waveform % (model, "")]))
    # A decoder and a whole text go along with any warp.
    terms = ", terms: [decoder, sequence]"
    silent = [f"stages.{STAGE}.distill.{term}.weight=0" for term in ("ctc", "hidden", "units")]
    silent.append(f"stages.{STAGE}.distill.hidden.cosine=0")
    check_model_folders(load_recipe(cached.recipe_file, [warped, waveform % (model, terms), *silent]))
    check_model_folders(load_recipe(cached.recipe_file, [waveform % (model, "")]))


def test_a_cache_changes_nothing_of_what_a_stage_is(cached):
    plain, other = (
        build_pipeline(load_recipe(cached.recipe_file, changes))
        for changes in ([], [f"stages.{STAGE}.distill.cache={{use: never, top_tokens: 3, folder: /elsewhere}}"])
    )
    assert plain == other


# --- the command ------------------------------------------------------------------------------------


def test_a_command_that_was_stopped_goes_on_and_a_second_one_does_nothing(cached, make_student, tmp_path, capsys,
                                                                          monkeypatch):  # fmt: skip
    write = SidecarWriter.write

    def write_two(writer, shard, keys, members):
        if shard == 2:
            raise Preempted("The run was asked to stop.")
        return write(writer, shard, keys, members)

    monkeypatch.setattr(SidecarWriter, "write", write_two)
    assert main(["cache-teacher", f"{cached.path}/{STAGE}", "--out", str(tmp_path)]) == 75
    monkeypatch.undo()
    (folder,) = tmp_path.iterdir()
    use = f"stages.{STAGE}.distill.cache={{folder: {tmp_path}, top_tokens: {WHOLE}}}"
    assert "it is not finished, 2 of 6 shards are written" in chosen(cached, use).reason
    capsys.readouterr()
    found = store(cached, capsys, "--out", str(tmp_path))
    assert (found["shards"], found["written"], found["left_out"]) == (6, 4, [])
    assert chosen(cached, use).folder == folder
    whole = chosen(cached).folder
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == {
        path.name: path.read_bytes() for path in whole.glob("*.tar")
    }
    assert store(cached, capsys, "--out", str(tmp_path))["written"] == 0
    tar = folder / "shard-000003.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    assert store(cached, capsys, "--out", str(tmp_path))["written"] == 0
    assert store(cached, capsys, "--out", str(tmp_path), "--verify")["written"] == 1
    assert tar.read_bytes() == (whole / tar.name).read_bytes()


def test_a_disk_without_room_is_told_before_anything_is_written(cached, tmp_path, capsys, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10**6)  # pyright: ignore
    monkeypatch.setattr(launcher.training.write_teacher_cache.shutil, "disk_usage", lambda path: usage)
    assert main(["cache-teacher", f"{cached.path}/{STAGE}", "--out", str(tmp_path)]) == 3
    assert "for 6 shards, and the disk has 0.0 GB" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tar"))


def test_the_room_that_is_asked_for_is_what_is_taken(cached, tmp_path, capsys, monkeypatch):
    """Never less, and no more than a third above it: characters stand for tokens, and members for their overhead."""
    expected = []
    estimate = launcher.training.write_teacher_cache.expected_bytes
    monkeypatch.setattr(
        launcher.training.write_teacher_cache,
        "expected_bytes",
        lambda *of: expected.append(estimate(*of)) or expected[0],
    )
    taken = store(cached, capsys, "--out", str(tmp_path))["bytes"]
    assert taken <= expected[0] <= 1.33 * taken


def test_a_stage_without_a_teacher_has_nothing_to_store(make_run, capsys):
    run = make_run("plain")
    write_json(run.state_file, {"format": 1, "recipe": "small", "stages": {}})
    assert main(["cache-teacher", f"{run.path}/{STAGE}"]) == 2
    assert "has no teacher: it is of kind pretrain" in capsys.readouterr().err


# --- training ---------------------------------------------------------------------------------------


def train(run: RunFolder, world: int) -> list[dict]:
    processes.run(["-m", "launcher.worker", str(run.path), STAGE], world, run.path / "log")
    return [row for row in read_metrics(run.stage(STAGE).metrics_file) if "loss" in row]


@pytest.fixture(scope="module")
def trained(cached) -> list[dict]:
    return train(cached, 2)


def test_a_stage_of_two_processes_reads_the_cache_and_says_so(cached, trained):
    assert len(trained) == 4
    (event,) = [event for event in cached.events() if event["event"] == "teacher_cache"]
    assert (event["teacher"], event["used"], event["reason"]) == ("wise", str(chosen(cached).folder), "")
    assert f"the outputs of teacher wise are read from {event['used']}" in cached.stage(STAGE).rank_log(0).read_text()


def test_a_stage_that_reads_goes_on_alone_with_the_same_losses(cached, trained, make_student):
    run = make_student("alone", "cluster.processes=1", "cluster.expert_parallel=1")
    source, target = cached.stage(STAGE), run.stage(STAGE)
    shutil.copytree(source.units_file("wise").parent, target.units_file("wise").parent)
    for row, expected in zip(train(run, 1), trained, strict=True):
        for name, value in expected.items():
            if name.startswith(("loss", "distill/")):
                assert row[name] == pytest.approx(value, rel=1e-4), name


def test_a_description_that_is_torn_is_named(cached, tmp_path):
    folder = tmp_path / "wise-torn"
    folder.mkdir()
    (folder / DESCRIPTION).write_text('{"format": 1, "na')
    choice = chosen(cached, f"stages.{STAGE}.distill.cache.folder={tmp_path}")
    assert choice.folder is None
    assert f"{folder} is not used: {DESCRIPTION} cannot be read" in choice.reason
