"""Every number of a recipe at both ends of its range: it is refused, or what it is for works with it."""

import math
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from data.augmentation import AugmentConfig, SpecAugment
from data.errors import DataError
from data.features import FeaturesConfig, LogMel
from data.masking import Masking, MaskingConfig
from data.sampling.sampler import BatchesConfig, BatchSampler
from launcher.errors import ConfigError
from launcher.recipe import OptimizerConfig, Recipe, load_recipe
from launcher.recipe.checks import check_optimizer
from launcher.recipe.distillation import DistillConfig, WeightSchedule
from launcher.recipe.validation_messages import _alternatives, validate
from launcher.training.schedule import learning_rate
from model.encoder import EncoderConfig
from model.masked_prediction import MaskedPredictor, MaskedPredictorConfig
from model.recognizer import Recognizer, RecognizerConfig

# Lists, whose items the section's own validator holds: (section, key).
CHECKED_BY_VALIDATORS = {
    ("AugmentConfig", "speeds"),
    ("NoiseConfig", "snr_db"),
    ("BabbleConfig", "snr_db"),
    ("BabbleConfig", "voices"),
    ("ReverberationConfig", "rt60_s"),
    ("ReverberationConfig", "side_m"),
    ("ReverberationConfig", "height_m"),
    ("ReverberationConfig", "distance_m"),
    ("VolumeConfig", "gain_db"),
    ("ClippingConfig", "level"),
    ("CodecConfig", "mp3_kbps"),
    ("CodecConfig", "opus_kbps"),
    ("OptimizerConfig", "betas"),
    ("ClusterConfig", "profile_steps"),
    ("RecognizerConfig", "intermediate_ctc"),
    ("HiddenDistillConfig", "layers"),
    ("TeacherConfig", "layers"),
}
FEATURES = FeaturesConfig()


class Number:
    """A number that a section of a recipe may have, with the ends of its range."""

    def __init__(self, section: type[BaseModel], key: str, kind: type, constraints: list[Any]):
        self.section = section
        self.key = key
        self.kind = kind
        self.lowest: float | None = None
        self.highest: float | None = None
        for constraint in constraints:
            if isinstance(constraint, Ge):
                self.lowest = constraint.ge
            elif isinstance(constraint, Gt):
                self.lowest = 1 if kind is int else math.nextafter(constraint.gt, math.inf)
            elif isinstance(constraint, Le):
                self.highest = constraint.le
            elif isinstance(constraint, Lt):
                self.highest = math.nextafter(constraint.lt, -math.inf)

    def outside(self) -> Iterator[float]:
        assert self.lowest is not None
        assert self.highest is not None
        if self.kind is int:
            yield from (self.lowest - 1, self.highest + 1)
        else:
            yield from (math.nextafter(self.lowest, -math.inf), math.nextafter(self.highest, math.inf))
        yield from (-(10**40), 10**40, math.nan)

    def __str__(self) -> str:
        return f"{self.section.__name__}.{self.key}"


def numbers_of(section: type[BaseModel], seen: set[type]) -> Iterator[Number]:
    """The numbers of a section and of all below it."""
    if section in seen:
        return
    seen.add(section)
    for key, field in section.model_fields.items():
        pending = list(_alternatives(field.annotation))
        kinds = set()
        while pending:
            annotation = pending.pop()
            if get_origin(annotation) in (tuple, list):
                for item in get_args(annotation):
                    pending += _alternatives(item)
            elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from numbers_of(annotation, seen)
            elif annotation in (int, float):
                kinds.add(annotation)
        for kind in kinds:
            yield Number(section, key, kind, field.metadata)


NUMBERS = list(numbers_of(Recipe, set()))
LIMITED = [number for number in NUMBERS if (number.section.__name__, number.key) not in CHECKED_BY_VALIDATORS]


def minimal(section: type[BaseModel]) -> dict[str, Any]:
    """What a section must be given."""
    needed: dict[str, Any] = {}
    for key, field in section.model_fields.items():
        if field.is_required():
            literals = get_args(field.annotation)
            needed[key] = literals[0] if literals and isinstance(literals[0], str) else 1
    return needed


@pytest.mark.parametrize("number", LIMITED, ids=str)
def test_every_number_has_two_ends_and_is_refused_beyond_them(number):
    for value in number.outside():
        with pytest.raises(ConfigError) as error:
            validate(number.section, {**minimal(number.section), number.key: value}, "It")
        assert number.key in str(error.value)


def ends_of(section: type[BaseModel], **others: Any) -> Iterator[BaseModel]:
    """The section with each of its numbers at both ends, where it is not refused."""
    accepted = 0
    for number in NUMBERS:
        if number.section is not section or (section.__name__, number.key) in CHECKED_BY_VALIDATORS:
            continue
        for value in (number.lowest, number.highest):
            try:
                yield validate(section, {**others, number.key: value}, "It")
                accepted += 1
            except ConfigError as error:
                assert "\n" not in str(error)  # noqa: PT017
    assert accepted > 0


@pytest.mark.parametrize("schedule", ["cosine", "tri_stage", "inverse_square_root"])
@pytest.mark.parametrize("steps", [1, 2, 7, 400])
def test_the_learning_rate_is_above_0_at_every_step_or_the_stage_is_refused(schedule, steps):
    """0 < rate(step) <= peak for all steps, and the rate of every step moves a weight of 32 bits."""
    stage = load_recipe("mini").training_stage("teacher")
    trained = 0
    for optimizer in ends_of(OptimizerConfig, schedule=schedule):
        assert isinstance(optimizer, OptimizerConfig)
        try:
            check_optimizer(stage.model_copy(update={"optimizer": optimizer}))
        except ConfigError:
            continue
        rates = [learning_rate(optimizer, step, steps) for step in range(steps)]
        assert all(0 < rate <= optimizer.peak_learning_rate * (1 + 1e-12) for rate in rates)

        weight = torch.nn.Parameter(torch.ones(4))
        adam = torch.optim.AdamW([weight], lr=rates[0], betas=optimizer.betas, weight_decay=optimizer.weight_decay)
        for rate in (rates[0], rates[-1]):
            adam.param_groups[0]["lr"] = rate
            weight.grad = torch.full((4,), 0.1)
            torch.nn.utils.clip_grad_norm_([weight], optimizer.clip_norm)
            adam.step()
        assert torch.isfinite(weight).all()
        trained += 1
    assert trained > 4


@pytest.mark.parametrize("final_ratio", [0, 1e-300, 1e-9])
def test_three_stages_that_end_at_0_are_refused_and_a_cosine_may(final_ratio):
    stage = load_recipe("mini").training_stage("teacher")

    def check(schedule: str) -> None:
        optimizer = OptimizerConfig(schedule=schedule, final_ratio=final_ratio)
        check_optimizer(stage.model_copy(update={"optimizer": optimizer}))

    check("cosine")
    check("inverse_square_root")
    with pytest.raises(ConfigError, match=r"stages\.teacher\.optimizer\.final_ratio is .* for half of the training"):
        check("tri_stage")


def test_a_decay_that_turns_weights_around_is_refused():
    stage = load_recipe("mini").training_stage("teacher")
    optimizer = OptimizerConfig(peak_learning_rate=0.1, weight_decay=20)
    with pytest.raises(ConfigError, match="their product, the share of a weight"):
        check_optimizer(stage.model_copy(update={"optimizer": optimizer}))


def test_features_at_the_ends_are_finite():
    waveform = torch.from_numpy(np.random.default_rng(1).normal(0, 0.1, (1, 96_000)).astype(np.float32))
    for kind in ("log_mel", "kaldi"):
        for config in ends_of(FeaturesConfig, kind=kind):
            assert isinstance(config, FeaturesConfig)
            # The first second or less: one sample apart, frames are many.
            samples = min(96_000, config.window_samples + 10 * config.hop_samples)
            features, _ = LogMel(config)(waveform[:, :samples], torch.tensor([samples]))
            assert torch.isfinite(features).all()


def test_augmentation_and_masks_at_the_ends_mask_what_is_there():
    features = torch.randn(2, 50, FEATURES.mel_bins)
    lengths = torch.tensor([50, 3])
    for config in ends_of(AugmentConfig):
        assert isinstance(config, AugmentConfig)
        masked = SpecAugment(config, FEATURES)(features, lengths, torch.Generator().manual_seed(1))
        assert torch.isfinite(masked).all()
    for config in ends_of(MaskingConfig):
        assert isinstance(config, MaskingConfig)
        try:
            masking = Masking(config, FEATURES, 4, seed=2**63 - 1)
        except ValueError:
            continue
        masked, _ = masking.apply_mask(features, lengths, step=0, lane=0)
        assert torch.isfinite(masked).all()


def test_batches_at_the_ends_hold_every_utterance_or_are_refused():
    samples = np.array([16_000, 40_000, 400_000, 1])
    zeros = np.zeros(4, np.int64)
    for config in ends_of(BatchesConfig):
        assert isinstance(config, BatchesConfig)
        try:
            sampler = BatchSampler(
                zeros, samples, zeros, zeros, config, 2**63 - 1, 96_000, encoder_frames=lambda samples: samples
            )
        except DataError:
            # None of the utterances lasts as long as that.
            continue
        if config.lanes <= 8:
            assert sampler.totals(0).utterances > 0


def test_schedules_of_distillation_at_the_ends_give_a_factor():
    for schedule in ends_of(WeightSchedule):
        assert isinstance(schedule, WeightSchedule)
        for progress in (0.0, 0.5, 1 - 1e-9, 1.0):
            assert 0 <= schedule.factor(progress, until=1.0) <= 1
    for config in ends_of(DistillConfig):
        assert isinstance(config, DistillConfig)
        assert all(0 < factor <= 1 for factor in config.factors(0.0).values())


def test_encoders_at_the_ends_are_built_or_refused():
    small = {"layers": 2, "groups": 1, "width": 8, "heads": 2, "feedforward_width": 8, "norms": "group"}
    with torch.device("meta"):
        for config in ends_of(EncoderConfig, **small):
            assert isinstance(config, EncoderConfig)
            # Shapes alone; a thousand layers are as many modules, and the same ones again and again.
            if config.layers <= 2:
                Recognizer(RecognizerConfig(encoder=config), 80, 10)
        for config in ends_of(EncoderConfig, positions="relative", **small):
            assert isinstance(config, EncoderConfig)
            if config.layers <= 2:
                Recognizer(RecognizerConfig(encoder=config), 80, 10)


@pytest.mark.parametrize("key", ["decoder", "transducer", "quantizer", "encoder.subsampling", "encoder.experts"])
def test_other_parts_at_the_ends_are_built_or_refused(key):
    encoder = {"layers": 2, "groups": 1, "width": 8, "heads": 2, "feedforward_width": 8}
    sections = {
        name: number.section
        for number in NUMBERS
        for name in ("decoder", "transducer", "quantizer", "subsampling", "experts")
        if number.section.__name__.lower() == f"{name}config"
    }
    part = key.removeprefix("encoder.")
    with torch.device("meta"):
        for config in ends_of(sections[part], **({"heads": 2} if part == "decoder" else {})):
            values = config.model_dump()
            if values.get("layers", 0) > 10 or values.get("right_to_left_layers", 0) > 10:
                continue
            if key.startswith("encoder"):
                given = {"encoder": {**encoder, part: values}}
            else:
                given = {"encoder": encoder, part: values}
            try:
                if key == "quantizer":
                    MaskedPredictor(validate(MaskedPredictorConfig, given, "It"), 80)
                else:
                    Recognizer(validate(RecognizerConfig, given, "It"), 80, 10)
            except ConfigError as error:
                # It does not fit the encoder.
                assert "\n" not in str(error)  # noqa: PT017
