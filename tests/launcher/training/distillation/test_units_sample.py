"""The states that units are made from: a bounded sample, which a start that is cut off does not draw again."""

import pytest
import torch

from launcher.errors import ConfigError
from launcher.recipe.distillation import UnitsDistillConfig
from launcher.training.distillation import cluster_targets
from launcher.training.distillation.cluster_targets import StateSample, sample_file

STEPS = 6
LANES = 2
FRAMES_PER_LANE = 7


@pytest.fixture
def path(tmp_path):
    return sample_file(tmp_path / "units" / "wise.safetensors")


def config(frames: int = 20, count: int = 3) -> UnitsDistillConfig:
    return UnitsDistillConfig(weight=1.0, count=count, frames=frames, steps=STEPS)


def states(step: int, lane: int) -> torch.Tensor:
    """Of each frame its place, so that a test sees which were drawn."""
    first = (step * LANES + lane) * FRAMES_PER_LANE
    places = torch.arange(first, first + FRAMES_PER_LANE, dtype=torch.float32)
    return places[:, None].expand(-1, 2)


def draw(sample: StateSample, until: int = STEPS) -> torch.Tensor:
    for step in range(sample.next_step, until):
        for lane in range(LANES):
            sample.add(step, lane, states(step, lane))
        sample.close_step(step)
    return sample.states("The teacher")


def test_a_sample_of_all_states_is_these_states_in_the_order_of_reading(path):
    drawn = draw(StateSample(config(frames=1000), 5, path))
    assert drawn[:, 0].tolist() == list(range(STEPS * LANES * FRAMES_PER_LANE))


def test_no_more_states_are_kept_in_memory_than_the_sample_has(path):
    sample = StateSample(config(frames=20), 5, path)
    for step in range(STEPS):
        for lane in range(LANES):
            sample.add(step, lane, states(step, lane))
            assert len(sample._keys_N) <= 20
    places = sample.states("The teacher")[:, 0].tolist()
    assert len(places) == 20
    assert places == sorted(set(places))
    # Of all steps, and by another seed others.
    assert places[0] < 30
    assert places[-1] > 60
    assert places != draw(StateSample(config(frames=20), 6, path.with_name("other")))[:, 0].tolist()


@pytest.mark.parametrize("cut", range(1, STEPS))
@pytest.mark.parametrize("frames", [5, 20, 1000])
def test_a_start_that_is_cut_off_goes_on_from_what_is_drawn_and_gets_the_same(path, monkeypatch, cut, frames):
    monkeypatch.setattr(cluster_targets, "SAVE_EVERY_S", 0.0)
    whole = draw(StateSample(config(frames), 5, path.with_name("whole")))
    draw(StateSample(config(frames), 5, path), until=cut)
    again = StateSample(config(frames), 5, path)
    assert again.next_step == cut
    assert draw(again).equal(whole)


def test_the_whole_sample_is_on_the_disk_before_clusters_are_made_from_it(path):
    drawn = draw(StateSample(config(), 5, path))
    again = StateSample(config(), 5, path)
    assert again.next_step == STEPS
    assert again.states("The teacher").equal(drawn)


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_sample_that_is_torn_or_of_other_settings_is_drawn_again(path, content):
    drawn = draw(StateSample(config(frames=9), 5, path))
    if content is None:
        draw(StateSample(config(frames=20), 5, path))
    else:
        path.write_bytes(content)
    again = StateSample(config(frames=9), 5, path)
    assert again.next_step == 0
    assert draw(again).equal(drawn)


def test_a_sample_that_cannot_be_written_costs_nothing_but_the_way_back(path, caplog):
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.write_text("a file where the folder should be")
    assert len(draw(StateSample(config(), 5, path))) == 20
    assert "were not written" in caplog.text


def test_fewer_states_than_units_are_refused(path):
    with pytest.raises(ConfigError, match="The teacher has 14 frames in the first 6 steps, too few for 15 units"):
        draw(StateSample(config(count=15), 5, path), until=1)
