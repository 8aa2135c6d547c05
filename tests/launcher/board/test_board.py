"""The board: what it says of runs, whom it answers, and that nothing in a run folder leads it elsewhere."""

import asyncio
import json
import os
import shutil
import sys
import threading
import time

import pytest
from devtools import CHROMIUM, chromium
from prometheus_client.parser import text_string_to_metric_families
from run_folders import stage_record, training_row, write_results, write_rows, write_run
from small_servers import wait_for
from starlette.testclient import TestClient

from launcher import cli
from launcher.board import app as board_app
from launcher.board import watched_run
from launcher.board.app import build_board
from launcher.board.server import BoardServer
from launcher.board.watcher import Watcher
from launcher.monitoring.status import run_status
from launcher.serving.settings import listen

ADDRESS = "http://127.0.0.1:8080"
TOKEN = "a-token-of-24-characters"
MARKUP = "<img src=http://127.0.0.1:9/x onerror=alert(1)>"


@pytest.fixture
def runs(tmp_path):
    first = write_run(tmp_path / "runs" / "first", done=100, stages=("teacher", "student"))
    write_results(first, {"student": {"parameters": 1200, "test": {"cer": 0.05, "wer": 0.25}}})
    write_run(tmp_path / "runs" / "team" / "second", steps=200, done=50, stages=("teacher", "student"))
    return tmp_path / "runs"


def look(*folders, is_local=True, token=None):
    """A client of a board that has just looked, and its watcher."""
    watcher = Watcher(folders)
    while watcher.look():
        pass
    return TestClient(build_board(watcher, is_local, token), base_url=ADDRESS), watcher


def summaries(client):
    return {run["name"]: run for run in client.get("/api/runs").json()["runs"]}


def test_every_run_is_shown_with_where_it_is(runs):
    client, _ = look(runs)
    shown = summaries(client)
    assert list(shown) == ["first", "team/second"]
    first = shown["first"]
    assert first["state"] == "done"
    assert first["rates"] == {"model": "student", "split": "test", "cer": 0.05, "wer": 0.25}
    second = shown["team/second"]
    # Nobody holds the folder of a run that says it is running.
    assert second["state"] == "interrupted"
    assert (second["stage"], second["step"], second["steps"]) == ("student", 50, 200)
    assert second["last_event"]["event"] == "training_started"
    assert second["spark"][0] == pytest.approx(5.0 / 1.1, rel=1e-5)


def test_the_board_says_what_chorus_status_says(runs):
    with runs.joinpath("team/second/student/metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "lo')
    client, watcher = look(runs)
    for name, watched in watcher.runs.items():
        status = {stage["name"]: stage for stage in run_status(watched.run)["stages"]}
        for stage in client.get("/api/run", params={"run": name}).json()["stages"]:
            for key in ("status", "step", "steps", "eta_s", "restarts"):
                assert stage[key] == status[stage["name"]][key]
            assert stage["step_s"] == pytest.approx(status[stage["name"]]["step_s"])
            assert stage["goodput"] == pytest.approx(status[stage["name"]]["goodput"], abs=1e-6)


def test_a_run_that_goes_on_is_followed_with_its_processes_and_checkpoints(runs):
    client, watcher = look(runs)
    second = watcher.runs["team/second"].run
    stage = second.stage("student")
    with second.locked():
        stage.checkpoint(60).mkdir(parents=True)
        write_rows(stage.metrics_file, [training_row(60, loss=0.5)])
        stage.heartbeats.mkdir()
        beat = {"rank": 0, "pid": 7, "host": "node-3", "step": 60, "section": "step", "time": time.time()}
        stage.heartbeat_file(0).write_text(json.dumps(beat))
        watcher.look()
        shown = client.get("/api/run", params={"run": "team/second"}).json()
        assert (shown["state"], shown["loss"]) == ("running", 0.5)
        (student,) = [one for one in shown["stages"] if one["name"] == "student"]
        assert student["eta_s"] > 0
        assert student["training"]["steps"][-1] == 60
        assert [checkpoint["step"] for checkpoint in student["checkpoints"]] == [60]
        assert student["processes"] == [{**beat, "exit_code": None}]
        beat["section"] = "save"
        stage.heartbeat_file(0).write_text(json.dumps(beat))
        answer = client.get("/api/processes", params={"run": "team/second", "stage": "student"}).json()
        assert answer["processes"][0]["section"] == "save"


def test_the_log_of_the_process_that_failed_first_is_shown_and_others_are_not(runs):
    _, watcher = look(runs)
    stage = watcher.runs["team/second"].run.stage("student")
    stage.logs.mkdir()
    base = {"host": "node", "pid": 1, "exit_code": 1, "frame": "x.py:1", "traceback": "Traceback"}
    later = {**base, "rank": 1, "time": 20.0, "kind": "RuntimeError", "message": "Connection closed by peer"}
    first = {**base, "rank": 3, "time": 10.0, "kind": "ValueError", "message": "no such frame"}
    for error in (later, first):
        stage.error_file(error["rank"]).write_text(json.dumps(error))
        stage.rank_log(error["rank"]).write_text(f"log of rank {error['rank']}\n")
    client, _ = look(runs)
    failure = client.get("/api/failure", params={"run": "team/second", "stage": "student"}).json()
    assert failure["error"]["message"] == "no such frame"
    assert failure["text"] == "log of rank 3\n"
    # Of a process that was killed there is no error; the launcher says which it was.
    for path in stage.error_files():
        path.unlink()
    write_rows(
        watcher.runs["team/second"].run.events_file,
        [{"time": 1, "event": "process_lost", "rank": 1, "stage": "student"}],
    )
    client, _ = look(runs)
    failure = client.get("/api/failure", params={"run": "team/second", "stage": "student"}).json()
    assert (failure["error"], failure["text"]) == (None, "log of rank 1\n")


def test_a_long_log_is_shown_from_a_whole_line_near_its_end_without_secrets(runs):
    _, watcher = look(runs)
    log = watcher.runs["first"].run.stage("teacher").rank_log(0)
    log.parent.mkdir()
    log.write_text("".join(f"line {number}\n" for number in range(20_000)) + "https://me:abcdefghijklmnop@store/x\n")
    client, _ = look(runs)
    text = client.get("/api/failure", params={"run": "first", "stage": "teacher"}).json()["text"]
    assert text.startswith("line ")
    assert "line 19999\n" in text
    assert "abcdefghijklmnop" not in text
    assert len(text) <= 64 * 1024


def messages(board, number, before_each=lambda: None):
    """The next messages of a stream."""

    async def collect():
        received = []
        async for text in board._changes():
            received.append(json.loads(text.removeprefix("data: ")))
            if len(received) == number:
                return received
            before_each()
        return received

    return asyncio.run(collect())


def test_a_stream_sends_all_runs_and_then_those_that_changed_or_are_gone(runs, monkeypatch):
    monkeypatch.setattr(board_app, "STREAM_S", 0.01)
    client, watcher = look(runs)
    steps = [
        lambda: write_rows(runs / "team/second/student/metrics.jsonl", [training_row(60, loss=0.5)]),
        lambda: shutil.rmtree(runs / "first"),
        lambda: write_run(runs / "third"),
    ]

    def change():
        steps.pop(0)()
        watcher._next_discovery_s = 0.0
        watcher.look()

    received = messages(client.app.state.board, 4, change)
    names = [[run["name"] for run in message["runs"]] for message in received]
    assert names == [["first", "team/second"], ["team/second"], [], ["third"]]
    assert received[1]["runs"][0]["loss"] == 0.5
    assert received[2]["gone"] == ["first"]


def test_prometheus_reads_the_gauges_of_every_run_whatever_it_is_called(runs):
    (runs / "first").rename(runs / 'a "run"\\ of {mine}')
    (runs / "team/second/student/checkpoints/step-00000040").mkdir(parents=True)
    client, _ = look(runs)
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    steps = {sample.labels["run"]: sample.value for sample in families["chorus_run_step"].samples}
    assert steps == {'a "run"\\ of {mine}': 100.0, "team/second": 50.0}
    (age,) = families["chorus_run_seconds_since_checkpoint"].samples
    assert 0 <= age.value < 60
    for name in ("loss", "audio_seconds_per_second", "goodput_ratio", "restarts"):
        assert len(families[f"chorus_run_{name}"].samples) == 2


def plant_link(path, elsewhere):
    path.unlink(missing_ok=True)
    path.symlink_to(elsewhere)


def plant_pipe(path, elsewhere):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def plant_large(path, elsewhere):
    with path.open("wb") as file:
        file.truncate(2**36)


def plant_folder(path, elsewhere):
    path.unlink(missing_ok=True)
    path.mkdir()


def plant_rubbish(path, elsewhere):
    path.write_bytes(b'{"stages": ' + b"[" * 50_000 + b"\xff\x00")


@pytest.mark.parametrize("plant", [plant_link, plant_pipe, plant_large, plant_folder, plant_rubbish])
@pytest.mark.parametrize(
    "file",
    ["state.json", "recipe.yaml", "results.json", "events.jsonl", "student/metrics.jsonl", "student/logs/rank-00.log"],
)
def test_nothing_in_a_run_folder_leads_elsewhere_or_hides_the_other_runs(runs, tmp_path, file, plant):
    elsewhere = tmp_path / "secret.json"
    elsewhere.write_text('{"format": 1, "recipe": "the secret", "stages": {}}\nthe secret\n')
    path = runs / "team/second" / file
    path.parent.mkdir(exist_ok=True)
    plant(path, elsewhere)
    client, _ = look(runs)
    shown = summaries(client)
    assert shown["first"]["state"] == "done"
    answers = [client.get("/api/runs")]
    for call in ("/api/run", "/api/failure", "/api/processes"):
        answers.append(client.get(call, params={"run": "team/second", "stage": "student"}))
    for answer in answers:
        assert answer.status_code in (200, 404)
        assert "the secret" not in answer.text


def test_heartbeats_and_logs_behind_a_link_of_their_folder_are_not_read(runs, tmp_path):
    stage = runs / "team/second/student"
    for name in ("heartbeats", "logs"):
        elsewhere = tmp_path / name
        elsewhere.mkdir()
        (stage / name).symlink_to(elsewhere)
    beat = {"rank": 0, "pid": 7, "host": "the secret", "step": 60, "section": "step", "time": 1.0}
    (tmp_path / "heartbeats/rank-00.json").write_text(json.dumps(beat))
    (tmp_path / "logs/rank-00.log").write_text("the secret")
    client, _ = look(runs)
    for call in ("/api/run", "/api/failure", "/api/processes"):
        answer = client.get(call, params={"run": "team/second", "stage": "student"})
        assert answer.status_code == 200
        assert "the secret" not in answer.text


def test_a_run_that_breaks_its_reader_is_named_and_the_others_are_shown(runs, monkeypatch):
    summarise = watched_run.WatchedRun._summarise

    def fail(run):
        if run.name == "first":
            raise KeyError("surprise")
        return summarise(run)

    monkeypatch.setattr(watched_run.WatchedRun, "_summarise", fail)
    client, _ = look(runs)
    shown = summaries(client)
    assert shown["first"]["state"] == "unreadable"
    assert "KeyError" in shown["first"]["problems"][0]
    assert client.get("/api/run", params={"run": "first"}).json()["problems"] == shown["first"]["problems"]
    assert shown["team/second"]["step"] == 50


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ADDRESS}, 200),
    ],
)
def test_a_board_on_this_machine_answers_to_no_other_site(runs, headers, status):
    client, _ = look(runs)
    for path in ("/", "/api/runs", "/metrics", "/api/run?run=first"):
        assert client.get(path, headers=headers).status_code == status


def test_elsewhere_nothing_of_a_run_is_told_without_the_token(runs):
    client, _ = look(runs, is_local=False, token=TOKEN)
    assert client.get("/").status_code == 200
    assert client.get("/healthz").status_code == 200
    for path in ("/api/runs", "/metrics", "/api/stream", "/api/run?run=first", "/api/failure?run=first", "/nowhere"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/api/runs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_board_only_shows(runs, method):
    client, _ = look(runs)
    for path in ("/", "/api/runs", "/api/run?run=first", "/metrics"):
        answer = client.request(method, path)
        assert answer.status_code == 405
        assert "only shows" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["", "..", "../runs/first", "/etc", "first/../first", "nowhere\x00", "x" * 5000])
def test_a_name_that_is_no_run_is_a_404_and_no_path(runs, name):
    client, _ = look(runs)
    for call in ("/api/run", "/api/failure", "/api/processes"):
        answer = client.get(call, params={"run": name, "stage": "student"})
        assert answer.status_code == 404
        assert "no run called" in answer.json()["error"]["message"]
    answer = client.get("/api/failure", params={"run": "first", "stage": "../../first/student"})
    assert answer.status_code == 404


def test_a_folder_that_is_not_there_is_said_before_anything_listens(tmp_path, capsys):
    assert cli.main(["board", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_a_board_that_others_reach_needs_a_token(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CHORUS_SERVE_TOKEN", raising=False)
    assert cli.main(["board", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "needs a token" in capsys.readouterr().err


def test_what_is_not_installed_is_one_sentence(tmp_path, capsys, monkeypatch):
    for name in list(sys.modules):
        if name.startswith("launcher.board"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert cli.main(["board", str(tmp_path), "--port", "0"]) == 2
    assert "pip install 'chorus-asr[serve]'" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_a_browser_shows_runs_as_they_go_on_and_takes_nothing_in_them_for_markup(runs, tmp_path):
    hostile = write_run(runs / "<b>bold<b>", steps=200, done=50, name=MARKUP)
    state = {"format": 1, "recipe": MARKUP, "stages": {"teacher": stage_record(MARKUP, "failed")}}
    hostile.state_file.write_text(json.dumps(state))
    write_rows(hostile.events_file, [{"time": 1.0, "event": MARKUP, "stage": MARKUP, "reason": f"{MARKUP}\u202e"}])
    write_rows(hostile.stage("teacher").metrics_file, [training_row(60, **{MARKUP: 1.0})])
    log = hostile.stage("teacher").rank_log(0)
    log.parent.mkdir()
    log.write_text(MARKUP)
    server = BoardServer(build_board(Watcher([runs]), is_local=True, token=None))
    opened = listen("127.0.0.1", 0)
    opened.listen()
    thread = threading.Thread(target=server.run, args=([opened],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        address = f"http://127.0.0.1:{opened.getsockname()[1]}"
        with chromium(tmp_path / "profile") as tab:
            tab.open(f"{address}/")
            tab.wait_for("document.querySelectorAll('#runs tbody tr').length === 3")
            write_rows(runs / "team/second/student/metrics.jsonl", [training_row(170)])
            tab.wait_for("document.getElementById('runs').innerText.includes('170 / 200')")
            tab.evaluate("location.hash = new URLSearchParams({run: '<b>bold<b>', over: 'first'})")
            tab.wait_for("document.querySelectorAll('#run figure').length > 5")
            tab.wait_for("document.getElementById('failure').innerText.includes('onerror')")
            text = tab.evaluate("document.body.innerText")
            assert f"reason {MARKUP}\\u202e" in text
            assert tab.evaluate("document.querySelectorAll('img, b > b, script').length") == 1
            assert tab.evaluate("document.getElementById('title').textContent") == "<b>bold<b> and first"
            assert tab.problems == []
            assert all(request.startswith((address, "data:,", "about:")) for request in tab.requests)
    finally:
        server.handle_exit(15, None)
        thread.join(20)
    # A stream that a page looks at does not keep it alive.
    assert not thread.is_alive()
