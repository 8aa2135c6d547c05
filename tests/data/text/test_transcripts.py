"""The rules for transcripts: what is removed, what is a letter, and what stays as written."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.text.transcripts import join_han, normalize_text, split_key

BOTH = pytest.mark.parametrize("punctuation", [False, True])


def spoken(text: str, **changes) -> str:
    return normalize_text(text, **({"lower": True, "punctuation": False} | changes))


INVISIBLE = {
    "zero-width space": "\u200b",
    "byte order mark": "\ufeff",
    "left-to-right mark": "\u200e",
    "right-to-left mark": "\u200f",
    "Arabic letter mark": "\u061c",
    "embedding": "\u202a",
    "override": "\u202e",
    "isolate": "\u2067",
    "pop": "\u202c",
    "soft hyphen": "\u00ad",
    "word joiner": "\u2060",
    "variation selector 1": "\ufe00",
    "variation selector 16": "\ufe0f",
    "variation selector 256": "\U000e01ef",
    "Mongolian variation selector": "\u180b",
    "Mongolian vowel separator": "\u180e",
    "combining grapheme joiner": "\u034f",
    "tag character": "\U000e0061",
    "language tag": "\U000e0001",
    "Hangul filler of a syllable": "\u115f",
    "Khmer inherent vowel": "\u17b4",
    "interlinear annotation": "\ufff9",
    "musical control": "\U0001d173",
}


@BOTH
@pytest.mark.parametrize("name", INVISIBLE)
def test_what_no_reader_sees_is_not_in_a_text(name: str, punctuation: bool) -> None:
    sign = INVISIBLE[name]
    for text in (f"hel{sign}lo world", f"{sign}hello world{sign}", f"hello {sign} world", f"hello{sign} {sign}world"):
        assert spoken(text, punctuation=punctuation) == "hello world"
    assert spoken(f"cafe{sign}\u0301", punctuation=punctuation) == "café"
    assert spoken(sign * 3, punctuation=punctuation) == ""


@BOTH
@pytest.mark.parametrize(
    "blank", ["\u00a0", "\u3000", "\u2028", "\u0085", "\t", "\0", "\x1c", "\u2800", "\u3164", "\uffa0"]
)
def test_every_blank_is_one_space(blank: str, punctuation: bool) -> None:
    assert spoken(f"{blank}hello{blank}{blank}world{blank}", punctuation=punctuation) == "hello world"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        # Khmer, Thai, Lao and Burmese put no space between words.
        ("ខ្ញុំ\u200bស្រលាញ់", "ខ្ញុំ ស្រលាញ់"),
        ("สวัสดี\u200bครับ", "สวัสดี ครับ"),
        ("ສະບາຍ\u200bດີ", "ສະບາຍ ດີ"),
        ("မြန်မာ\u200bစာ", "မြန်မာ စာ"),
        ("สวัสดี\u200b\u200bครับ\u200b", "สวัสดี ครับ"),
        ("สวัสดี\u200bhello", "สวัสดี hello"),
        ("hel\u200blo", "hello"),
        ("你\u200b好", "你好"),
    ],
)
@BOTH
def test_a_zero_width_space_parts_words_of_scripts_that_write_no_spaces(
    text: str, written: str, punctuation: bool
) -> None:
    assert spoken(text, punctuation=punctuation) == written
    assert split_key(text) == split_key(written) == split_key(text.replace("\u200b", ""))


@BOTH
@pytest.mark.parametrize(
    "tag",
    [
        *("<unk>", "[noise]", "{um}", "<COMMA>", "<|en|>", "<|0.00|>", "</s>", "<v Speaker 1>", "[inaudible 00:12]"),
        *("[[laughter]]", "<<noise>>", "(Laughter)", "[смех]", "<unk/>", "{cough} <sil>", "<a<b>c>", "<COMMA><PERIOD>"),
    ],
)
def test_tags_are_no_words(tag: str, punctuation: bool) -> None:
    assert spoken(f"hello {tag} world", punctuation=punctuation) == "hello world"
    assert spoken(tag, punctuation=punctuation) == ""
    assert spoken(tag.upper(), lower=False, punctuation=punctuation) == ""


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("in [2019] it was 1 <2 and 3> 2", "in [2019] it was 1 <2 and 3> 2"),
        ("a < b, c > d", "a < b, c > d"),
        ("he (who said) «so»!", "he (who said) «so»!"),
        ("I ♥ you\ufe0f", "i ♥ you"),
        ("पि\u200dता ق\u200cق", "पि\u200dता ق\u200cق"),
    ],
)
def test_what_is_no_tag_stays_where_punctuation_is_kept(text: str, written: str) -> None:
    assert spoken(text, punctuation=True) == written


@pytest.mark.parametrize(
    ("language", "text", "written"),
    [
        ("tr", "ISPARTA İZMİR", "ısparta izmir"),
        ("tr-TR", "DIŞ", "dış"),
        ("TUR", "DIŞ", "dış"),
        ("Turkish", "DIŞ", "dış"),
        ("az", "QIZIL", "qızıl"),
        ("az_Latn_AZ", "QIZIL", "qızıl"),
        ("crh", "QIRIM", "qırım"),
        ("en", "DIŞ", "diş"),
        ("", "DIŞ", "diş"),
        ("trv", "DIŞ", "diş"),
        # A tool that knows no Turkish leaves a second dot.
        ("tr", "i̇zmir", "izmir"),
        ("", "İZMİR i̇zmir", "izmir izmir"),
        ("tr", "I\u0307ZMIR", "izmır"),
        # Unicode's own lower case of Lithuanian keeps the dot below the accent.
        ("lt", "Ì Í Ĩ Į́ J̃", "ì í ĩ į́ j̃"),
        ("lt", "i̇̀ i̇́ j̇̃ į̇́", "ì í j̃ į́"),
        ("el", "ΟΔΟΣ", "οδος"),
        ("de", "STRAẞE", "straße"),
    ],
)
def test_lower_case_is_that_of_the_language(language: str, text: str, written: str) -> None:
    assert spoken(text, language=language) == unicodedata.normalize("NFC", written)


def test_case_stays_where_it_is_wanted() -> None:
    assert spoken("İzmir İzmir", lower=False, language="tr") == "İzmir İzmir"


@pytest.mark.parametrize(
    "text", ["😀", "👍🏽", "👨\u200d👩\u200d👧", "❤️", "🏴\U000e0067\U000e0062\U000e007f", "🇩🇪", "⃣", "..."]
)
def test_emoji_and_signs_are_no_words(text: str) -> None:
    assert spoken(text) == ""
    assert spoken(f"nice {text}") == "nice"


@given(
    text=st.text()
    | st.text(
        "aIi\u0307\u0300\u0328\u200b\u200c\u200d\ufe0f<>[](){}|-'’ʼ`ﬁＡｶﾞﻻـ \u0e01\u1780\u17d2jl·\"\u05d0\u05f4\u055e"
    ),
    lower=st.booleans(),
    punctuation=st.booleans(),
    language=st.sampled_from(["", "tr", "lt"]),
)
def test_normalising_twice_changes_nothing_more(text: str, lower: bool, punctuation: bool, language: str) -> None:
    once = normalize_text(text, lower=lower, punctuation=punctuation, language=language)
    assert normalize_text(once, lower=lower, punctuation=punctuation, language=language) == once
    assert unicodedata.is_normalized("NFC", once)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("而 对 楼市 成交", "而对楼市成交"),
        ("我 用 iphone 打 电话", "我用iphone打电话"),
        ("東京 タワー へ", "東京タワーへ"),
        ("good morning", "good morning"),
        ("서울 타워", "서울 타워"),
    ],
)
def test_spaces_vanish_beside_han_and_kana_and_nowhere_else(text: str, written: str) -> None:
    assert join_han(text) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Ինչո՞ւ, ա՛յ մարդ։", "ինչու այ մարդ"),
        ('צה"ל וארה״ב', "צהל וארהב"),
        ("גב׳ כהן", "גב כהן"),
        ('"שלום"', "שלום"),
        ("Col·lecció intel·ligent · bo", "col·lecció intel·ligent bo"),
        ("a·b", "a b"),
    ],
)
def test_signs_inside_of_words_part_none(text: str, written: str) -> None:
    assert spoken(text) == written


@pytest.mark.parametrize("apostrophe", ["'", "’", "‘", "ʼ", "＇", "`", "´", "′"])
def test_an_apostrophe_is_one_letter_whichever_sign_was_typed(apostrophe: str) -> None:
    text = f"П{apostrophe}ять 'don{apostrophe}t' {apostrophe if apostrophe != 'ʼ' else ''}so"
    assert normalize_text(text, lower=True, punctuation=False) == "п'ять don't so"


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("ﬁne oﬀice ﬂow", "fine office flow"),
        ("ＡＢＣ １２３", "abc 123"),
        ("ｶﾞｷﾞ ﾎﾟ", "ガギ ポ"),
        ("ﺍﻟﺴﻼﻡ", "السلام"),
        ("الســـلام", "السلام"),
        ("ﬓ", "մն"),
        ("½ ² ①", "½ ² ①"),
    ],
)
def test_one_sentence_is_one_text_whatever_forms_its_letters_have(text: str, letters: str) -> None:
    assert normalize_text(text, lower=True, punctuation=False) == letters
    assert split_key(text) == split_key(letters)


def test_punctuation_that_is_kept_keeps_its_width() -> None:
    assert normalize_text("你好，世界！", lower=True, punctuation=True) == "你好，世界！"
