"""Preempted through any process, a run saves, leaves with 75, and loses no step; frozen, it is noticed and goes on."""

import os
import random
import signal
import time

import pytest
from runs import assert_same_weights

from launcher.run_folder import read_json

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.mark.parametrize("seed", range(6))
def test_a_signal_to_any_process_twice(make_victim, undisturbed, record, seed):
    generator, victim = random.Random(seed), make_victim()
    victim.start()
    step = generator.randrange(1, 18)
    assert victim.wait(lambda: any(beat["step"] >= step for beat in victim.beats()))
    time.sleep(generator.uniform(0, 0.3))
    rank, number = generator.randrange(2), generator.choice(SIGNALS)
    pid = next(beat["pid"] for beat in victim.beats() if beat["rank"] == rank)
    at = time.monotonic()
    for _ in range(2):  # the second one comes during the save
        os.kill(pid, number)
        time.sleep(0.2)
    victim.finish(expected=75)
    left_s = time.monotonic() - at
    assert left_s < 30
    stopped = read_json(victim.stage.done_file)
    assert stopped["status"] == "stopped"
    assert max(victim.stage.checkpoint_steps()) == stopped["step"]
    victim.start()
    victim.finish()
    assert_same_weights(victim, undisturbed)
    record("preemption through one process", left_s, 0, True)


@pytest.mark.parametrize("seed", range(3))
def test_a_signal_to_the_launcher(make_victim, undisturbed, record, seed):
    generator, victim = random.Random(100 + seed), make_victim()
    victim.start()
    step = generator.randrange(1, 18)
    assert victim.wait(lambda: any(beat["step"] >= step for beat in victim.beats()))
    at = time.monotonic()
    os.kill(victim.launcher.pid, SIGNALS[seed])
    victim.finish(expected=75)
    left_s = time.monotonic() - at
    assert left_s < 30
    assert max(victim.stage.checkpoint_steps()) == read_json(victim.stage.done_file)["step"]
    victim.start()
    victim.finish()
    assert_same_weights(victim, undisturbed)
    record("preemption through the launcher", left_s, 0, True)


@pytest.mark.parametrize("rank", range(2))
def test_a_frozen_process_is_named_and_the_run_goes_on(make_victim, undisturbed, record, rank):
    deadline_s = 8.0
    victim = make_victim(stall_deadline_s=deadline_s, save_deadline_s=deadline_s, validation_deadline_s=deadline_s)
    victim.start()
    assert victim.wait(lambda: any(beat["rank"] == rank and beat["step"] >= 7 for beat in victim.beats()))
    beat = next(beat for beat in victim.beats() if beat["rank"] == rank)
    os.kill(beat["pid"], signal.SIGSTOP)
    at = time.time()
    assert victim.wait(lambda: bool(victim.events("process_lost")))
    lost = victim.events("process_lost")[0]
    victim.finish()
    assert lost["rank"] == rank
    assert "was silent for" in lost["reason"]
    assert lost["time"] - at < deadline_s + 5
    assert "Current thread" in victim.stage.rank_log(1 - rank).read_text(errors="replace")  # where the other one waited
    assert_same_weights(victim, undisturbed)
    record(
        f"SIGSTOP of a process, deadline {deadline_s:g} s",
        lost["time"] - at,
        beat["step"] - lost["checkpoint_step"],
        True,
    )
