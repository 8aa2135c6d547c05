"""What happens around a run and is none of its business: the clock is set, the tracker's server is in trouble."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from runs import assert_same_weights
from wandb_servers import nobody_there, server_that_answers, server_that_hangs

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def settable_clock(tmp_path_factory) -> Path:
    """A library that, preloaded, sets the clock of a process."""
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    if shutil.which("gcc") is None:
        pytest.skip("setting the clock of a process alone needs gcc")
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("hours", [36, -36])
def test_the_clock_is_set(make_victim, undisturbed, record, settable_clock, hours):
    victim = make_victim(stall_deadline_s=60.0)
    clock = victim.recipe.parent / "clock"
    clock.write_text("0")
    victim.start(LD_PRELOAD=str(settable_clock), CLOCK_FILE=str(clock))
    assert victim.wait(lambda: any(beat["step"] >= 7 for beat in victim.beats()))
    clock.write_text(str(3600 * hours))
    victim.finish()
    times = [event["time"] for event in victim.run.events()]
    assert max(times) - min(times) > 24 * 3600, "the processes did not see the jump"
    assert not victim.events("process_lost")
    assert not victim.events("restart")
    assert_same_weights(victim, undisturbed)
    record(f"the clock is set by {hours:+d} hours", None, 0, True)


@pytest.mark.parametrize(
    ("trouble", "server"),
    [
        ("never answers", server_that_hangs),
        ("answers after 2 s", lambda: server_that_answers(200, 2.0)),
        ("answers with errors", lambda: server_that_answers(500, 0.0)),
        ("is not there", nobody_there),
    ],
)
def test_the_server_of_wandb_is_in_trouble(make_victim, undisturbed, record, trouble, server):
    victim = make_victim()
    with server() as port:
        start = time.monotonic()
        victim.start(WANDB_MODE="online", WANDB_API_KEY="a" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{port}")
        victim.finish()
        took_s = time.monotonic() - start
    assert not victim.events("restart")
    assert_same_weights(victim, undisturbed)
    assert took_s < 120
    record(f"W&B's server {trouble}", None, 0, True)
