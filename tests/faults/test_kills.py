"""Killed at any moment, a run comes to the weights that it would have come to undisturbed."""

import os
import random
import signal
import time

import pytest
from runs import Victim, assert_same_weights

pytestmark = [pytest.mark.fault, pytest.mark.timeout(3600)]

KILLS = 50
SEED = 1


class Killer:
    """Kills one process at a moment that a seed decides: in a section, or some time after training has started."""

    def __init__(self, victim: Victim, generator: random.Random):
        self.victim, self.generator = victim, generator

    def strike(self) -> tuple[str, float, int] | None:
        """Where it struck, when, and at which step; None when the run was done before."""
        attempts = len(self.victim.events("processes_started"))
        section = self.generator.choice(["start", "train", "train", "validate", "save"])
        rank = self.generator.randrange(2)
        delay_s = self.generator.uniform(0, 0.4) if section != "start" else self.generator.uniform(0, 4)

        def there() -> bool:
            return any(beat["rank"] == rank and beat["section"] == section for beat in self.victim.beats())

        if not self.victim.wait(there):
            return None
        time.sleep(delay_s)
        beat = next((beat for beat in self.victim.beats() if beat["rank"] == rank), None)
        if beat is None or len(self.victim.events("processes_started")) != attempts:
            return self.strike()
        try:
            os.kill(beat["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return None
        return beat["section"], time.time(), beat["step"]


def test_fifty_kills_of_any_process_at_any_moment(make_victim, undisturbed, record):
    generator, struck = random.Random(SEED), 0
    while struck < KILLS:
        victim = make_victim()
        victim.start()
        victim.wait(lambda victim=victim: bool(victim.events("processes_started")))
        killer = Killer(victim, generator)
        # Now and then a run must come to its end.
        for _ in range(min(10, KILLS - struck)):
            lost_before = len(victim.events("process_lost"))
            strike = killer.strike()
            if strike is None:
                break
            section, at, step = strike
            known = victim.wait(lambda victim=victim, n=lost_before: len(victim.events("process_lost")) > n)
            if not known:
                break  # it had done all it had to do
            lost = victim.events("process_lost")[-1]
            again = victim.wait(lambda victim=victim, n=lost_before: len(victim.events("restart")) > n)
            lost_steps = max(0, step - lost["checkpoint_step"])  # a process that starts has no step yet
            record(f"kill -9 of a process, in {section}", lost["time"] - at, lost_steps, again)
            struck += 1
        victim.finish(timeout_s=600)
        assert_same_weights(victim, undisturbed)


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_of_everything_at_once(make_victim, undisturbed, record, seed):
    generator, victim = random.Random(seed), make_victim()
    victim.start()
    step = generator.randrange(1, 20)
    assert victim.wait(lambda: any(beat["step"] >= step for beat in victim.beats()))
    time.sleep(generator.uniform(0, 0.5))
    at_step = max((beat["step"] for beat in victim.beats()), default=step)
    victim.kill_everything()
    kept = max(victim.stage.checkpoint_steps(), default=0)
    victim.start()
    victim.finish()
    assert_same_weights(victim, undisturbed)
    record("kill -9 of launcher and processes", None, at_step - kept, True)


def test_a_kill_of_the_launcher_alone(make_victim, undisturbed, record):
    victim = make_victim()
    victim.start()
    assert victim.wait(lambda: any(beat["step"] >= 7 for beat in victim.beats()))
    pids = [beat["pid"] for beat in victim.beats()]
    victim.launcher.kill()
    victim.launcher.wait()
    at, until = time.monotonic(), time.monotonic() + 30
    while any(beat["pid"] in pids for beat in victim.beats()) and time.monotonic() < until:
        time.sleep(0.05)
    ended_s = time.monotonic() - at
    assert not victim.beats()
    kept = max(victim.stage.checkpoint_steps(), default=0)
    step = max(beat["step"] for beat in victim.stage.read_heartbeats())
    victim.start()
    victim.finish()
    assert_same_weights(victim, undisturbed)
    record("kill -9 of the launcher", ended_s, step - kept, True)
