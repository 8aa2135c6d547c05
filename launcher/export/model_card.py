"""The model card of a published model: what it is, its results, what it was trained on, and its licence.

Everything in it comes from the files of the run. What they do not say is said to be unknown. Paths of this machine are
not part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.files import read_json
from launcher.monitoring.status import load_run_recipe
from launcher.run_folder import RunFolder, is_count, is_number
from model.costs.flops import count_parameters
from model.recognizer import Recognizer

UNKNOWN = "not recorded"
# Both spellings are met in descriptions of corpora.
LICENCE_KEYS = ("licence", "license")
# What the publishers of corpora state, by the name that a recipe gives them; of shards that say otherwise, that.
PUBLISHED_LICENCES = {
    "aelita": "of the Festival voice msu_ru_nsh_clunits: free to use, with its notice",
    "aishell": "Apache 2.0",
    "common_voice": "CC0 1.0",
    "fleurs": "CC BY 4.0",
    "fsdd": "CC BY-SA 4.0",
    "librispeech": "CC BY 4.0",
    "mls": "CC BY 4.0",
    "tedlium": "CC BY-NC-ND 3.0",
    "voxpopuli": "CC0 1.0",
}
USAGE = """```python
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
features = AutoFeatureExtractor.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)

inputs = features(waveform, sampling_rate=features.sampling_rate)  # mono, full scale 1
output = model(**inputs)
texts = tokenizer.batch_decode(model.greedy_tokens(output), group_tokens=False)
```"""


@dataclass(frozen=True)
class SplitResult:
    """Error rates, as fractions, of one evaluation."""

    split: str
    search: str
    wer: float
    cer: float
    utterances: int


@dataclass(frozen=True)
class CorpusFacts:
    """A corpus that the model was trained on; licence None where its shards record none."""

    name: str
    train_hours: float | None
    licence: str | None


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside the model itself. licence: the model's own; None where nobody stated one."""

    name: str
    licence: str | None = None
    results: list[SplitResult] = field(default_factory=list)
    corpora: list[CorpusFacts] = field(default_factory=list)


def read_facts(
    name: str,
    run: RunFolder | None,
    stage: str | None,
    licence: str | None,
) -> CardFacts:
    """What a run says of the model of one of its stages; without a run nothing but the name and the licence."""
    if run is None or stage is None:
        return CardFacts(name, licence)
    return CardFacts(name, licence, _read_results(run, stage), _read_corpora(run))


def _read_results(run: RunFolder, stage: str) -> list[SplitResult]:
    models = _mapping(_read(run.results_file).get("models"))
    results = []
    for split, evaluated in _mapping(models.get(stage)).items():
        # Beside the splits stand counts of parameters.
        if not isinstance(evaluated, dict):
            continue
        # A received run may hold anything in their place.
        if not is_number(evaluated.get("wer")) or not is_number(evaluated.get("cer")):
            continue
        utterances = evaluated.get("utterances", 0)
        if not is_count(utterances):
            utterances = 0
        search = _mapping(evaluated.get("search")).get("kind", "greedy")
        result = SplitResult(
            split=split,
            search=str(search),
            wer=float(evaluated["wer"]),
            cer=float(evaluated["cer"]),
            utterances=utterances,
        )
        results.append(result)
    return results


def _read_corpora(run: RunFolder) -> list[CorpusFacts]:
    recipe = load_run_recipe(run)
    corpora = []
    for label, place in recipe.split_folders(run, "train").items():
        # Beside the splits' folders; of shards at a URL only the name is known.
        description: dict[str, Any] = {}
        name = label
        if "://" not in str(place):
            folder = Path(place).parent
            description = _read(folder / "corpus.json")
            name = label or folder.name
        settings = _mapping(description.get("corpus"))
        train = _mapping(_mapping(description.get("splits")).get("train"))
        licence = None
        for source in (description, settings):
            for key in LICENCE_KEYS:
                licence = licence or source.get(key)
        corpus_name = str(settings.get("name") or name or "shards")
        licence = licence or PUBLISHED_LICENCES.get(corpus_name)
        corpus = CorpusFacts(
            name=corpus_name,
            train_hours=train.get("hours"),
            licence=None if licence is None else str(licence),
        )
        corpora.append(corpus)
    return corpora


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a file of JSON; an empty one where there is none, as of older runs."""
    try:
        return _mapping(read_json(path))
    except (OSError, ValueError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    return {}


def write_card(recognizer: Recognizer, facts: CardFacts) -> str:
    """README.md: the metadata that the hub reads, and the same for people."""
    sections = [
        _metadata(facts),
        f"# {_plain(facts.name)}",
        _describe(recognizer),
        "## Use",
        USAGE,
        "Chorus reads the folder as well: `chorus transcribe FOLDER AUDIO`.",
        "## Results",
        _results_table(facts.results),
        "## Training data",
        _corpora_table(facts.corpora),
        "## Licence",
        _licence(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(facts: CardFacts) -> str:
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["automatic-speech-recognition", "ctc", "conformer", "chorus"],
    }
    if facts.licence is not None:
        metadata["license"] = facts.licence
    if facts.results:
        entries = []
        for result in facts.results:
            entry = {
                "task": {"type": "automatic-speech-recognition"},
                "dataset": {"name": _one_line(result.split), "type": "chorus-shards"},
                "metrics": [
                    {"type": "wer", "value": round(100 * result.wer, 2)},
                    {"type": "cer", "value": round(100 * result.cer, 2)},
                ],
            }
            entries.append(entry)
        metadata["model-index"] = [{"name": _one_line(facts.name), "results": entries}]
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def _describe(recognizer: Recognizer) -> str:
    encoder = recognizer.config.encoder
    parameters = count_parameters(recognizer)
    blocks = f"{encoder.num_blocks} blocks"
    if encoder.num_blocks == 1:
        blocks = "one block"
    sentences = [
        f"A speech recogniser with a conformer encoder of {encoder.layers} layers, which use {blocks} of width "
        f"{encoder.width}.",
    ]
    if encoder.experts is not None:
        sentences.append(
            f"Each block holds {encoder.experts.count} experts, of which a frame is sent to "
            f"{encoder.experts.router.per_frame}."
        )
    sentences.append(f"It has {parameters.parameters / 1e6:.2f} million parameters, each stored once.")
    if recognizer.decoder is not None:
        sentences.append("Beside the CTC output it has an attention decoder.")
    if encoder.causal_convolution:
        sentences.append("It can run while audio arrives (`chunk_frames`, `left_chunks`).")
    sentences.append("Trained with Chorus.")
    return " ".join(sentences)


def _results_table(results: Sequence[SplitResult]) -> str:
    if not results:
        return "The run of this model has no evaluation."
    lines = ["| split | search | WER | CER | utterances |", "|---|---|---|---|---|"]
    for result in results:
        cells = f"| {_plain(result.split)} | {_plain(result.search)} | {result.wer:.2%} | {result.cer:.2%} "
        lines.append(f"{cells}| {result.utterances} |")
    return "\n".join(lines)


def _corpora_table(corpora: Sequence[CorpusFacts]) -> str:
    if not corpora:
        return f"The corpora are {UNKNOWN} beside this model."
    lines = ["| corpus | hours | licence |", "|---|---|---|"]
    for corpus in corpora:
        hours = UNKNOWN
        if isinstance(corpus.train_hours, int | float):
            hours = f"{corpus.train_hours:.1f}"
        lines.append(f"| {_plain(corpus.name)} | {hours} | {_plain(corpus.licence or UNKNOWN)} |")
    return "\n".join(lines)


def _licence(facts: CardFacts) -> str:
    if facts.licence is None:
        return "No licence was stated for this model. Without one nobody but its owner may use it."
    return f"This model: {_plain(facts.licence)}. The licences of its training data may ask for more."


def _plain(text: str) -> str:
    """A text from a file of the run without what Markdown or HTML would read as theirs."""
    for character in "|<>`[]":
        text = text.replace(character, " ")
    for character in "\\*_#":
        text = text.replace(character, f"\\{character}")
    return _one_line(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())
