"""Credentials stay where they are needed: on no command line, in no record of a run, in no log and no report."""

import json
import logging
import time

import pytest
from trackers import _no_settings_from_outside  # noqa: F401  a fixture for all tests here
from wandb_records import stage_records

from data.errors import DataError
from data.redaction import RedactingFormatter, has_credentials, redact, redact_values
from launcher.cli import main as chorus
from launcher.processes import agent_command
from launcher.processes.launchers import make_launcher
from launcher.processes.run_processes import make_token
from launcher.processes.worker_error import record_error
from launcher.recipe import ClusterConfig
from launcher.report.run_data import read_run_data
from launcher.run_folder import RunFolder, write_json, write_text
from launcher.tracking import Artifact, TrackingConfig, WandbConfig, choose_mode

VARIABLES = {
    "https_proxy": "http://user:PW@proxy:3128",
    "DB_PASSWD": "PW",
    "PGPASS": "PW",
    "DATABASE": "postgres://user:PW@host/db",
    "AZURE_STORAGE": "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=PW",
    "FSSPEC_S3": '{"secret": "PW"}',
    "NAME_LIKE_ANY_OTHER": "PW",
    "NCCL_NAMED_BY_THE_USER": "PW",
}
PASSED_BY_THEMSELVES = {
    "WANDB_BASE_URL": "https://user:PW@wandb.example.com",
    "WANDB_API_KEY": "PW",
    "WANDB_IDENTITY": "PW",
    "NCCL_NET_TOKEN": "PW",
    "NCCL_CONFIG_URL": "https://user:PW@host/x",
    "GLOO_PASSPHRASE": "PW",
}
URLS = [
    "https://user:PW@host/x",
    "https://PW@host/x",
    "https://host/x?X-Amz-Signature=PW&x=1",
    "https://host/x?a=1&X-Amz-Credential=PW",
    "https://host/x?sig=PW",
    "https://host/x?token=PW",
    "https://host/x?access_token=PW#y",
    "https://host/x?apikey=PW",
    "https://host/x?Signature=PW&AWSAccessKeyId=PW",
    "gs://host/x?X-Goog-Signature=PW",
    "simplecache::ftp://user:PW@host/x",
    "postgresql+psycopg://user:PW@host/db",
    "https://host/x?X%2DAmz%2DSecurity%2DToken=PW",
    "HTTPS://USER:PW@HOST",
    "a.scheme-longer+than+thirty.one.letters+https://PW@host/x",
    "a://b@https://PW@host/x",
    "https://user:P@W:PW@host",
]


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    for name, value in {**VARIABLES, **PASSED_BY_THEMSELVES, "NCCL_DEBUG": "INFO"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    return ClusterConfig(processes=2, hostfile=tmp_path / "hosts", environment=tuple(VARIABLES))


def test_what_a_user_names_is_on_no_command_line_and_in_no_record(hosts, tmp_path):
    launcher = make_launcher(hosts)
    run = RunFolder(tmp_path / "run")
    for launch in (launcher.training(run, "teacher", 29500), launcher.evaluation(run, "evaluation")):
        for command in launch.commands:
            assert "PW" not in " ".join(command.arguments)
            assert command.secrets is not None
            for name, value in {**VARIABLES, **PASSED_BY_THEMSELVES}.items():
                assert command.secrets[name] == value
            assert any("NCCL_DEBUG=INFO" in argument for argument in command.arguments)
        assert "PW" not in json.dumps(launch.record())
        assert "DB_PASSWD" in launch.record()["commands"][0]["secret_variables"]


def test_a_plan_over_hosts_shows_no_secret(hosts, tmp_path, capsys):
    names = ", ".join(VARIABLES)
    options = ["--hostfile", str(tmp_path / "hosts"), "--set", f"cluster.environment=[{names}]"]
    assert chorus(["plan", "mini", "--run-dir", str(tmp_path / "run"), *options]) == 0
    assert "PW" not in capsys.readouterr().out


def test_short_commands_on_other_hosts_get_no_secret(hosts):
    shown, secrets = agent_command.passed_environment(hosts, {**VARIABLES, **PASSED_BY_THEMSELVES})
    assert "PW" not in json.dumps(shown)
    assert set(secrets) == {*VARIABLES, *PASSED_BY_THEMSELVES}


@pytest.mark.parametrize("url", URLS)
def test_what_is_secret_in_a_url_is_hidden_and_the_rest_is_not(url):
    sentence = f"{url} cannot be read: 403."
    assert has_credentials(sentence)
    shown = redact(sentence)
    assert "PW" not in shown
    assert shown.lower().startswith(url.partition("://")[0].lower())
    assert shown.endswith(" cannot be read: 403.")
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/key",
        "abfs://container@account.dfs.core.windows.net/x",
        "sftp://user@host/x",
        "https://host/x?page=2&author=me&keyword=a",
        "step 3: loss=4, token=5",
        "mail me@example.com, or see https://example.com",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text):
    assert not has_credentials(text)
    assert redact(text) == text


HOSTILE_TEXTS = {
    "a scheme before a word without end": "a" * 31 + "://" + "b" * 2**20,
    "schemes before words": ("a" * 31 + "://" + "b" * 1000) * 1000,
    "schemes alone": ("a" * 30 + "://") * 30_000,
    "users without hosts": "a://" + "b@" * 2**19,
    "colons": "a://" + ":" * 2**20,
    "parameters": ("&" + "x" * 79 + "=") * 13_000,
    "parameters of escapes": ("&" + "%41" * 26 + "=1") * 13_000,
    "nearly a secret": ("&" + "auth" * 20 + "=1") * 13_000,
}


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_a_megabyte_that_is_made_to_be_searched_for_long_is_redacted_at_once(name):
    began = time.process_time()
    redact(HOSTILE_TEXTS[name])
    # Half a second on a slow machine; what takes the square, or a search for each letter, is far beyond.
    assert time.process_time() - began < 2


def test_events_errors_logs_and_messages_hide_what_libraries_say_of_urls(tmp_path, capsys, monkeypatch):
    run = RunFolder(tmp_path)
    sentence = "; ".join(URLS)
    run.append_event("process_lost", stage="teacher", reason=sentence)
    folder = run.stage("teacher")
    folder.logs.mkdir(parents=True)
    try:
        raise OSError(sentence)
    except OSError as error:
        record_error(folder, 0, error)
    assert run.events()[0]["stage"] == "teacher"
    for file in (run.events_file, folder.error_file(0)):
        assert "PW" not in file.read_text()

    record = logging.LogRecord("data", logging.WARNING, "", 0, "%s", (sentence,), None)
    assert "PW" not in RedactingFormatter("%(message)s").format(record)

    def fail(options):
        logging.lastResort.handle(record)
        raise DataError(sentence)

    monkeypatch.setattr("launcher.cli._command", lambda *_: fail)
    assert chorus(["report", str(tmp_path)]) == 3
    message = capsys.readouterr().err
    assert message.count("https://host/x?sig=***") == 2
    assert "PW" not in message


def test_wandb_gets_neither_the_secrets_of_a_recipe_nor_those_of_its_server(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "https://user:PW@wandb.example.com")
    _, reason = choose_mode("auto", {"WANDB_BASE_URL": "https://user:PW@wandb.example.com:8080", "HOME": str(tmp_path)})
    assert reason == "no login for wandb.example.com:8080 in the environment or netrc"
    monkeypatch.delenv("WANDB_BASE_URL")

    from launcher.tracking import Tracker

    stage = tmp_path / "teacher"
    offline = TrackingConfig(wandb=WandbConfig(mode="offline"))
    recipe = {"corpus": {"shards": URLS[0]}, "list": [{"x": URLS[2]}]}
    tracker = Tracker(stage, offline, run_name="mini", recipe=recipe, resume_step=0)
    tracker.event({"event": "update_skipped", "stage": "teacher", "step": 3, "reason": URLS[4], "utterances": []})
    tracker.artifacts(lambda: [Artifact("a", "model", "ab", {"from": URLS[0]}, note={"path": URLS[3]})], used=False)
    tracker.close(60)
    records = stage_records(stage)
    assert records
    written = b"".join(record.SerializeToString() for record in records)
    assert b"host/x" in written
    for file in stage.rglob("*"):
        if file.is_file() and not file.is_symlink():
            content = file.read_bytes()
            assert b"user:PW" not in content
            assert b"=PW" not in content
    assert redact_values(recipe)["list"][0]["x"].startswith("https://host/x?X-Amz-Signature=***")


def test_the_report_of_an_old_run_hides_the_secrets_in_its_recipe(tmp_path):
    run = RunFolder(tmp_path)
    run.recipe_file.write_text(f"name: mini\ncorpus: {{name: shards, shards: '{URLS[0]}'}}\nstages: []\n")
    run.state_file.write_text('{"format": 1, "recipe": "mini", "stages": {}}')
    data = read_run_data(tmp_path)
    assert "https://user:***@host/x" in data.recipe_text
    assert "PW" not in data.recipe_text


def test_files_with_command_lines_are_of_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    run = RunFolder(tmp_path / "run")
    make_token(run)
    by_hand = ["--launcher", "no_ssh", "--hostfile", str(tmp_path / "hosts")]
    for options in (["--launcher", "slurm", "--dry-run"], by_hand):
        assert chorus(["run", "mini", "--run-dir", str(run.path), *options]) == 0
    write_json(run.stage("teacher").launch_file, {}, private=True)
    files = (run.batch_script, run.node_commands_file, run.token_file, run.stage("teacher").launch_file)
    assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o600"] * 4
    # Written anew over one that anybody could read.
    run.token_file.chmod(0o644)
    write_text(run.token_file, "", private=True)
    assert run.token_file.stat().st_mode & 0o077 == 0
