"""A run over two hosts, each with its own network and sshd: to the end, harmed on the second, taken up again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from runs import Victim, write_recipe
from two_hosts import INTERFACE, TwoHosts, missing

from launcher.processes.watchdog import processes_of
from launcher.run_folder import read_json

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800)]

STEPS = 12


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    with TwoHosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def recipe(shards, tmp_path_factory):
    """Four processes that share the experts, and an evaluation after them."""
    path = write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", shards, STEPS, processes=4)
    values = yaml.safe_load(path.read_text())
    values["stages"].append({"name": "evaluation", "kind": "evaluate", "models": ["teacher"], "split": "dev"})
    path.write_text(yaml.safe_dump(values))
    return path


class Spread(Victim):
    """A run that is started on the first host and works on both."""

    def __init__(self, hosts: TwoHosts, recipe, folder):
        super().__init__(recipe, folder)
        self.hosts = hosts
        hostfile = folder.parent / "hosts"
        hostfile.write_text("".join(f"{address} slots=2\n" for address in hosts.ADDRESSES))
        self.options = ["--hostfile", str(hostfile), "--set", f"cluster.ssh_options=[-F, {hosts.config}]"]

    def start(self) -> None:
        chorus = [sys.executable, "-m", "launcher.cli", "run", str(self.recipe), "--run-dir", str(self.run.path)]
        self.run.path.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "WANDB_MODE": "disabled",
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }
        with (self.run.path / ".output").open("ab") as output:
            self.launcher = subprocess.Popen(
                self.hosts.on(0, [*chorus, *self.options]), env=environment, stdout=output, stderr=output
            )


@pytest.fixture(scope="module")
def one_host(recipe, tmp_path_factory) -> Victim:
    victim = Victim(recipe, tmp_path_factory.mktemp("one") / "run")
    victim.start()
    victim.finish()
    return victim


@pytest.fixture
def spread(hosts, recipe, tmp_path) -> Spread:
    return Spread(hosts, recipe, tmp_path / "run")


def assert_same_weights(one: Victim, other: Victim) -> None:
    expected, found = one.weights(), other.weights()
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert values.equal(found[name]), name


def at_step(victim: Victim, step: int):
    return lambda: any(beat["rank"] == 3 and beat["step"] >= step for beat in victim.beats())


def test_two_hosts_come_to_the_weights_of_one(spread, one_host):
    spread.start()
    spread.finish()
    assert {beat["rank"]: beat["host"] for beat in spread.stage.read_heartbeats()} == {
        0: "chorus-a",
        1: "chorus-a",
        2: "chorus-b",
        3: "chorus-b",
    }
    assert read_json(spread.run.results_file)["models"]["teacher"]["dev"]["utterances"] > 0
    assert_same_weights(spread, one_host)


def test_a_process_killed_on_the_second_host_is_named_and_the_run_ends_as_if_it_had_not_been(spread, one_host):
    spread.start()
    assert spread.wait(at_step(spread, 5)), spread.output()
    os.kill(spread.beats()[3]["pid"], signal.SIGKILL)
    spread.finish()
    assert [event["rank"] for event in spread.events("process_lost")] == [3]
    assert "rank 3 on chorus-b was lost at step" in spread.output()
    assert_same_weights(spread, one_host)


def test_a_launcher_that_is_killed_leaves_nothing_on_either_host_and_is_taken_up_again(spread, one_host):
    spread.start()
    assert spread.wait(at_step(spread, 5)), spread.output()
    held = int(spread.run.lock_file.read_text())
    os.kill(held, signal.SIGKILL)
    spread.launcher.wait()
    wait_for_end(spread)
    spread.start()
    spread.finish()
    assert_same_weights(spread, one_host)


def test_a_run_that_is_stopped_saves_and_goes_on(spread, one_host):
    spread.start()
    assert spread.wait(at_step(spread, 3)), spread.output()
    os.kill(int(spread.run.lock_file.read_text()), signal.SIGTERM)
    spread.finish(expected=75)
    assert read_json(spread.stage.done_file)["status"] == "stopped"
    assert processes_of(spread.run) == []
    spread.start()
    spread.finish()
    assert_same_weights(spread, one_host)


def test_a_cable_that_is_pulled_ends_the_attempt_and_the_run_goes_on_when_it_is_back(spread, one_host):
    """The other host's processes know nothing of each other then: nothing new starts before they are ended."""
    spread.start()
    assert spread.wait(at_step(spread, 5)), spread.output()
    spread.hosts.cut(1)
    assert spread.wait(lambda: bool(spread.events("process_lost"))), spread.output()
    spread.wait(lambda: bool(spread.events("host_out_of_reach")))
    spread.hosts.mend(1)
    spread.finish()
    assert len(spread.events("processes_started")) == 3  # two attempts, and the evaluation
    assert_same_weights(spread, one_host)


def test_doctor_finds_the_hosts_in_order_and_names_the_interface_that_is_not_given(hosts, tmp_path):
    (tmp_path / "hosts").write_text("".join(f"{address} slots=2\n" for address in hosts.ADDRESSES))
    command = [sys.executable, "-m", "launcher.cli", "doctor", "--hostfile", str(tmp_path / "hosts"), "--json"]
    command += ["--run-dir", str(tmp_path / "runs"), "--set", f"cluster.ssh_options=[-F, {hosts.config}]"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}

    def doctor(**variables: str) -> tuple[int, dict]:
        done = subprocess.run(hosts.on(0, command), env={**environment, **variables}, capture_output=True, text=True)
        return done.returncode, json.loads(done.stdout)

    code, found = doctor(GLOO_SOCKET_IFNAME=INTERFACE)
    assert (code, found["problems"]) == (0, [])
    assert [facts["host"] for facts in found["hosts"].values()] == ["chorus-a", "chorus-b"]
    code, found = doctor()
    assert code == 2
    assert "Set GLOO_SOCKET_IFNAME" in found["problems"][0]


def wait_for_end(victim: Victim) -> None:
    until = time.monotonic() + 30
    while processes_of(victim.run):
        assert time.monotonic() < until, processes_of(victim.run)
        time.sleep(0.2)
