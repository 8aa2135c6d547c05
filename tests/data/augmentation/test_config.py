"""What a recipe may say of augmentation, and what is refused."""

import typing
from types import NoneType

import pytest
from pydantic import BaseModel, ValidationError

from data.augmentation import AugmentConfig
from data.augmentation.config import RECORDING_KINDS, WAVEFORM_KINDS

NEEDED = {"noise": {"recordings": "noises"}}


def sections() -> dict[str, type[BaseModel]]:
    """Every kind that is a section of its own, by its key."""
    kinds = {}
    for key, field in AugmentConfig.model_fields.items():
        members = [member for member in typing.get_args(field.annotation) if member is not NoneType]
        if members and isinstance(members[0], type) and issubclass(members[0], BaseModel):
            kinds[key] = members[0]
    return kinds


def ranges() -> list[tuple[str, str]]:
    """Every setting that is a range, as (key of its section, key)."""
    keys = []
    for section, model in sections().items():
        for key, field in model.model_fields.items():
            if isinstance(field.default, tuple) and not isinstance(field.default[0], str):
                keys.append((section, key))
    return keys


def test_every_section_is_one_of_the_kinds():
    assert set(sections()) == {*WAVEFORM_KINDS, "time_warp"}
    assert set(RECORDING_KINDS) == {key for key, model in sections().items() if "recordings" in model.model_fields}


@pytest.mark.parametrize("key", sections())
def test_a_kind_is_off_until_it_is_named_and_then_has_defaults_for_everything(key):
    assert getattr(AugmentConfig(), key) is None
    assert AugmentConfig().probability_of(key) == 0
    config = AugmentConfig.model_validate({key: NEEDED.get(key, {})})
    assert 0 < config.probability_of(key) <= 1
    assert AugmentConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan"), "often"])
@pytest.mark.parametrize("key", sections())
def test_a_probability_beyond_0_and_1_is_refused(key, probability):
    with pytest.raises(ValidationError, match="probability"):
        AugmentConfig.model_validate({key: {**NEEDED.get(key, {}), "probability": probability}})


@pytest.mark.parametrize(("section", "key"), ranges())
def test_a_range_that_is_upside_down_or_has_an_end_out_of_bounds_is_refused(section, key):
    lowest, highest = sections()[section].model_fields[key].default
    assert lowest < highest
    for ends in ([highest, lowest], [lowest, 1e9], [-1e9, highest], [float("nan"), highest], [lowest, float("inf")]):
        with pytest.raises(ValidationError) as error:
            AugmentConfig.model_validate({section: {**NEEDED.get(section, {}), key: ends}})
        assert key in str(error.value)
    for ends in ([lowest], [lowest, highest, highest], lowest):
        with pytest.raises(ValidationError):
            AugmentConfig.model_validate({section: {**NEEDED.get(section, {}), key: ends}})
    same = AugmentConfig.model_validate({section: {**NEEDED.get(section, {}), key: [lowest, lowest]}})
    assert getattr(getattr(same, section), key) == (lowest, lowest)


def test_every_range_is_looked_at():
    assert len(ranges()) >= 11


def test_what_has_no_probability_is_not_done_and_needs_no_recordings():
    config = AugmentConfig.model_validate(
        {
            "noise": {"recordings": "noises", "probability": 0},
            "babble": {"recordings": "voices"},
            "codec": {"probability": 0},
            "volume": {},
        }
    )
    assert config.waveform_kinds() == ["babble", "volume"]
    assert config.recordings() == {"babble.recordings": "voices"}


def test_unknown_codecs_and_no_codecs_are_refused():
    for kinds in ([], ["gsm"]):
        with pytest.raises(ValidationError, match="kinds"):
            AugmentConfig.model_validate({"codec": {"kinds": kinds}})
