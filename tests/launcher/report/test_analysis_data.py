"""What an evaluation kept for the report may be from anybody: it is shown, or left out and named, and never acts."""

import base64
import html.parser
import json

import numpy as np
import pytest

from launcher.report import write_report
from launcher.report.analysis_data import MAX_AUDIO_CHARACTERS
from launcher.run_folder import RunFolder, write_json

MARKUP = '"><script>alert(1)</script><img src=x onerror=a()>\x1b[31m\u202e'
SOUND = base64.b64encode(b"sound" * 20).decode()


def hard_utterance(**changes):
    word = {"word": "one", "start_s": 0.1, "end_s": 0.3, "confidence": 0.7}
    utterance = {
        "corpus": "",
        "key": "k1",
        "reference": "one two",
        "seconds": 1.5,
        "audio_seconds": 1.5,
        "audio_type": "audio/mpeg",
        "audio": SOUND,
        "models": {"student": {"text": "one too", "words": [word, word | {"start_s": None, "end_s": None}]}},
    }
    return utterance | changes


def expert_record(**changes):
    counts = [[40, 2, 1], [3, 30, 2], [1, 2, 50]]
    letters = {"classes": ["a", "b", "pause"], "counts": counts}
    record = {
        "format": 1,
        "split": "test",
        "utterances": 3,
        "seconds": 9.0,
        "layers": {"layer-00": {"letter": letters}},
    }
    return record | changes


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path)
    stages = [{"name": "student", "kind": "pretrain"}, {"name": "evaluation", "kind": "evaluate", "split": "test"}]
    run.recipe_file.write_text(json.dumps({"name": "small", "stages": stages}))
    model = {"encoder_parameters": 9, "test": {"cer": 0.1, "wer": 0.2, "utterances": 3}}
    write_json(run.stage("evaluation").evaluation_file, {"models": {"student": model}})
    return run


def page_with(run, utterances=None, experts=None):
    if utterances is not None:
        write_json(run.stage("evaluation").hardest_file, {"format": 1, "split": "test", "utterances": utterances})
    if experts is not None:
        write_json(run.stage("evaluation").experts_file("student"), experts)
    return write_report(run.path).read_text()


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.sources = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name == "src":
                self.sources.append(value)


def test_an_utterance_can_be_heard_and_its_words_have_their_times(run):
    page = page_with(run, [hard_utterance()])
    assert Page(page).sources == [f"data:audio/mpeg;base64,{SOUND}"]
    assert "0.10" in page
    assert "width: 70%" in page
    assert "first 1.5 s" not in page
    assert "of which the first 1.5 s" in page_with(run, [hard_utterance(seconds=60)])


def test_what_the_experts_are_chosen_for_is_drawn(run):
    page = page_with(run, experts=expert_record())
    assert "student: which letter is spoken explains up to" in page
    assert "student, layer 00: experts by letter" in page


def test_markup_in_what_was_kept_stays_text(run):
    words = [{"word": MARKUP, "start_s": 0.0, "end_s": 1.0, "confidence": 1.0}]
    models = {MARKUP: {"text": MARKUP, "words": words}}
    layers = {MARKUP: {"letter": {"classes": [MARKUP, "b"], "counts": [[40, 2], [1, 30]]}}}
    hard = hard_utterance(key=MARKUP, reference=MARKUP, corpus=MARKUP, models=models)
    page = page_with(run, [hard], expert_record(layers=layers))
    tags = Page(page).tags
    assert "script" not in tags
    assert "img" not in tags
    assert "\x1b" not in page
    assert "\u202e" not in page


@pytest.mark.parametrize(
    "changes",
    [
        {"audio": f'{SOUND}" onerror="a()'},
        {"audio": "AAA\nAAA"},
        {"audio": ["AAAA"]},
        {"audio": None},
        {"audio_type": "text/html"},
        {"audio_type": 'audio/mpeg" onload="a()'},
        {"audio": "A" * (MAX_AUDIO_CHARACTERS + 4)},
    ],
)
def test_what_is_no_sound_of_ours_is_not_played(run, changes):
    page = page_with(run, [hard_utterance(**changes)])
    assert Page(page).sources == []
    assert "without sound" in page


def test_many_recordings_do_not_make_the_page_larger_than_five_megabytes(run):
    sound = "A" * (MAX_AUDIO_CHARACTERS // 4)
    page = page_with(run, [hard_utterance(key=f"k{number}", audio=sound) for number in range(12)])
    assert len(Page(page).sources) == 4
    assert len(page.encode()) < 5 * 10**6


@pytest.mark.parametrize(
    "record",
    [
        "[]",
        "{",
        '{"format": 2, "utterances": []}',
        '{"format": "1"}',
        '{"format": 1}',
        '{"format": 1, "utterances": [1]}',
        '{"format": 1, "utterances": 5}',
        json.dumps({"format": 1, "utterances": [hard_utterance(seconds=-1)]}),
        json.dumps({"format": 1, "utterances": [hard_utterance(seconds=float("nan"))]}),
        json.dumps({"format": 1, "utterances": [hard_utterance(key=7)]}),
        json.dumps({"format": 1, "utterances": [hard_utterance(models=[])]}),
    ],
)
def test_hard_utterances_that_are_not_ours_are_left_out_and_named(run, record):
    path = run.stage("evaluation").hardest_file
    path.parent.mkdir(parents=True)
    path.write_text(record)
    assert "hardest.json could not be read" in write_report(run.path).read_text()


@pytest.mark.parametrize(
    "counts",
    [
        [[1, 2], [3]],
        [[1, 2]],
        [[-1, 2], [3, 4]],
        [[1.5, 2], [3, 4]],
        [[10**30, 2], [3, 4]],
        [[1], [2]],
        7,
        [["a", "b"]],
    ],
)
def test_counts_that_are_not_ours_are_left_out_and_named(run, counts):
    layers = {"layer-00": {"letter": {"classes": ["a", "b"], "counts": counts}}}
    assert "student.json could not be read" in page_with(run, experts=expert_record(layers=layers))


def test_a_class_or_an_expert_that_was_never_seen_is_no_division_by_zero(run):
    layers = {"layer-00": {"letter": {"classes": ["a", "b", "c"], "counts": [[90, 5, 0], [3, 80, 0], [0, 0, 0]]}}}
    with np.errstate(all="raise"):
        page = page_with(run, experts=expert_record(layers=layers))
    assert "experts by letter" in page
