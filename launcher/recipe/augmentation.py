"""Augmentation in a recipe: what must hold before anything starts, and the sets of recordings that it reads."""

from pathlib import Path

from data.augmentation import AugmentConfig
from data.augmentation.codecs import missing_codec, mp3_bitrates
from data.augmentation.config import RECORDING_KINDS
from data.augmentation.recordings import check_recordings
from data.augmentation.telephone import TELEPHONE_HZ
from data.errors import DataError
from data.shards.index import is_url
from launcher.errors import ConfigError
from launcher.recipe.schema import Recipe
from launcher.recipe.stages import TrainingStage


def check_augmentation(recipe: Recipe, stage: TrainingStage) -> None:
    """Refuse augmentation that this machine or the recipe's sample rate does not allow (ConfigError)."""
    augment = recipe.augment_of(stage)
    key = augmentation_key(stage)
    kinds = augment.waveform_kinds()
    rate_hz = recipe.features.sample_rate_hz
    if "telephone" in kinds and rate_hz < TELEPHONE_HZ:
        raise ConfigError(
            f"{key}.telephone is the band of lines of {TELEPHONE_HZ} Hz, and features.sample_rate_hz is {rate_hz}. "
            "Leave it out, or prepare the corpus at a higher rate."
        )
    if augment.codec is None or "codec" not in kinds:
        return

    for kind in augment.codec.kinds:
        reason = missing_codec(kind)
        if reason:
            raise ConfigError(f"{key}.codec.kinds has {kind}, and {reason}, or leave {kind} out.")
    if "mp3" in augment.codec.kinds:
        lowest, highest = mp3_bitrates(rate_hz)
        if augment.codec.mp3_kbps[0] < lowest or augment.codec.mp3_kbps[1] > highest:
            first, last = augment.codec.mp3_kbps
            raise ConfigError(
                f"{key}.codec.mp3_kbps is [{first:g}, {last:g}], and at {rate_hz} Hz (features.sample_rate_hz) MP3 has "
                f"{lowest:g} to {highest:g} kbit/s. Choose a range within, or leave mp3 out of kinds."
            )


def check_augmentation_recordings(recipe: Recipe) -> None:
    """Refuse sets of noise, voices or impulse responses that are not there or do not fit (ConfigError)."""
    checked: set[str] = set()
    for stage in recipe.training_stages():
        for key, path in recipe.augment_of(stage).recordings().items():
            # The recipe's own is that of most stages, and may be a folder of many thousand files.
            if path in checked:
                continue
            checked.add(path)
            try:
                check_recordings(path, recipe.features.sample_rate_hz)
            except DataError as error:
                raise ConfigError(f"{augmentation_key(stage)}.{key} cannot be used. {error}") from error


def with_absolute_recordings(augment: AugmentConfig) -> AugmentConfig:
    """The same augmentation, the paths of its recordings taken from the current folder and made absolute."""
    changes = {}
    for key in RECORDING_KINDS:
        section = getattr(augment, key)
        if section is None or section.recordings is None or is_url(section.recordings):
            continue
        path = str(Path(section.recordings).expanduser().absolute())
        changes[key] = section.model_copy(update={"recordings": path})
    return augment.model_copy(update=changes)


def augmentation_key(stage: TrainingStage) -> str:
    """Where the augmentation of a stage stands in its recipe."""
    if stage.augment is None:
        return "augment"
    return f"stages.{stage.name}.augment"
