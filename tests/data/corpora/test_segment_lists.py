"""GigaSpeech and WenetSpeech as they are published: long recordings, and a list of gigabytes that divides them."""

import json

import pytest
import soundfile
from lookalikes import RATE_HZ, of_split, reasons, samples_by_key, summary, texts, write_noise

from data.corpora import gigaspeech, prepare, wenetspeech
from data.corpora.gigaspeech import GigaSpeechConfig
from data.corpora.published import RowCollector
from data.corpora.rejections import describe_rejections
from data.corpora.segment_list import read_segments
from data.corpora.wenetspeech import WenetSpeechConfig
from data.errors import DataError

ALL_SUBSETS = ["{XS}", "{S}", "{M}", "{L}", "{XL}"]


def gigaspeech_segment(number: int, text: str, subsets: list[str], start_s: float = 0.0) -> dict:
    return {
        "sid": f"POD0000000001_S{number:07d}",
        "speaker": "N/A",
        "begin_time": start_s,
        "end_time": start_s + 0.5,
        "text_tn": text,
        "subsets": subsets,
    }


def audio(name: str, segments: list) -> dict:
    return {"title": "T", "path": name, "aid": "POD0000000001", "duration": 2.0, "segments": segments}


def write_list(root, name: str, audios: list) -> None:
    root.mkdir(parents=True, exist_ok=True)
    content = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    (root / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def giga(tmp_path):
    root = tmp_path / "GigaSpeech"
    train = [
        gigaspeech_segment(0, "THE CONFERENCE <COMMA> IS OPEN <PERIOD>", ALL_SUBSETS),
        gigaspeech_segment(1, "IS IT <QUESTIONMARK>", ["{XL}"], 1.2),
        gigaspeech_segment(2, "<MUSIC>", ALL_SUBSETS, 1.0),
    ]
    held_out = [gigaspeech_segment(3, "YES", ["{DEV}"]), gigaspeech_segment(4, "NO", ["{TEST}"], 1.4)]
    write_list(
        root, "GigaSpeech.json", [audio("audio/podcast/P0/A.opus", train), audio("audio/youtube/B.opus", held_out)]
    )
    for name in ("podcast/P0/A.opus", "youtube/B.opus"):
        write_noise(root / "audio" / name, 2.0, format="OGG", subtype="OPUS")
    return root


@pytest.fixture
def decoded_seconds(monkeypatch):
    """How much audio was decoded, in seconds, as the one value of a list."""
    read = soundfile.SoundFile.read
    seconds = [0.0]

    def counting(self, *arguments, **options):
        samples = read(self, *arguments, **options)
        seconds[0] += len(samples) / self.samplerate
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    return seconds


def test_segments_are_read_by_their_offset_and_not_by_decoding_the_recording(giga, tmp_path, decoded_seconds):
    report = prepare(GigaSpeechConfig(root=giga), tmp_path / "shards", seed=1)
    assert {split: part.utterances for split, part in report.splits.items()} == {"train": 2, "dev": 1, "test": 1}
    assert (report.rows, report.used, len(report.rejected)) == (5, 4, 1)
    samples = samples_by_key(tmp_path / "shards" / "train")
    assert samples == {"POD0000000001_S0000000": RATE_HZ // 2, "POD0000000001_S0000001": RATE_HZ // 2}
    # Four segments of half a second, of two recordings of two seconds.
    assert decoded_seconds[0] == pytest.approx(2.0, abs=0.01)


def test_a_subset_is_train_and_its_tags_are_removed_or_spelt_as_marks(giga, tmp_path):
    largest = gigaspeech.select(GigaSpeechConfig(root=giga), 1)
    assert list(texts(largest, "train").values()) == ["the conference is open", "is it"]
    assert of_split(largest, "train")[0].speaker == ""
    smallest = gigaspeech.select(GigaSpeechConfig(root=giga, train="XS"), 1)
    assert list(texts(smallest, "train").values()) == ["the conference is open"]
    punctuated = gigaspeech.select(GigaSpeechConfig(root=giga, punctuation="keep", normalize="none"), 1)
    assert list(texts(punctuated, "train").values()) == ["THE CONFERENCE, IS OPEN.", "IS IT?"]
    prepare(GigaSpeechConfig(root=giga), tmp_path / "shards", seed=1)
    assert summary(tmp_path / "shards" / "train")["text_rules"]["own"] == ["punctuation_tags", "no_speech_tags"]


def test_segments_that_are_no_speech_are_counted(giga):
    (rejected,) = gigaspeech.select(GigaSpeechConfig(root=giga), 1).rejected
    assert rejected.key == "POD0000000001_S0000002"
    assert "is marked as no speech, <MUSIC>" in rejected.reason


def test_a_segment_that_lacks_something_takes_no_other_with_it(giga, tmp_path):
    segments = [
        gigaspeech_segment(0, "YES", ALL_SUBSETS),
        {"sid": "no_times", "text_tn": "NO", "subsets": ALL_SUBSETS},
        gigaspeech_segment(1, "NO", ALL_SUBSETS) | {"end_time": "soon"},
        gigaspeech_segment(2, "BEHIND THE END", ALL_SUBSETS, 9.0),
        gigaspeech_segment(3, "BACKWARDS", ALL_SUBSETS) | {"end_time": -1},
        gigaspeech_segment(4, "ENDLESS", ALL_SUBSETS) | {"end_time": "inf"},
        gigaspeech_segment(5, "NO NUMBER", ALL_SUBSETS) | {"begin_time": "nan"},
        gigaspeech_segment(6, "NO NAME", ALL_SUBSETS) | {"sid": ""},
        "no segment",
    ]
    write_list(giga, "GigaSpeech.json", [audio("audio/podcast/P0/A.opus", segments), {"path": "b"}, "no audio"])
    report = prepare(GigaSpeechConfig(root=giga), tmp_path / "shards", seed=1)
    assert (report.rows, report.used, len(report.rejected)) == (11, 1, 10)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"text_tn": None}, "A.opus has None as text_tn, expected a text"),
        ({"subsets": "{XL}"}, "A.opus has '{XL}' as subsets, expected a list of names"),
        ({"end_time": "nan"}, "A.opus has 'nan' as end_time, expected a number"),
        ({"begin_time": None}, "A.opus has None as begin_time, expected a number"),
        ({"confidence": "high"}, "A.opus has 'high' as confidence, expected a number"),
        ({"sid": None}, "A.opus has no sid"),
    ],
)
def test_what_a_segment_lacks_is_said_in_words_and_never_read_as_a_text(giga, change, seen):
    segments = [gigaspeech_segment(0, "YES", ALL_SUBSETS), gigaspeech_segment(1, "NO", ALL_SUBSETS) | change]
    write_list(giga, "GigaSpeech.json", [audio("A.opus", segments)])
    selection = gigaspeech.select(GigaSpeechConfig(root=giga), 1)
    assert texts(selection, "train") == {"POD0000000001_S0000000": "yes"}
    (row,) = selection.rejected
    assert seen in row.reason
    assert "segments that say too little" in describe_rejections(selection.rejected)


def test_what_a_recording_of_the_list_lacks_is_said_in_words(giga):
    broken = [None, ["A.opus"], {"segments": []}, {"path": "A.opus"}, {"path": "A.opus", "segments": {}}]
    write_list(giga, "GigaSpeech.json", [audio("A.opus", [gigaspeech_segment(0, "YES", ALL_SUBSETS)]), *broken])
    selection = gigaspeech.select(GigaSpeechConfig(root=giga), 1)
    seen = " ".join(row.reason for row in selection.rejected)
    for part in ("None, expected an object", "['A.opus'], expected an object", "no path", "no segments", "{} as segm"):
        assert part in seen
    assert "Error" not in seen


def test_a_list_of_which_half_was_downloaded_is_refused_though_its_beginning_was_read(tmp_path):
    audios = [audio(f"{number}.opus", [gigaspeech_segment(number, "YES " * 200, ["{XL}"])]) for number in range(200)]
    write_list(tmp_path, "GigaSpeech.json", audios)
    path = tmp_path / "GigaSpeech.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    rows = RowCollector(GigaSpeechConfig(root=tmp_path), "en")
    segments = read_segments(path, "text_tn", rows)
    # The first comes before the file was read as far as it is broken: it is streamed.
    assert next(segments).name == "POD0000000001_S0000000"
    with pytest.raises(DataError, match="half of a download"):
        list(segments)
    with pytest.raises(DataError, match="half of a download"):
        gigaspeech.select(GigaSpeechConfig(root=tmp_path), 1)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"audios": []}', b"[1, 2]", b'{"audios": [{"path": "\xff"}]}'])
def test_a_list_without_recordings_is_one_paragraph(tmp_path, content):
    (tmp_path / "GigaSpeech.json").write_bytes(content)
    with pytest.raises(DataError, match=r"lists no recordings|cannot be read to its end|None of the"):
        gigaspeech.select(GigaSpeechConfig(root=tmp_path), 1)


def wenetspeech_segment(name: str, subsets: list[str], confidence: float = 1.0) -> dict:
    return {
        "sid": name,
        "begin_time": 0.0,
        "end_time": 0.4,
        "subsets": subsets,
        "confidence": confidence,
        "text": "而对 楼市成交",
    }


@pytest.fixture
def wenet(tmp_path):
    root = tmp_path / "WenetSpeech"
    train = [
        wenetspeech_segment("strong", ["L", "M", "S"]),
        wenetspeech_segment("fair", ["L"], 0.95),
        wenetspeech_segment("weak", ["W"], 0.7),
    ]
    held_out = [wenetspeech_segment(subset, [subset]) for subset in ("DEV", "TEST_NET", "TEST_MEETING")]
    write_list(root, "WenetSpeech.json", [audio("audio/train/A.opus", train), audio("audio/test/B.opus", held_out)])
    for name in ("train/A.opus", "test/B.opus"):
        write_noise(root / "audio" / name, 1.0, format="OGG", subtype="OPUS")
    return root


def test_wenetspeech_has_a_split_for_each_test_set_and_no_spaces(wenet, tmp_path):
    report = prepare(WenetSpeechConfig(root=wenet), tmp_path / "shards", seed=1)
    counts = {split: part.utterances for split, part in report.splits.items()}
    assert counts == {"train": 2, "dev": 1, "test_net": 1, "test_meeting": 1}
    assert set(texts(wenetspeech.select(WenetSpeechConfig(root=wenet), 1), "train").values()) == {"而对楼市成交"}


def test_weak_labels_are_trained_on_where_they_are_wanted_and_above_a_confidence(wenet):
    def chosen(**options):
        return wenetspeech.select(WenetSpeechConfig(root=wenet, **options), 1)

    assert texts(chosen(train=("S",)), "train").keys() == {"strong"}
    assert texts(chosen(train=("L", "W")), "train").keys() == {"strong", "fair", "weak"}
    confident = chosen(train=("L", "W"), min_confidence=0.9)
    assert texts(confident, "train").keys() == {"strong", "fair"}
    assert "its confidence of 0.7 is below min_confidence 0.9" in reasons(confident)["weak"]
