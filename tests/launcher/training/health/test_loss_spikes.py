import random

from launcher.training.health.loss_spikes import SpikeDetector


def falling(steps: int) -> list[float]:
    generator = random.Random(1)
    return [3.0 * 0.99**step * generator.uniform(0.9, 1.1) for step in range(steps)]


def test_a_falling_noisy_loss_has_no_spikes():
    detector = SpikeDetector()
    assert not any(detector.check(loss) for loss in falling(300))


def test_a_jump_is_a_spike_and_is_told_with_the_usual_loss():
    detector = SpikeDetector()
    for loss in falling(100):
        detector.check(loss)
    usual = detector.check(4.0)
    assert usual is not None
    assert 1.0 < usual < 1.7
    assert detector.check(usual) is None


def test_a_loss_that_stays_high_becomes_usual():
    detector = SpikeDetector(falling(100)[-50:])
    assert detector.check(4.0)
    assert not [detector.check(4.0 + 0.01 * row) for row in range(60)][-1]


def test_too_few_rows_tell_nothing():
    assert SpikeDetector([1.0] * 19).check(100.0) is None
