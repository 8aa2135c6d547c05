"""`chorus doctor --hostfile`: two hosts over `fake_ssh.sh`, which are this machine."""

import json
import os
import re

import pytest
from paths import HELPERS

from launcher.cli import main as chorus
from launcher.doctor.host_checks import HostChecks
from launcher.recipe import ClusterConfig
from launcher.recipe.hostfile import read_topology

HERE = HELPERS


@pytest.fixture
def hostfile(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").symlink_to(HERE / "fake_ssh.sh")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    path = tmp_path / "hosts"
    path.write_text("node-a slots=1\nnode-b slots=2\n")
    return path


def test_hosts_that_agree_are_in_order_and_their_exchange_is_measured(hostfile, tmp_path, capsys):
    command = ["doctor", "--hostfile", str(hostfile), "--run-dir", str(tmp_path / "runs")]
    command += ["--set", "cluster.master_address=127.0.0.1", "--json"]
    code = chorus(command)
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert code == 0
    assert list(report["hosts"]) == ["node-a", "node-b"]
    for facts in report["hosts"].values():
        assert facts["exchange_bytes_per_s"] > 1e6
        assert abs(facts["clock_difference_s"]) < 1
        assert facts["deepspeed"].startswith("0.19")
    assert list((tmp_path / "runs").iterdir()) == []  # no mark is left


def test_a_host_out_of_reach_is_named_with_what_to_do(hostfile, tmp_path, capsys):
    hostfile.write_text("node-a slots=1\nunreachable slots=2\n")
    assert chorus(["doctor", "--hostfile", str(hostfile), "--run-dir", str(tmp_path / "runs")]) == 2
    output = capsys.readouterr().out
    assert "unreachable cannot be used over ssh" in output
    assert "Make `ssh unreachable true` work" in output


@pytest.fixture
def checks(hostfile, tmp_path):
    checks = HostChecks(ClusterConfig(hostfile=hostfile), read_topology(hostfile), tmp_path / "runs")
    facts = {"accelerator": "cuda", "gpus": 2, "folder_error": None, "free_bytes": 1 << 40, "clock_difference_s": 0.0}
    facts |= dict.fromkeys(("python", "torch", "deepspeed", "torchaudio", "webdataset", "sentencepiece", "chorus"), "1")
    checks.hosts = {"node-a": facts, "node-b": dict(facts)}
    return checks


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("torch", "2", "node-b has torch 2, node-a has 1"),
        ("chorus", "abc", "node-b has chorus abc"),
        ("accelerator", "cpu", "node-b has accelerator cpu, node-a has cuda"),
        ("gpus", 1, "node-b has 1 GPUs, and the hostfile uses slot 1"),
        ("folder_error", "Permission denied", "node-b cannot write to .*: Permission denied"),
        ("free_bytes", 1 << 30, "node-b has 1.0 GiB free"),
        ("clock_difference_s", -30.0, "The clock of node-b differs from this one's by -30.0 s"),
    ],
)
def test_a_host_that_differs_is_named(checks, name, value, problem):
    def check_facts():
        checks._check_versions()
        for host in checks._topology.hosts:
            checks._check_host(host)

    check_facts()
    assert checks.problems == []
    checks.hosts["node-b"][name] = value
    check_facts()
    assert len(checks.problems) == 1
    assert re.search(problem, checks.problems[0])


def test_a_folder_that_is_not_shared_is_named(checks, monkeypatch):
    seen = {"node-a": [checks._marks["node-a"]], "node-b": list(checks._marks.values())}
    monkeypatch.setattr(checks, "_ask", lambda arguments: {host: (marks, "") for host, marks in seen.items()})
    checks._check_marks()
    assert len(checks.problems) == 1
    assert "node-a does not see" in checks.problems[0]
    assert "what node-b wrote there. Put the run folder on a file system that all" in checks.problems[0]


@pytest.mark.parametrize(
    ("step", "problem"), [("port", "node-b does not reach port"), ("exchange", "GLOO_SOCKET_IFNAME")]
)
def test_an_exchange_that_fails_says_at_what(checks, monkeypatch, step, problem):
    answers = {"node-a": {"step": "exchange", "error": "x"}, "node-b": {"step": step, "error": "timed out"}}
    monkeypatch.setattr(checks, "_ask", lambda *_: {host: (answer, "") for host, answer in answers.items()})
    checks._check_exchange()
    assert len(checks.problems) == 1
    assert problem in checks.problems[0]
