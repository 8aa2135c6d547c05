"""The rules applied to transcripts, one version of them at a time; a split records under which it was written.

What no reader sees is removed, so that one sentence is one text however it was typed; events and annotations such as
[noise] are no words; lower case and the removal of punctuation are choices. Nothing here depends on the locale.
"""

import re
import unicodedata

RULES_VERSION = 4
"""Counts the changes of the rules below; splits that record none were written under the first."""

# Events and annotations: <unk>, <|en|>, [noise], {um}, <COMMA>. In round brackets, which writers use too, known ones
# alone. What begins with a digit is text: [2019], 1 <2 and 3> 2.
TAGS = re.compile(
    r"<\|[^<>]*\|>|<+/?[^\W\d][^<>]*>+|\[+[^\W\d][^\[\]]*\]+|\{+[^\W\d][^{}]*\}+"
    r"|\((?:laughter|laughs|noise|cough|breath|music|applause|silence|inaudible|unintelligible|crosstalk)\)",
    re.IGNORECASE,
)
# What Unicode calls default ignorable without the category Cf: the joiner of graphemes, fillers of Hangul syllables,
# inherent vowels of Khmer, and variation selectors.
IGNORABLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# The blank of Braille and the fillers of Hangul show as a space and are none for Python.
BLANKS = re.compile("[\u2800\u3164\uffa0]")
# Letters in the forms of lead type, old Arabic fonts and East Asian terminals: ﬁ, ﻻ, Ａ, ｶﾞ. The isolated marks of
# vowels among them are left: they would bring a space into a word. So are signs: Chinese has commas of its own width.
PRESENTATION = re.compile(
    "[\ufb00-\ufc5d\ufc64-\ufdff\ufe80-\ufefc\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc]+"
)
JOINERS = "\u200c\u200d"
ZERO_WIDTH_SPACE = "\u200b"
# Thai, Lao, Burmese, Khmer, Tai Le, New Tai Lue, Tai Tham, Tai Viet: class SA of Unicode's line breaking (UAX 14). They
# put no space between words, and a zero-width space may stand there.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
# Chinese characters and kana, with the marks that stand among them as letters; Korean is written with spaces.
HAN = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Signs that are written inside of words and say nothing of their letters: the line that makes Arabic words longer; of
# stress, exclamation and question in Armenian; of abbreviations in Hebrew, for which a quotation mark often stands.
WITHIN_WORDS = re.compile('[\u0640\u055b\u055c\u055e\u05f3\u05f4]|(?<=[\u05d0-\u05ea])"(?=[\u05d0-\u05ea])')
# What stands for an apostrophe between letters: quotation marks, accents, a prime, and the letter that Ukrainian has.
APOSTROPHES = re.compile("(?<=[^\\W\\d_])[‘’ʼ＇`´′](?=[^\\W\\d_])")
# Letters of category P: an apostrophe between letters, and the dot of the Catalan l·l, which is another sound than ll.
LETTERS = re.compile(r"(?<=[^\W\d_])'(?=[^\W\d_])|(?<=[lL])·(?=[lL])")
# Languages with a dotless i; i and ı are two letters there.
DOTLESS = ("tr", "tur", "turkish", "az", "aze", "azj", "azb", "azerbaijani", "crh", "gag")


def normalize_text(text: str, *, lower: bool, punctuation: bool, language: str = "") -> str:
    """NFC, single spaces, no invisible characters and no tags; optionally lower case, of Turkish and its relatives by
    `language` (a tag such as tr-TR); without `punctuation`, characters of Unicode's categories P and S become spaces.

    A zero-width space becomes a space beside a letter of a script that writes none, and vanishes elsewhere. Joiners
    stay between letters, where Persian and Indic scripts spell with them. Presentation forms, such as ligatures, become
    their letters. All signs that stand for an apostrophe between two letters are the plain one, and that is a letter,
    as is the dot of the Catalan l·l. Signs that Armenian, Hebrew and Arabic put into words vanish and part none.
    """
    visible: list[str] = []
    for character in BLANKS.sub(" ", IGNORABLE.sub("", text)):
        category = unicodedata.category(character)
        if category == "Cc":
            visible.append(" ")
        # Cf: marks of direction, byte order marks, soft hyphens, word joiners, tags of flags.
        elif category != "Cf" or character in JOINERS or character == ZERO_WIDTH_SPACE:
            visible.append(character)
    text = "".join(visible)
    text = re.sub(rf"(?<=[{UNSPACED}]){ZERO_WIDTH_SPACE}+|{ZERO_WIDTH_SPACE}+(?=[{UNSPACED}])", " ", text)
    text = text.replace(ZERO_WIDTH_SPACE, "")

    text = PRESENTATION.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFC", text)
    text = re.sub(rf"(?<!\w)[{JOINERS}]+|[{JOINERS}]+(?!\w)", _joiner_of_letters, text)
    # Removing one tag may close another around it.
    num_tags = 1
    while num_tags:
        text, num_tags = TAGS.subn(" ", text)
    if lower:
        if re.split("[-_]", language.lower())[0] in DOTLESS:
            text = text.replace("I", "ı")
        # Python's lower case of İ is an i with a second dot above.
        text = text.replace("İ", "i").lower()
        # Tools that lower İ so leave that dot, and Lithuanian may write it below another accent: one letter, two
        # spellings.
        text = re.sub("(?<=[ijį])\u0307+", "", text)
    if not punctuation:
        text = APOSTROPHES.sub("'", WITHIN_WORDS.sub("", text))
        # Not elsewhere: the other apostrophes are quotation marks.
        letters = {match.start() for match in LETTERS.finditer(text)}
        characters: list[str] = []
        for position, character in enumerate(text):
            category = unicodedata.category(character)
            # Me: what encloses a character, such as the key around a digit.
            is_symbol = category[0] in "PS" or category == "Me"
            if is_symbol and position not in letters:
                characters.append(" ")
            else:
                characters.append(character)
        text = "".join(characters)
    # Lowering and the removals can take a composed character apart or bring two parts together.
    return " ".join(unicodedata.normalize("NFC", text).split())


def split_key(text: str) -> str:
    """What makes two transcripts one sentence, whatever their case, punctuation and optional spaces: a sentence must
    not stand in two splits."""
    words = normalize_text(text, lower=True, punctuation=False) or text
    return re.sub(rf"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])", "", words)


def join_han(text: str) -> str:
    """The text without spaces beside Chinese characters and kana, where annotators put them between words."""
    return re.sub(rf"(?<=[{HAN}]) +| +(?=[{HAN}])", "", text)


def _joiner_of_letters(match: re.Match[str]) -> str:
    """The joiner where the characters around it are letters or their marks, else nothing."""
    around = match.string[match.start() - 1 : match.start()] + match.string[match.end() : match.end() + 1]
    if len(around) == 2 and all(unicodedata.category(character)[0] in "LM" for character in around):
        return match[0][0]
    return ""
