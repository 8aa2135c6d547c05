"""`chorus publish` writes the folder, sends it with a token, and shows the token nowhere."""

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from paths import ROOT
from small_models import write_small_model

from launcher.cli import main as chorus
from launcher.inference.finished_model import FinishedModel

hub = pytest.importorskip("huggingface_hub")

RealApi = hub.HfApi
TOKEN = "hf_NotARealTokenButAsLongAsOne00000000"


class FakeHub:
    """What `HfApi` does, in memory."""

    error: Exception | None = None

    def __init__(self, token=None):
        self.token = token
        type(self).instances.append(self)
        self.repositories = {}
        self.files = {}

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        if self.error is not None:
            raise self.error
        assert repo_type == "model"
        assert exist_ok
        self.repositories[repo_id] = private
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, repo_type, folder_path, commit_message):
        assert repo_id in self.repositories
        assert repo_type == "model"
        for path in folder_path.iterdir():
            self.files[path.name] = path.read_bytes()
        assert TOKEN not in commit_message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("publish") / "model", "full")


@pytest.fixture(autouse=True)
def fake_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(FakeHub, "instances", [], raising=False)
    monkeypatch.setattr(FakeHub, "error", None)
    monkeypatch.setattr(hub, "HfApi", FakeHub)
    # No token and no network but what a test gives.
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    return FakeHub


def test_without_a_token_it_stops_at_the_folder_and_says_so(folder, tmp_path, capsys, fake_hub):
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), "--to", "acme/digits", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(out)
    assert lines[1].startswith("Not uploaded: there is no token.")
    assert fake_hub.instances == []
    assert FinishedModel.load(out)


@pytest.mark.parametrize(
    ("options", "offline", "reason"),
    [
        (["--to", "acme/digits"], True, "HF_HUB_OFFLINE"),
        ([], False, "no repository"),
        (["--to", "acme/digits", "--dry-run"], False, "--dry-run"),
    ],
)
def test_offline_unnamed_and_dry_it_stops_at_the_folder(
    folder, tmp_path, capsys, fake_hub, monkeypatch, options, offline, reason
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", offline)
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), "--out", str(out), "--json", *options]) == 0
    output = capsys.readouterr()
    row = json.loads(output.out)
    assert reason in row["not_sent"]
    assert row["url"] is None
    assert row["files"]["model.safetensors"] == (out / "model.safetensors").stat().st_size
    assert TOKEN not in output.out + output.err
    assert fake_hub.instances == []


def test_with_a_token_every_file_is_sent_and_the_token_is_nowhere(folder, tmp_path, capsys, fake_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), "--to", "acme/digits", "--out", str(out), "--private"]) == 0
    output = capsys.readouterr()
    (api,) = fake_hub.instances
    assert api.token == TOKEN
    assert api.repositories == {"acme/digits": True}
    assert api.files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert "https://huggingface.co/acme/digits" in output.out
    for text in (output.out, output.err, *map(str, out.iterdir())):
        assert TOKEN not in text
    assert not any(TOKEN.encode() in content for content in api.files.values())


def test_a_folder_in_the_layout_is_sent_as_it_is(folder, tmp_path, capsys, fake_hub, monkeypatch):
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), "--out", str(out)]) == 0
    (out / "README.md").write_text("# Mine\n")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert chorus(["publish", str(out), "--to", "acme/digits"]) == 0
    assert fake_hub.instances[0].files["README.md"] == b"# Mine\n"
    assert chorus(["publish", str(out), "--to", "acme/digits", "--licence", "mit"]) == 2
    assert "edit its README.md" in capsys.readouterr().err


def test_a_folder_that_holds_the_token_is_not_sent(folder, tmp_path, capsys, fake_hub, monkeypatch):
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), "--out", str(out)]) == 0
    (out / "notes.txt").write_text("x" * (2**20 - 10) + TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert chorus(["publish", str(out), "--to", "acme/digits"]) == 2
    error = capsys.readouterr().err
    assert "notes.txt holds your Hugging Face token" in error
    assert TOKEN not in error
    assert fake_hub.instances == []


@pytest.mark.parametrize("place", ["weights.safetensors", "folder/notes.txt", "folder", ".hidden"])
def test_a_received_folder_with_a_link_to_a_file_of_the_users_is_not_sent(
    folder, tmp_path, capsys, fake_hub, monkeypatch, place
):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("a secret")
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), "--out", str(out)]) == 0
    (out / place).parent.mkdir(exist_ok=True)
    target = tmp_path / "private"
    if place != "folder":
        target /= "key"
    (out / place).symlink_to(target)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert chorus(["publish", str(out), "--to", "acme/digits"]) == 2
    assert f"{place} is a link to {target}" in capsys.readouterr().err
    assert fake_hub.instances == []


@pytest.mark.parametrize("error", [ConnectionError("no route"), OSError("broken"), RuntimeError(f"401 for {TOKEN}\n!")])
def test_what_the_hub_refuses_is_one_paragraph_without_the_token(
    folder, tmp_path, capsys, fake_hub, monkeypatch, error
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(FakeHub, "error", error)
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), "--to", "acme/digits", "--out", str(out)]) == 2
    output = capsys.readouterr()
    assert "could not be uploaded to acme/digits" in output.err
    assert output.err.count("\n") == 1
    assert TOKEN not in output.out + output.err
    assert FinishedModel.load(out)


def test_the_hub_is_imported_whole_where_nothing_else_has_imported_it():
    """huggingface_hub imports its modules when they are asked for by name alone."""
    program = (
        "from launcher.export import upload; upload.check_repository('a/b'); upload.why_not_sent('a/b', None, False)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b/c", "-x", "a" * 200])
def test_what_is_no_repository_is_refused_before_anything_is_written(folder, tmp_path, capsys, name):
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), f"--to={name}", "--out", str(out)]) == 2
    assert "no name of a repository" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_without_the_library_of_the_hub_it_stops_at_the_folder_where_nothing_is_to_be_sent(
    folder, tmp_path, monkeypatch, capsys, options
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), "--out", str(out), *options]) == 0
    assert FinishedModel.load(out)
    assert chorus(["publish", str(folder), "--out", str(tmp_path / "none"), "--to", "acme/digits"]) == 2
    assert "pip install 'chorus-asr[hub]'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


class HubOverHttp(BaseHTTPRequestHandler):
    """What the hub answers to an upload whose files are all sent in the commit; notes what came."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        answers = {
            "/api/validate-yaml": {"errors": [], "warnings": []},
            "/api/repos/create": {"url": "https://huggingface.co/acme/digits", "name": "acme/digits"},
            "/api/models/acme/digits/commit/main": {"commitUrl": "https://huggingface.co/c/1", "commitOid": "1"},
        }
        answer = answers.get(self.path)
        if answer is None:
            asked = json.loads(body)["files"]
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            answer = {"files": files}
        content = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *values):
        pass


@pytest.fixture
def http_hub(monkeypatch):
    """The hub's own library, and a server on this machine in the place of the hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubOverHttp)
    server.asked = []
    server.status = 200
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(hub, "HfApi", RealApi)
    monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()


def test_the_hubs_own_library_sends_every_file_in_one_commit(folder, tmp_path, monkeypatch, http_hub):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out = tmp_path / "out"
    assert chorus(["publish", str(folder), "--to", "acme/digits", "--out", str(out)]) == 0
    assert {authorization for _, authorization, _ in http_hub.asked} == {f"Bearer {TOKEN}"}
    (commit,) = [body for path, _, body in http_hub.asked if "/commit/" in path]
    sent = {}
    for line in commit.splitlines():
        entry = json.loads(line)
        if entry["key"] == "file":
            sent[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
    assert sent == {path.name: path.read_bytes() for path in out.iterdir()}
    assert not any(TOKEN.encode() in body for _, _, body in http_hub.asked)


@pytest.mark.parametrize("status", [401, 403, 409, 418])
def test_what_the_hub_refuses_is_one_paragraph_and_the_folder_stays(
    folder, tmp_path, monkeypatch, capsys, http_hub, status
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    http_hub.status = status
    out = tmp_path / "out"
    code = chorus(["publish", str(folder), "--to", "acme/digits", "--out", str(out)])
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert f"chorus publish {out} --to acme/digits" in error
    assert TOKEN not in error
    assert FinishedModel.load(out)
