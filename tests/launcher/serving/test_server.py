"""A server that listens: its end, its page in a browser, its description and what it counts."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from devtools import CHROMIUM, chromium
from hypothesis import HealthCheck, given, settings
from prometheus_client.parser import text_string_to_metric_families
from small_servers import PATH, RATE_HZ, ask, serving, wait_for, wave_bytes

from launcher.serving import app as serving_app
from launcher.serving.app import build_app
from launcher.serving.server import StoppableServer
from launcher.serving.settings import ServerSettings, listen

# Of each operation, and of each kind: as described, and not so.
EXAMPLES = 25


@contextmanager
def listening(models, **limits):
    """A server in a thread, and its address."""
    app = build_app(models, ServerSettings(**limits))
    server = StoppableServer(app, app.state.service)
    opened = listen("127.0.0.1", 0)
    opened.listen()
    thread = threading.Thread(target=server.run, args=([opened],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield server, f"http://127.0.0.1:{opened.getsockname()[1]}", thread
    finally:
        server.should_exit = True
        thread.join(20)


def test_a_signal_refuses_what_is_new_and_lets_finish_what_runs(models, speech, monkeypatch):
    let_go = threading.Event()
    recognise = serving_app.recognise_upload

    def recognise_slowly(*values):
        assert let_go.wait(20)
        return recognise(*values)

    monkeypatch.setattr(serving_app, "recognise_upload", recognise_slowly)
    with listening(models) as (server, address, thread):
        client = httpx.Client(base_url=address)
        answers = []
        running = threading.Thread(target=lambda: answers.append(ask(client, wave_bytes(speech[0]))))
        running.start()
        wait_for(lambda: server.service.admission.running == 1)
        server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: server.service.admission.is_stopping)
        refused = httpx.post(f"{address}{PATH}", files={"file": b""}, data={"model": "noise"})
        assert refused.status_code == 503
        assert "being stopped" in refused.json()["error"]["message"]
        assert httpx.get(f"{address}/healthz").status_code == 503
        let_go.set()
        running.join(20)
        assert [answer.status_code for answer in answers] == [200]
        thread.join(20)
        assert not thread.is_alive()
        assert server.num_cut_off == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")


def test_what_is_not_done_in_time_is_cut_off_with_an_answer_and_counted(models, speech, monkeypatch):
    let_go = threading.Event()

    def recognise_never(batcher, work, *values):
        let_go.wait(20)
        work.check()

    monkeypatch.setattr(serving_app, "recognise_upload", recognise_never)
    with listening(models, stop_s=0.3) as (server, address, thread):
        answers = []
        client = httpx.Client(base_url=address)
        running = threading.Thread(target=lambda: answers.append(ask(client, wave_bytes(speech[0]))))
        running.start()
        wait_for(lambda: server.service.admission.running == 1)
        server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: server.num_cut_off == 1)
        let_go.set()
        running.join(20)
        thread.join(20)
        assert answers[0].status_code == 503
        assert "did not finish" in answers[0].json()["error"]["message"]


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped_and_ends_with_0(model_folder, speech, tmp_path):
    environment = {**os.environ, "CHORUS_SERVE_TOKEN": "a-token-of-a-test-0123456789"}
    command = [sys.executable, "-m", "launcher.cli", "serve", f"mine={model_folder}", "--port", "0"]
    with (
        (tmp_path / "errors").open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            client = httpx.Client(base_url=address, timeout=60)
            assert ask(client, b"", "mine").status_code == 401
            client.headers["Authorization"] = "Bearer a-token-of-a-test-0123456789"
            assert ask(client, wave_bytes(speech[0]), "mine").status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert (tmp_path / "errors").read_text().splitlines()[-1] == "chorus: stopping; 0 requests run"


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Exception, match="in use"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_the_page_holds_all_that_it_needs_and_may_load_nothing_else(models):
    with serving({'<b>"name': models["noise"]}) as client:
        answer = client.get("/")
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert "//cdn" not in answer.text
    assert "<b>" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


def test_metrics_are_those_of_prometheus_and_count_what_was_asked(models, speech):
    with serving(models) as client:
        ask(client, wave_bytes(speech[0]))
        ask(client, b"no audio")
        for number in range(3):
            client.get(f"/nothing/{number}")
        text = client.get("/metrics").text
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name, *sample.labels.values()] = sample.value
    assert samples["chorus_requests_total", PATH, "200"] == 1
    assert samples["chorus_requests_total", PATH, "400"] == 1
    assert samples["chorus_requests_total", "other", "404"] == 3
    assert samples["chorus_refused_total", "invalid_audio"] == 1
    assert samples["chorus_audio_seconds_total", "noise"] == pytest.approx(len(speech[0]) / RATE_HZ, abs=0.001)
    assert samples["process_resident_memory_bytes",] > 1e7


def test_the_description_names_every_field_and_every_refusal(client):
    description = client.get("/openapi.json").json()
    operation = description["paths"][PATH]["post"]
    assert {"400", "401", "404", "413", "429", "503", "504"} <= set(operation["responses"])
    assert "422" not in operation["responses"]
    content = operation["requestBody"]["content"]
    assert list(content) == ["multipart/form-data"]
    form = description["components"]["schemas"][content["multipart/form-data"]["schema"]["$ref"].split("/")[-1]]
    assert form["required"] == ["file", "model"]
    assert {"language", "response_format", "temperature", "timestamp_granularities[]", "experts"} < set(
        form["properties"]
    )
    assert client.get("/docs").status_code == 404


@pytest.mark.slow
def test_requests_made_up_from_the_description_meet_no_fault(models):
    schemathesis = pytest.importorskip("schemathesis")
    checks = schemathesis.checks
    # Under the name that its client uses.
    app = build_app(models, ServerSettings(is_local=False))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    statuses = set()

    def ask_made_up(case):
        response = case.call()
        statuses.add(response.status_code)
        case.validate_response(
            response,
            checks=[
                checks.not_a_server_error,
                checks.status_code_conformance,
                checks.content_type_conformance,
                checks.response_schema_conformance,
            ],
        )

    for result in schema.get_all_operations():
        operation = result.ok()
        modes = [schemathesis.GenerationMode.POSITIVE]
        # A path is any text: only a form can be filled in wrongly.
        if operation.body:
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        for mode in modes:
            made_up = operation.as_strategy(generation_mode=mode)
            settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
                given(made_up)(ask_made_up)
            )()
    app.state.service.close()
    assert {200, 400} <= statuses, statuses


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_one_speaks_or_chooses_a_file_and_sees_words_and_experts(models, speech, tmp_path):
    recording = tmp_path / "speech.wav"
    soundfile.write(recording, np.concatenate([speech[0], np.zeros(RATE_HZ), speech[1]]), RATE_HZ)
    microphone = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={recording}",
    )
    with listening(models) as (_, address, _), chromium(tmp_path / "profile", *microphone) as tab:
        tab.open(address)
        tab.evaluate("byId('speak').click()")
        tab.wait_for("byId('speak').textContent === 'Stop'")
        # While it is spoken.
        tab.wait_for("byId('text').textContent.length > 0")
        tab.evaluate("byId('speak').click()")
        tab.wait_for("!byId('experts').hidden")
        assert tab.evaluate("byId('speak').textContent") == "Speak"

        tab.choose_files("#file", recording)
        tab.wait_for("byId('status').textContent.includes('s of sound')")
        answer = httpx.post(
            f"{address}{PATH}",
            files={"file": recording.read_bytes()},
            data={
                "model": "noise",
                "response_format": "verbose_json",
                "experts": "true",
                "timestamp_granularities[]": "word",
            },
        ).json()
        shown = json.loads(
            tab.evaluate("JSON.stringify([...byId('rows').rows].map((row) => row.cells[0].textContent))")
        )
        assert shown == [word["word"] for word in answer["words"]]
        assert tab.evaluate("byId('experts-map').width") == len(answer["experts"]["layers"][0]["frames"])
        assert tab.evaluate("byId('layers').children.length") == 8
        assert tab.problems == []
        # Nothing but this server was asked.
        asked = [url for url in tab.requests if not url.startswith(("data:", f"blob:{address}", address))]
        assert asked == []

        broken = tmp_path / "broken.wav"
        broken.write_bytes(b"no audio")
        tab.choose_files("#file", broken)
        tab.wait_for("byId('status').classList.contains('error')")
        assert "cannot be recognised" in tab.evaluate("byId('status').textContent")
        assert Path(recording).exists()
