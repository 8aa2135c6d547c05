"""Who may ask a server, how much, how long, and how many at once."""

import asyncio
import os
import sys
import threading

import numpy as np
import pytest
from small_servers import PATH, RATE_HZ, STREAM, ask, serving, wait_for, wave_bytes
from starlette.testclient import WebSocketDenialResponse

from launcher.cli import main as chorus
from launcher.commands import serve as serve_command
from launcher.errors import ConfigError
from launcher.serving import app as serving_app
from launcher.serving.gate import Gate
from launcher.serving.settings import ServerSettings, read_token

TOKEN = "a-token-of-a-test-0123456789"


@pytest.fixture
def slow(monkeypatch):
    """Recognition that waits until it is let go."""
    let_go = threading.Event()
    recognise = serving_app.recognise_upload

    def recognise_slowly(*values):
        assert let_go.wait(20)
        return recognise(*values)

    monkeypatch.setattr(serving_app, "recognise_upload", recognise_slowly)
    yield let_go
    let_go.set()


def pieces_of(content: bytes):
    for start in range(0, len(content), 10_000):
        yield content[start : start + 10_000]


def test_what_is_too_large_is_refused_with_and_without_a_stated_length(models, speech):
    with serving(models, max_bytes=1000) as client:
        large = b"x" * 200_000
        stated = ask(client, large)
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        counted = client.post(
            PATH, content=pieces_of(head + large), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        for answer in (stated, counted):
            assert answer.status_code == 413
            assert "larger than the 0.000953674 MiB" in answer.json()["error"]["message"]
        # What is refused frees its place.
        assert client.app.state.service.admission.running == 0


def test_what_lasts_too_long_is_refused_in_a_file_and_in_a_stream(models, speech):
    with serving(models, max_seconds=1.0) as client:
        answer = ask(client, wave_bytes(np.tile(speech[0], 3)))
        assert answer.status_code == 413
        assert "takes 1 s at most" in answer.json()["error"]["message"]
        with client.websocket_connect(f"{STREAM}?model=noise&sample_rate=16000") as stream:
            stream.send_bytes(bytes(2 * RATE_HZ + 2))
            error = stream.receive_json()["error"]
            assert error["code"] == "too_long"


def test_more_than_the_server_takes_at_once_is_told_when_to_ask_again(models, speech, slow):
    content = wave_bytes(speech[0])
    with serving(models, max_running=1) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(ask(client, content)))
        first.start()
        wait_for(lambda: client.app.state.service.admission.running == 1)
        refused = ask(client, content)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        # What costs nothing is answered all the while.
        assert client.get("/healthz").status_code == 200
        assert "chorus_running 1.0" in client.get("/metrics").text
        slow.set()
        first.join()
        assert [answer.status_code for answer in answers] == [200]
        wait_for(lambda: client.app.state.service.admission.running == 0)
        assert ask(client, content).status_code == 200


def test_a_request_whose_time_is_over_is_told_so_and_holds_its_place_while_its_thread_works(models, speech, slow):
    with serving(models, timeout_s=0.2) as client:
        answer = ask(client, wave_bytes(speech[0]))
        assert answer.status_code == 504
        assert "within the 0.2 s" in answer.json()["error"]["message"]
        assert client.app.state.service.admission.running == 1
        slow.set()
        wait_for(lambda: client.app.state.service.admission.running == 0)


def test_an_upload_that_trickles_is_given_up(models):
    # Below the client of tests, which sends all at once.
    service = serving_app.build_app(models, ServerSettings(timeout_s=0.1)).state.service
    sent = []

    async def read_body(scope, receive, send):
        await receive()
        await receive()

    async def trickle():
        if not sent:
            sent.append(True)
            return {"type": "http.request", "body": b"x", "more_body": True}
        await asyncio.sleep(60)
        return None

    async def ignore(message):
        pass

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(b"host", b"localhost")]}
    gate = Gate(read_body, service.admission)
    with pytest.raises(Exception, match="had not arrived after") as caught:
        asyncio.run(gate(scope, trickle, ignore))
    assert caught.value.status_code == 408
    assert service.admission.running == 0
    service.close()


def test_a_client_that_goes_away_is_not_worked_for(models, speech, slow):
    """Its work is abandoned, and its place is free when the thread has seen it."""
    app = serving_app.build_app(models, ServerSettings())
    service = app.state.service
    boundary = b"x"
    body = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nnoise\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + wave_bytes(speech[0])
        + b"\r\n--x--\r\n"
    )
    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=" + boundary)]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b"", "app": app}
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    answers = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        answers.append(message)

    async def ask_and_go():
        await app(scope, receive, send)
        assert answers[0]["status"] == 499
        assert service.admission.running == 1
        slow.set()
        while service.admission.running:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(ask_and_go(), 10))
    service.close()


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"])
def test_without_the_token_nothing_is_told(models, given):
    with serving(models, token=TOKEN, is_local=False) as client:
        headers = {}
        if given is not None:
            headers["Authorization"] = given.encode("latin-1")
        for path in ("/v1/models", "/metrics", PATH, "/nothing"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error"
            assert "noise" not in answer.text
        assert client.get("/healthz").status_code == 200
        assert client.get("/").status_code == 200


def test_with_the_token_all_is_open_and_a_page_offers_it_as_a_protocol(models, speech):
    with serving(models, token=TOKEN, is_local=False) as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/v1/models", headers=headers).status_code == 200
        protocols = ["chorus", f"chorus-token.{TOKEN.encode().hex()}"]
        address = f"{STREAM}?model=noise&sample_rate=16000"
        with client.websocket_connect(address, subprotocols=protocols) as stream:
            assert stream.accepted_subprotocol == "chorus"
        for wrong in (["chorus"], ["chorus", "chorus-token.zz"], ["chorus", "chorus-token.00"]):
            with (
                pytest.raises(WebSocketDenialResponse) as refused,
                client.websocket_connect(address, subprotocols=wrong),
            ):
                pass
            assert refused.value.status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "192.168.0.1"]
)
def test_a_name_that_was_made_to_point_here_is_refused(client, host):
    answer = client.get("/v1/models", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host"


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST:8000"])
def test_the_names_of_this_machine_are_taken(client, host):
    assert client.get("/v1/models", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "file://", "http://["])
def test_pages_of_other_sites_cannot_use_the_server(client, speech, origin):
    headers = {"Origin": origin, "Host": "127.0.0.1:8000"}
    answer = client.post(PATH, files={"file": ("a", b"")}, data={"model": "noise"}, headers=headers)
    assert answer.status_code == 403
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(f"{STREAM}?model=noise&sample_rate=16000", headers=headers),
    ):
        pass
    assert refused.value.status_code == 403


def test_without_a_token_the_server_does_not_listen_for_other_machines(model_folder, capsys, monkeypatch):
    monkeypatch.delenv("CHORUS_SERVE_TOKEN", raising=False)
    assert chorus(["serve", str(model_folder), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "A server that other machines reach needs a token" in capsys.readouterr().err


def test_a_token_is_read_from_a_file_that_its_owner_alone_reads(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    for mode in (0o644, 0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            read_token(path, {})
    path.chmod(0o600)
    assert read_token(path, {"CHORUS_SERVE_TOKEN": "b" * 20}) == TOKEN
    assert read_token(None, {"CHORUS_SERVE_TOKEN": "b" * 20}) == "b" * 20
    assert read_token(None, {}) is None


@pytest.mark.parametrize("content", ["", "short", "with a space in it 0123456789", "ä" * 20, "x" * 600])
def test_what_is_no_token_is_refused(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="16 to 512"):
        read_token(path, {})
    with pytest.raises(ConfigError, match="16 to 512"):
        read_token(None, {"CHORUS_SERVE_TOKEN": content})


def test_a_token_that_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "gone"):
        with pytest.raises(ConfigError, match="The token in"):
            read_token(path, {})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--host", "no such host"], "cannot listen on no such host"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--max-mb", "0"], "--max-mb is 0"),
        (["--max-mb", "nan"], "--max-mb is 0"),
        (["--max-seconds", "inf"], "--max-seconds is inf"),
        (["--max-seconds", "99999"], "no recording may last more than"),
        (["--max-requests", "-1"], "--max-requests is -1"),
        (["--timeout", "0"], "--timeout is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["--batch-wait-ms", "-3"], "--batch-wait-ms is -3"),
        (["--stop-seconds", "nan"], "--stop-seconds is nan"),
        (["--token-file", "/nowhere"], "The token in /nowhere cannot be read"),
        (["--search", "transducer"], "transducer"),
    ],
)
def test_a_wrong_option_is_one_paragraph_and_nothing_starts(model_folder, capsys, monkeypatch, arguments, says):
    monkeypatch.setattr("launcher.serving.server.run_server", lambda *_: pytest.fail("it was started"))
    port = [] if "--port" in arguments else ["--port", "0"]
    assert chorus(["serve", str(model_folder), *port, *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_models_are_named_by_their_stage_or_as_the_user_says(model_folder, tmp_path):
    stage = tmp_path / "run" / "student"
    stage.mkdir(parents=True)
    (stage / "model").symlink_to(model_folder)
    names = serve_command.name_models([str(stage), str(model_folder), f"other={model_folder}"])
    assert names == {"student": stage / "model", "noise": model_folder, "other": model_folder}
    for arguments in ([str(stage), str(stage)], [f"a b={model_folder}"], [f"x={stage}", f"x={model_folder}"]):
        with pytest.raises(ConfigError, match=r"NAME=|OTHER="):
            serve_command.name_models(arguments)


def test_what_is_not_installed_is_one_sentence(model_folder, capsys, monkeypatch):
    # None in the place of a module: its import fails, as where it is absent.
    monkeypatch.setitem(sys.modules, "launcher.serving.app", None)
    assert chorus(["serve", str(model_folder), "--port", "0"]) == 2
    assert "pip install 'chorus-asr[serve]'" in capsys.readouterr().err
