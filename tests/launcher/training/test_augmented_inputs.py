"""Augmented micro-batches: the same on any number of processes and after any stop, and what a teacher gets of them."""

import shutil
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import soundfile
import torch
from signals import hiss
from small_runs import STAGE

from data.augmentation import AugmentConfig
from data.augmentation.config import WAVEFORM_KINDS
from data.loader import Loader
from launcher.recipe import SelfSupervisedStage, load_recipe
from launcher.stages.context import StageContext
from launcher.training.inputs import open_inputs

CPU = torch.device("cpu")
LANES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def run(make_run):
    return make_run("augmented")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory) -> AugmentConfig:
    folder = tmp_path_factory.mktemp("noises")
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", hiss(20_000, seed=number), 16_000)
    values: dict = {key: {"probability": 0.4} for key in WAVEFORM_KINDS}
    values["noise"]["recordings"] = str(folder)
    values["reverberation"] |= {"rooms": 2, "rt60_s": [0.1, 0.2]}
    # Opus takes most of the time, and goes the way of MP3.
    values["codec"]["kinds"] = ["mu_law", "g722", "mp3"]
    return AugmentConfig.model_validate({**values, "time_warp": {"probability": 0.5, "width_s": 0.1}})


def open_lanes(run, augment, lanes=LANES):
    recipe = load_recipe(run.recipe_file)
    context = StageContext.training(recipe, run, STAGE)
    inputs = open_inputs(context, "train", lanes, CPU, augment)
    inputs.keeps_source = True
    return inputs


def features_of(inputs, start, stop):
    """Of every lane of some steps: its features, and the waveforms that they were made from."""
    batches = [inputs.micro_batch(batch) for batch in chain(*inputs.steps(start, stop))]
    return [(batch.features_BTF, batch.source.waveforms_BS, batch.source.features_BTF) for batch in batches]


def assert_same(some, others):
    assert len(some) == len(others)
    for tensors, other_tensors in zip(some, others, strict=True):
        for tensor, other in zip(tensors, other_tensors, strict=True):
            assert torch.equal(tensor, other)


def test_a_run_that_was_stopped_or_has_other_processes_or_threads_hears_the_same(run, every_kind):
    """steps(0, 3) == steps(0, 1) + steps(1, 3) == the lanes of two processes put together == with 1 and 5 threads"""
    whole = features_of(open_lanes(run, every_kind), 0, 3)
    resumed = features_of(open_lanes(run, every_kind), 0, 1) + features_of(open_lanes(run, every_kind), 1, 3)
    assert_same(resumed, whole)

    shares = [features_of(open_lanes(run, every_kind, lanes), 0, 3) for lanes in ((0, 2), (1, 3))]
    together = []
    for step in range(3):
        for lane in LANES:
            together.append(shares[lane % 2][2 * step + lane // 2])
    assert_same(together, whole)

    for workers in (0, 5):
        inputs = open_lanes(run, every_kind)
        inputs.loader.workers = workers
        assert_same(features_of(inputs, 0, 2), whole[:8])


def test_another_epoch_is_heard_in_another_way(run):
    inputs = open_lanes(run, AugmentConfig.model_validate({"volume": {"probability": 0.9}}))
    heard = {}
    for epoch_start in (0, inputs.sampler.steps_per_epoch):
        stop = epoch_start + inputs.sampler.steps_per_epoch
        for batch in chain(*inputs.steps(epoch_start, stop)):
            for key, waveform, samples in zip(batch.keys, batch.waveforms_BS, batch.samples_B.tolist(), strict=True):
                heard.setdefault(key, []).append(waveform[:samples])
    pairs = [pair for pair in heard.values() if len(pair) == 2 and len(pair[0]) == len(pair[1])]
    assert len(pairs) > 5
    same = sum(torch.equal(first, second) for first, second in pairs)
    assert same < len(pairs) / 2


def test_kinds_without_a_probability_change_nothing_to_the_bit(run, every_kind):
    values = every_kind.model_dump(mode="json")
    for key in (*WAVEFORM_KINDS, "time_warp"):
        values[key]["probability"] = 0
    inputs = open_lanes(run, AugmentConfig.model_validate(values))
    assert inputs.loader.augmentation is None
    assert_same(features_of(inputs, 0, 2), features_of(open_lanes(run, AugmentConfig()), 0, 2))


def test_lengths_tokens_and_masks_are_those_without_augmentation(run, every_kind):
    plain = open_lanes(run, AugmentConfig())
    augmented = open_lanes(run, every_kind)
    changed = 0
    for batch, other in zip(chain(*plain.steps(0, 2)), chain(*augmented.steps(0, 2)), strict=True):
        assert batch.keys == other.keys
        assert torch.equal(batch.samples_B, other.samples_B)
        assert torch.equal(batch.tokens_BU, other.tokens_BU)
        changed += not torch.equal(batch.waveforms_BS, other.waveforms_BS)
        masked, other_masked = plain.micro_batch(batch), augmented.micro_batch(other)
        assert torch.equal(masked.lengths_B, other_masked.lengths_B)
        assert torch.equal(masked.source.masked_BT, other_masked.source.masked_BT)
        assert torch.isfinite(other_masked.features_BTF).all()
    assert changed == 8


def test_a_teacher_gets_the_recording_and_the_frames_that_its_student_gets(run, every_kind):
    inputs = open_lanes(run, every_kind)
    unwarped = replace(inputs, augment=AugmentConfig())
    warped = 0
    for batch in chain(*inputs.steps(0, 2)):
        student = inputs.micro_batch(batch)
        # What a teacher of waveforms gets is what the student's features were made from.
        assert student.source.waveforms_BS.equal(batch.waveforms_BS)
        # What one of clean features gets is the student's where nothing is masked, warps included.
        shown_BTF = student.features_BTF != 0
        assert student.features_BTF[shown_BTF].equal(student.source.features_BTF[shown_BTF])
        warped += not student.source.features_BTF.equal(unwarped.micro_batch(batch).source.features_BTF)
    assert warped > 0


def test_a_broken_recording_for_augmentation_quarantines_its_utterances_and_moves_no_other(run, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    augment = AugmentConfig.model_validate({"noise": {"probability": 0.3, "recordings": str(tmp_path)}})
    inputs = open_lanes(run, augment)
    inputs.loader.max_broken_ratio = 1.0
    plain = open_lanes(run, AugmentConfig())
    quarantined = 0
    for batch, other in zip(chain(*inputs.steps(0, 3)), chain(*plain.steps(0, 3)), strict=True):
        quarantined += len(batch.quarantined)
        assert sorted(batch.keys + batch.quarantined) == sorted(other.keys)
        assert [key for key in other.keys if key not in batch.quarantined] == batch.keys
    assert quarantined > 0


def test_a_stage_without_transcripts_has_its_recordings_augmented_and_its_features_as_they_are(run, every_kind):
    recipe = load_recipe(run.recipe_file)
    shutil.copyfile(run.features_file, run.statistics_file)
    stage = SelfSupervisedStage(name="alone", kind="self_supervised", steps=1)
    context = StageContext(recipe, run, stage)
    inputs = open_inputs(context, "train", LANES, CPU, every_kind)
    plain = open_inputs(context, "train", LANES, CPU, AugmentConfig())
    changed = 0
    for batch, other in zip(chain(*inputs.steps(0, 1)), chain(*plain.steps(0, 1)), strict=True):
        changed += not batch.waveforms_BS.equal(other.waveforms_BS)
        masked = inputs.micro_batch(batch)
        features_BTF, _ = inputs.features(batch.waveforms_BS, batch.samples_B)
        assert masked.source.features_BTF.equal(features_BTF)
        assert masked.source.masked_BT.equal(plain.micro_batch(other).source.masked_BT)
    assert changed > 0


def test_the_loader_that_draws_units_augments_like_the_one_that_trains(run, every_kind):
    inputs = open_lanes(run, every_kind)
    loader = inputs.loader
    other = Loader(
        loader.sampler, loader.reader, loader.tokenizer, LANES, loader.workers, augmentation=loader.augmentation
    )
    for batch, expected in zip(chain(*other.steps(0, 1)), chain(*loader.steps(0, 1)), strict=True):
        assert np.array_equal(batch.waveforms_BS, expected.waveforms_BS)
