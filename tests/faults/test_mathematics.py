"""A loss or gradient that is not finite, on any lane at any step of a run that a user started."""

import random

import pytest
from paths import HELPERS
from runs import Victim, assert_same_weights

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]

TRAINING_TESTS = HELPERS
# Python runs this file of the search path first in every process; only the training processes are poisoned.
HOOK = """
import sys
if "launcher.worker" in sys.orig_argv:
    sys.path.append({tests!r})
    import poison
    poison.install({faults!r})
"""


def run_with(victim: Victim, faults: dict[int, str]) -> None:
    hooks = victim.recipe.parent / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(HOOK.format(tests=str(TRAINING_TESTS), faults=faults))
    victim.start(PYTHONPATH=str(hooks))
    victim.finish()


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_that_is_not_finite(make_victim, record, seed):
    generator = random.Random(seed)
    step, lane, kind = generator.randrange(1, 23), generator.randrange(4), generator.choice(["features", "gradient"])
    victim, without = make_victim(), make_victim()
    run_with(victim, {step: f"{kind}:{lane}"})
    run_with(without, {step: "omitted"})
    (event,) = victim.events("update_skipped")
    assert event["step"] == step + 1
    assert event["utterances"]
    assert not victim.events("process_lost")
    assert_same_weights(victim, without)
    record(f"not a number in {'a loss' if kind == 'features' else 'a gradient'} of one lane", None, 1, True)
