"""The record of what a stage passed over."""

import json

import pytest

import launcher.quarantine
from data.shards.reader import UtteranceError
from launcher.quarantine import QuarantineLog, read_quarantined
from launcher.report.run_data import read_run_data
from launcher.run_folder import RunFolder


def broken(key, reason="its shard is not there", shard="s3://corpora/train/shard-000003.tar", offset=512):
    return UtteranceError(key, f"Utterance {key} is broken", shard=shard, offset=offset, reason=reason)


@pytest.fixture
def file(tmp_path):
    return RunFolder(tmp_path).stage("teacher").quarantine_file(0)


def test_an_utterance_is_recorded_once_with_its_place_and_reason_over_epochs_and_restarts(file):
    for _ in range(2):
        log = QuarantineLog(file, "train")
        for key in ("a", "b", "a"):
            log.add(broken(key))
    QuarantineLog(file, "dev").add(broken("a"))
    rows = list(read_quarantined(file))
    assert [(row["split"], row["key"]) for row in rows] == [("train", "a"), ("train", "b"), ("dev", "a")]
    assert rows[0] == {
        "split": "train",
        "key": "a",
        "shard": "s3://corpora/train/shard-000003.tar",
        "offset": 512,
        "reason": "its shard is not there",
    }


def test_a_line_that_a_kill_cut_short_costs_no_other(file):
    QuarantineLog(file, "train").add(broken("a"))
    with file.open("a") as stream:
        stream.write('{"split": "train", "ke')
    QuarantineLog(file, "train").add(broken("b"))
    assert [row["key"] for row in read_quarantined(file)] == ["a", "b"]


def test_no_more_are_recorded_than_a_page_can_hold(file, monkeypatch):
    monkeypatch.setattr(launcher.quarantine, "MAX_RECORDED", 5)
    log = QuarantineLog(file, "train")
    for number in range(20):
        log.add(broken(f"k{number}", reason="x" * 100_000))
    assert len(list(read_quarantined(file))) == 5
    assert file.stat().st_size < 20_000


def test_credentials_in_a_reason_are_hidden(file):
    QuarantineLog(file, "train").add(broken("a", reason="GET https://u:secret@host/x?X-Amz-Signature=abc failed"))
    assert "secret" not in file.read_text()
    assert "abc" not in file.read_text()


def test_a_disk_that_refuses_is_said_once_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    log = QuarantineLog(tmp_path / "file" / "quarantined-00.jsonl", "train")
    log.add(broken("a"))
    log.add(broken("b"))
    (record,) = caplog.records
    assert "are not recorded in" in record.getMessage()


@pytest.mark.parametrize(
    "line",
    ["[]", "3", "{}", '{"split": 1, "key": "k", "shard": "s", "reason": "r", "offset": 0}', "[" * 70_000, "\udcff"],
)
def test_lines_of_strangers_are_passed_over(file, line):
    file.parent.mkdir(parents=True)
    good = json.dumps({"split": "train", "key": "k", "shard": "s", "reason": "r", "offset": 0})
    file.write_text(f"{line}\n{good}\n", encoding="utf-8", errors="surrogateescape")
    assert [row["key"] for row in read_quarantined(file)] == ["k"]


def test_the_report_lists_what_every_process_passed_over(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: x\nstages:\n- {name: teacher, kind: pretrain, steps: 3}\n")
    for rank in range(2):
        QuarantineLog(run.stage("teacher").quarantine_file(rank), "train").add(broken(f"key-{rank}"))
    listed = read_run_data(tmp_path).quarantined
    assert [(utterance.stage, utterance.key) for utterance in listed] == [("teacher", "key-0"), ("teacher", "key-1")]
    expected = "s3://corpora/train/shard-000003.tar at offset 512 (train): its shard is not there"
    assert listed[0].reason == expected
