"""The look at known vulnerabilities in the installed packages, against an index whose answers are our own."""

import importlib.util
import io
import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("pip_audit")

AUDIT = Path(__file__).parents[2] / ".ci/audit.py"
ADVISORY = {"aliases": ["CVE-2026-1"], "details": "It\ntells.", "withdrawn": None, "link": "https://example.com"}
# What the index says of each package; one that is not among them is unknown to it.
INDEX = {
    "mendable": [ADVISORY | {"id": "PYSEC-2026-1", "fixed_in": ["1.2", "1.1"]}],
    "unmended": [ADVISORY | {"id": "PYSEC-2026-2", "fixed_in": []}],
    "withdrawn": [ADVISORY | {"id": "PYSEC-2026-3", "fixed_in": ["2"], "withdrawn": "2026-01-01T00:00:00Z"}],
    "sound": [],
}
# Stands in the place of the network for pip-audit, which is started as it is.
NO_NETWORK = """
import io, json, os
import requests, urllib3
def send(adapter, request, **options):
    name = request.url.removeprefix("https://pypi.org/pypi/").partition("/")[0]
    index = json.loads(os.environ["FAKE_INDEX"])
    status, content = (200, {"vulnerabilities": index[name]}) if name in index else (404, {})
    if index.get(name) == "broken":
        status, content = 500, {}
    raw = urllib3.HTTPResponse(io.BytesIO(json.dumps(content).encode()), status=status, preload_content=False)
    return requests.adapters.HTTPAdapter().build_response(request, raw)
requests.sessions.Session.send = lambda session, request, **options: send(None, request, **options)
"""


@pytest.fixture
def audit(monkeypatch):
    spec = importlib.util.spec_from_file_location("audit", AUDIT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments, answer=b'{"vulnerabilities": []}'):
        def urlopen(url, timeout):
            if isinstance(answer, Exception):
                raise answer
            return io.BytesIO(answer)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return module.main(arguments)

    return call


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of installed packages, and an index that pip-audit asks about them."""
    (tmp_path / "no_network").mkdir()
    (tmp_path / "no_network" / "sitecustomize.py").write_text(NO_NETWORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "no_network"))
    monkeypatch.setenv("PIP_AUDIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "packages"

    def install(names, index):
        monkeypatch.setenv("FAKE_INDEX", json.dumps(index))
        for name in names:
            info = folder / f"{name}-1.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        return ["--path", str(folder), "--cache-dir", str(tmp_path / "cache")]

    return install


def test_a_vulnerability_that_a_newer_version_mends_fails_and_each_is_named(audit, packages, capfd):
    arguments = packages([*INDEX, "unknown"], INDEX)
    assert audit(*arguments) == 1
    printed = capfd.readouterr().out
    assert "mendable 1.0: PYSEC-2026-1, mended in 1.1, 1.2\n" in printed
    assert "unmended 1.0: PYSEC-2026-2, no version mends it yet\n" in printed
    assert "4 of 5 packages audited, 1 vulnerabilities that can be mended.\n" in printed
    assert "PYSEC-2026-3" not in printed


@pytest.mark.slow
def test_packages_without_a_vulnerability_that_can_be_mended_pass(audit, packages, capfd):
    arguments = packages(["unmended", "sound"], INDEX)
    assert audit(*arguments) == 0
    assert "2 of 2 packages audited, 0 vulnerabilities" in capfd.readouterr().out


@pytest.mark.slow
def test_an_index_that_fails_in_the_middle_is_no_clean_audit(audit, packages, capfd):
    arguments = packages(["sound", "mendable"], INDEX | {"mendable": "broken"})
    assert audit(*arguments) == 0
    printed = capfd.readouterr().out
    assert "The dependencies were not audited" in printed
    assert "Traceback" not in printed


UNMENDED = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-2026-2", "fix_versions": []}]}


@pytest.mark.parametrize(
    ("output", "code", "sentence"),
    [
        (json.dumps({"dependencies": [UNMENDED]}), 0, "1 of 1 packages audited, 0 vulnerabilities"),
        (json.dumps({"dependencies": [{"name": "a", "skip_reason": "x"}]}), 0, "not audited: .*none of the packages"),
        (json.dumps({"dependencies": []}), 0, "not audited"),
        ("", 0, "not audited: .*pip-audit says '.*the index said 500'"),
        ("[]", 0, "not audited"),
        ("{}", 0, "not audited"),
        ("null", 0, "not audited"),
    ],
)
def test_what_pip_audit_prints_is_told_in_a_sentence(audit, capsys, monkeypatch, output, code, sentence):
    ended = subprocess.CompletedProcess([], 1, output, "ERROR:pip_audit: the index said 500")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: ended)
    assert audit() == code
    assert re.search(sentence, capsys.readouterr().out)


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b"[]",
        b"3",
        b"<html>",
        b"",
        b"[" * 10**5,
        b"\xff",
        OSError("no network"),
        TimeoutError(),
        urllib.error.URLError("no"),
    ],
)
def test_an_index_without_such_data_is_said_in_a_sentence_and_asked_nothing_else(audit, answer, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("pip-audit is started"))
    assert audit(answer=answer) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("The dependencies were not audited: the package index gives no data")
    assert os.linesep not in line
