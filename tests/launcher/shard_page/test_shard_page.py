"""`chorus shards stats --html`: one page, complete in itself, in which nothing of the shards acts."""

import re
from html.parser import HTMLParser

import pytest
from made_shards import Said, some_speech, speech, write_set

from data.shard_tools.statistics import distributions, measure_buckets
from launcher.cli import main as chorus
from launcher.shard_page.figures import visible

HOSTILE = "<script>alert(1)</script>\"'&$x$\u202e\u0007"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "corpus"
    write_set(folder / "train", [*some_speech(20, "t"), Said("odd", f"wörter 你好 {HOSTILE}", HOSTILE, "<b>")])
    write_set(folder / "dev", [Said("long", "zu lang", waveform=speech(31.0))])
    return folder


@pytest.fixture(scope="module")
def page(corpus) -> str:
    path = corpus.parent / "page.html"
    assert chorus(["shards", "stats", str(corpus), "--html", str(path), "--lanes", "2", "--seconds", "16"]) == 0
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """The tags and attributes of a page, and which are open."""

    VOID = ("meta", "br", "path", "use", "rect")

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_every_split_and_the_plan_with_its_padding(page):
    tags = Tags(page)
    pictures = [attributes["aria-label"] for tag, attributes in tags.found if tag == "svg"]
    # The split of which nothing can be read has no plan.
    assert len(pictures) == 5 + 6
    assert len(set(pictures)) == len(pictures)
    for words in ("of an epoch is padding", "characters per second", "speakers", "languages", "utterances last"):
        assert any(words in picture for picture in pictures), words
    assert "1 too long" in tags.text
    assert "21 utterances" in tags.text
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_nothing_of_the_shards_acts_and_nothing_is_fetched(page):
    tags = Tags(page)
    assert {tag for tag, _ in tags.found} & {"script", "link", "img", "iframe", "object", "b"} == set()
    for tag, attributes in tags.found:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href", "src"):
                assert (value or "").startswith("#"), (tag, value)
    for match in re.findall(r"url\(([^)]*)\)", page):
        assert match.startswith("#")
    assert "@import" not in page
    assert "\u202e" not in page
    assert "\u0007" not in page
    # Seen, and not carried out.
    assert "<script>alert(1)"[:10] in tags.text or "&lt;script" in page


def test_the_page_is_light_and_dark_by_the_readers_choice(page):
    assert "prefers-color-scheme: dark" in page
    body = page[page.index("<body>") :]
    # Colours are those of the page, in every drawing.
    assert not re.search(r"(fill|stroke): ?#[0-9a-f]{6}", body)


def test_what_cannot_be_seen_alone_is_shown_beside_something():
    assert visible(" ") == "␣"
    assert visible("\u0301") == "◌\u0301"
    assert visible("ж") == "ж"


def test_buckets_hold_every_micro_batch_of_the_plan(corpus):
    from launcher.commands.shards import BatchesConfig, _open_sampler, read_index

    sampler = _open_sampler(read_index(corpus / "train"), BatchesConfig(lanes=2, seconds=16))
    assert not isinstance(sampler, str)
    buckets = measure_buckets(sampler)
    assert sum(bucket.utterances for bucket in buckets) == int(sampler.shard_sizes.sum())
    for bucket in buckets:
        assert 0 <= bucket.padding < 1
        assert bucket.from_s < bucket.to_s
    contents = distributions(corpus / "train")
    assert sum(contents.seconds_of_speaker.values()) == pytest.approx(contents.seconds.sum())
    assert contents.uses_of_character["你"] == 1
