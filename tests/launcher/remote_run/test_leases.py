"""Two launchers and one run in a store: one of them works, the other says why it does not."""

import threading
import time

import pytest

from launcher.errors import ConfigError, DistributedError
from launcher.remote_run import lease as lease_module
from launcher.remote_run import object_store
from launcher.remote_run.lease import LEASE, Lease, read_holder
from launcher.remote_run.object_store import ObjectStore


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW_S", 0.1)
    monkeypatch.setattr(lease_module, "SILENCE_S", 1.0)
    monkeypatch.setattr(lease_module, "LOOK_S", 0.05)
    monkeypatch.setattr(lease_module, "SETTLE_S", 0.2)
    monkeypatch.setattr(object_store, "OPEN_S", 0.3)


def acquire(store, folder, said=None, on_loss=lambda: None):
    lease = Lease(store, folder, on_loss)
    lease.acquire((said if said is not None else []).append, lambda: None)
    return lease


def die(lease):
    """Its launcher is killed: it is neither renewed nor released."""
    lease._ended.set()
    lease._thread.join()


@pytest.fixture(params=["s3", "a store without conditions"])
def store(request):
    if request.param == "s3":
        return ObjectStore(f"{request.getfixturevalue('bucket')}/run")
    return ObjectStore(request.getfixturevalue("memory"))


def test_the_second_of_two_launchers_is_refused_in_one_paragraph_that_names_the_first(store):
    first = acquire(store, "here")
    try:
        said = []
        with pytest.raises(ConfigError, match="is in use by process") as caught:
            acquire(store, "there", said)
        assert "\n" not in str(caught.value)
        assert "is claimed by process" in said[0]
        assert first.is_confirmed()
        assert read_holder(store)["renewed"] > 0
    finally:
        first.release()


def test_a_run_whose_launcher_ended_well_is_free_at_once(store):
    acquire(store, "here").release()
    assert read_holder(store) is None
    said = []
    acquire(store, "there", said).release()
    assert said == []


def test_the_run_of_a_killed_launcher_is_taken_over_after_it_was_seen_to_be_silent(store, monkeypatch):
    die(acquire(store, "here"))
    # Clocks of hosts differ, and are set; what counts is what is seen to change.
    monkeypatch.setattr(time, "time", lambda: 0.0)
    began_s = time.monotonic()
    lease = acquire(store, "there")
    assert time.monotonic() - began_s >= lease_module.SILENCE_S
    assert lease.is_confirmed()
    lease.release()


def test_the_same_folder_goes_on_at_once_after_a_kill_since_its_lock_was_free(store):
    die(acquire(store, "here"))
    said = []
    began_s = time.monotonic()
    lease = acquire(store, "here", said)
    assert said == []
    assert time.monotonic() - began_s < lease_module.SILENCE_S
    lease.release()


def test_of_launchers_that_take_over_at_the_same_moment_one_has_the_run(store):
    die(acquire(store, "dead"))
    holders = []
    refused = []

    def try_to_acquire(folder):
        try:
            holders.append(acquire(store, folder))
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=try_to_acquire, args=(f"folder-{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Renewed once more: one that was overtaken has seen it by then.
    time.sleep(4 * lease_module.RENEW_S)
    assert len([lease for lease in holders if lease.is_confirmed()]) == 1
    assert len(holders) + len(refused) == 3
    for lease in holders:
        lease.release()


def test_a_launcher_that_was_frozen_finds_out_that_it_has_lost_the_run_and_stops(store):
    losses = []
    frozen = acquire(store, "here", on_loss=lambda: losses.append("lost"))
    renewed = threading.Event()
    renew = frozen._renew
    frozen._renew = renewed.wait
    new = acquire(store, "there")
    frozen._renew = renew
    renewed.set()
    until_s = time.monotonic() + 10
    while not losses and time.monotonic() < until_s:
        time.sleep(0.05)
    assert losses == ["lost"]
    assert not frozen.is_confirmed()
    assert "process" in frozen.lost_to
    # Nor does its end take the run from the other one.
    frozen.release()
    assert read_holder(store) is not None
    new.release()


def test_while_the_store_is_out_of_reach_nobody_counts_as_the_holder(bucket, server):
    lease = acquire(ObjectStore(f"{bucket}/run"), "here")
    server.fault("PUT|GET", LEASE, status=500)
    until_s = time.monotonic() + 10
    while lease.is_confirmed() and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not lease.is_confirmed()
    server.clear()
    while not lease.is_confirmed() and time.monotonic() < until_s:
        time.sleep(0.05)
    assert lease.is_confirmed()
    lease.release()


@pytest.mark.parametrize(
    ("method", "status", "error", "words"),
    [
        ("GET", 403, ConfigError, "will not let this user read"),
        ("PUT", 403, ConfigError, "will not let this user write"),
        ("GET", 500, DistributedError, "does not answer"),
        ("PUT", 507, DistributedError, "it has no room"),
    ],
)
def test_a_store_that_refuses_or_fails_is_told_apart_before_anything_starts(
    bucket, server, method, status, error, words
):
    server.fault(method, LEASE, status=status)
    with pytest.raises(error, match=words) as caught:
        acquire(ObjectStore(f"{bucket}/run"), "here")
    assert "\n" not in str(caught.value)
    assert "not-for-logs" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_said_to_be_missing(bucket):
    with pytest.raises(ConfigError, match="its bucket is not there"):
        acquire(ObjectStore("s3://no-such-bucket/run"), "here")


def test_a_store_that_speaks_s3_without_conditions_is_held_by_what_is_seen_there(bucket, server):
    server.fault("PUT", LEASE, status=501, times=1)
    store = ObjectStore(f"{bucket}/run")
    lease = acquire(store, "here")
    assert not store.has_conditions
    with pytest.raises(ConfigError, match="is in use by process"):
        acquire(ObjectStore(f"{bucket}/run"), "there")
    lease.release()


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff", b'{"claim": 1}'])
def test_what_is_no_lease_is_held_by_nobody(memory, content):
    store = ObjectStore(memory)
    store.write(LEASE, content)
    assert read_holder(store) is None
    acquire(store, "here").release()
