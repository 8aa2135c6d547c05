"""`chorus shards verify`, `reshard`, `merge`, `sample`, `filter` and `play` as a user gives them."""

import json

import pytest
from made_shards import Said, some_speech, speech, write_set

from data.shards.index import read_summary
from data.shards.writer import read_index
from launcher.cli import main as chorus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "corpus"
    write_set(folder / "train", [*some_speech(20, "t"), Said("quiet", "abc", waveform=1e-4 * speech(1.0))])
    write_set(folder / "dev", some_speech(4, "d"))
    return folder


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = chorus(["shards", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_warnings_are_listed_and_leave_the_exit_code_0(capsys, corpus):
    code, out, _ = run(capsys, "verify", corpus)
    assert code == 0
    assert "warning: silence in train, 1 cases, 1 utterances" in out
    assert "quiet: its loudest 25 ms are at" in out
    assert out.endswith(f"{corpus / 'train'}: intact\n")
    code, out, _ = run(capsys, "verify", corpus, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["intact"] is True
    assert report["problems"] == {str(corpus / "dev"): [], str(corpus / "train"): []}
    (silence,) = [finding for finding in report["findings"] if finding["kind"] == "silence"]
    assert silence["severity"] == "warning"
    assert silence["items"][0]["keys"] == ["quiet"]


def test_broken_data_has_the_exit_code_3(capsys, tmp_path):
    split = write_set(tmp_path / "train", some_speech(6))
    (split / "shard-000000.tar").unlink()
    code, out, _ = run(capsys, "verify", split)
    assert code == 3
    assert out.startswith("broken: truncated in train")
    code, out, _ = run(capsys, "verify", split, "--json")
    assert code == 3
    assert json.loads(out)["problems"][str(split)]


def test_what_verify_names_is_left_out_of_a_new_set(capsys, corpus, tmp_path):
    _, out, _ = run(capsys, "verify", corpus, "--json")
    report = tmp_path / "report.json"
    report.write_text(out)
    code, out, _ = run(
        capsys, "filter", corpus, "--out", tmp_path / "new", "--without-keys", report, "--kinds", "silence"
    )
    assert code == 0
    assert "train: 20 utterances" in out
    assert "quiet" not in list(read_index(tmp_path / "new" / "train").keys())
    settings = read_summary(tmp_path / "new" / "train")["lineage"]["settings"]
    assert settings["kinds"] == ["silence"]
    assert len(settings["without_keys_sha256"]) == 64


def test_sets_are_resharded_sampled_and_merged(capsys, corpus, tmp_path):
    code, out, _ = run(capsys, "reshard", corpus, "--out", tmp_path / "small", "--shard-seconds", "4", "--json")
    assert code == 0
    assert json.loads(out)["splits"]["train"]["shards"] > 5
    code, out, _ = run(capsys, "sample", corpus, "--out", tmp_path / "part", "--utterances", "3", "--splits", "train")
    assert code == 0
    assert out.startswith("train: 3 utterances")
    code, out, _ = run(capsys, "sample", corpus, "--out", tmp_path / "part", "--utterances", "3", "--splits", "train")
    assert code == 0
    assert "there already" in out
    code, _, err = run(capsys, "merge", corpus, tmp_path / "part", "--out", tmp_path / "both")
    assert code == 3
    assert "3 keys of split train" in err
    code, out, _ = run(
        capsys, "merge", corpus, tmp_path / "part", "--out", tmp_path / "both", "--prefixes", "a,b", "--json"
    )
    assert code == 0
    assert json.loads(out)["splits"]["train"]["utterances"] == 24


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (("sample", "--share", "2"), "share is 2.0"),
        (("sample",), "give one of them"),
        (("filter",), "no condition is given"),
        (("filter", "--text", "("), "no regular expression"),
        (("filter", "--min-seconds", "-1"), "min_seconds"),
        (("filter", "--min-seconds", "3", "--max-seconds", "2"), "min_seconds is 3 and max_seconds 2"),
        (("filter", "--min-rate", "9", "--max-rate", "8.5"), "min_rate is 9 and max_rate 8.5"),
        (("reshard", "--shard-seconds", "0"), "shard_seconds"),
        (("merge",), "name two or more"),
    ],
)
def test_settings_that_mean_nothing_are_one_sentence_and_exit_code_2(capsys, corpus, tmp_path, arguments, seen):
    action, *others = arguments
    code, _, err = run(capsys, action, corpus, "--out", tmp_path / "new", *others)
    assert code == 2
    assert seen in err
    assert len(err.strip().splitlines()) == 1
    # There is none that could be mended.
    assert "recipe" not in err
    assert not (tmp_path / "new").exists()


def test_one_utterance_is_written_to_be_heard(capsys, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "play", corpus, "quiet")
    assert code == 0
    assert out == "quiet.wav\nquiet.txt: abc\n"
    assert (tmp_path / "quiet.wav").read_bytes()[:4] == b"RIFF"
    code, _, err = run(capsys, "play", corpus, "nobody")
    assert code == 3
    assert "nobody" in err
    code, _, err = run(capsys, "play", corpus, "../nobody?")
    assert code == 2
    assert "--out" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "s3://bucket/speech"),
        ("stats", "https://example.org/speech"),
        ("play", "s3://bucket/speech", "key"),
        ("sample", "s3://bucket/speech", "--out", "new", "--hours", "1"),
        ("merge", "CORPUS", "s3://bucket/speech", "--out", "new"),
        ("reshard", "CORPUS", "--out", "s3://bucket/new"),
    ],
)
def test_a_url_is_named_as_one_and_not_taken_for_a_folder(capsys, corpus, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *(corpus if argument == "CORPUS" else argument for argument in arguments))
    assert code == 3
    (url,) = [argument for argument in arguments if "://" in argument]
    assert err.startswith(f"chorus: {url} is a URL")
    assert list(tmp_path.iterdir()) == []
