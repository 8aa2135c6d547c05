"""Nodes that wait for each other through the run folder."""

import threading

import pytest

from launcher.engines import rendezvous
from launcher.engines.rendezvous import READY_FILE_VARIABLE, announced, ready_file, wait_for_nodes
from launcher.errors import DistributedError
from launcher.processes.stop_request import StopRequest
from launcher.run_folder import RunFolder, write_json


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(rendezvous, "POLL_S", 0.01)
    monkeypatch.setattr(rendezvous, "RENEW_S", 0.05)
    return RunFolder(tmp_path / "run")


def test_the_first_node_starts_when_all_others_follow_and_a_probe_can_see_it(run, tmp_path, monkeypatch):
    monkeypatch.setenv(READY_FILE_VARIABLE, str(tmp_path / "ready"))
    release = threading.Event()

    def follow(node: int) -> None:
        with announced(run, node):
            release.wait(30)

    threads = [threading.Thread(target=follow, args=(node,)) for node in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        wait_for_nodes(run, 3, 30.0, StopRequest())
    finally:
        release.set()
    for thread in threads:
        thread.join()
    assert (tmp_path / "ready").exists()


def test_what_a_node_left_at_an_earlier_start_is_no_sign_of_it(run):
    for node in (1, 2):
        ready_file(run, node).parent.mkdir(parents=True, exist_ok=True)
        write_json(ready_file(run, node), {"session": "a", "renewed": 7})
    with pytest.raises(DistributedError, match=r"did not start within 0.1 s .*: 1, 2\. Look"):
        wait_for_nodes(run, 3, 0.1, StopRequest())
