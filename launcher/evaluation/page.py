"""An evaluation as text: a few lines for the terminal, and a page of Markdown with everything."""

from collections.abc import Sequence
from typing import Any

from launcher.formatting import MISSING, count, decimal, duration, percent
from launcher.plain_text import markdown_code, markdown_line

# Of groups that may be many; the JSON has all.
MAX_GROUPS = 20
MAX_BROKEN = 20
# In the short form.
MAX_LINES = 5
NORMALISATIONS = {
    "none": "none: texts are compared as they are",
    "basic": "basic: NFKC, lower case, no punctuation and symbols, in references and hypotheses",
    "english": "english: Whisper's normaliser of English, in references and hypotheses",
}


def short_text(results: dict[str, Any]) -> str:
    """What a terminal shows."""
    whole = results["rates"]
    lines = [
        f"{whole['utterances']} utterances, {duration(whole['seconds'])}",
        f"CER {_interval(whole['cer'])}   WER {_interval(whole['wer'])}   (95 % intervals; normalisation: "
        f"{results['normalisation']})",
    ]
    for dimension, groups in results["groups"].items():
        if dimension not in ("corpus", "language"):
            continue
        for name, group in list(groups.items())[:MAX_GROUPS]:
            lines.append(f"  {dimension} {name}: CER {_interval(group['cer'])}   WER {_interval(group['wer'])}")
    words = results["confusions"]["words"]
    pairs = [f"{row['reference']} → {row['hypothesis']} ({row['count']})" for row in words["substitutions"]]
    if pairs:
        lines.append(f"most often confused: {', '.join(pairs[:MAX_LINES])}")
    lines.append(_speed(results["speed"]))
    if "as_given" in results["calibration"]:
        lines.append(_calibration_line(results["calibration"]))
    for row in results.get("robustness", []):
        lines.append(f"  {row['condition']}: {_condition(row)}")
    return "\n".join(lines)


def markdown_page(results: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Evaluation",
        "",
        f"- Model: {markdown_code(results['model'])}",
        f"- Search: {markdown_code(results['search']['kind'])}, numbers: {results['dtype']}, device: "
        f"{results['device']}, processes: {results['jobs']}",
        f"- Normalisation: {NORMALISATIONS[results['normalisation']]}",
        "",
        "Brackets hold 95 % bootstrap intervals over utterances; spaces count as characters.",
        "",
        *_table(
            ("set", "utterances", "recognised", "broken", "without transcript", "rejected rows", "audio"),
            [
                (
                    markdown_line(row["label"]),
                    str(row["utterances"]),
                    str(row["recognised"]),
                    str(row["broken"]),
                    str(row["without_transcript"]),
                    str(row["rejected_rows"]),
                    duration(row["seconds"]),
                )
                for row in results["sets"]
            ],
        ),
        "",
        "## Error rates",
        "",
        *_rates_table("", {"all": results["rates"]}),
        "",
    ]
    for dimension, groups in results["groups"].items():
        lines += [f"### By {dimension}", "", *_rates_table(dimension, _largest(groups)), ""]
        if len(groups) > MAX_GROUPS:
            lines += [f"The {MAX_GROUPS} with the most utterances of {len(groups)}; the JSON has all.", ""]
    lines += ["## What is confused", ""]
    for unit, kinds in results["confusions"].items():
        lines += _confusion_lines(unit, kinds)
    lines += ["## Speed", "", _speed(results["speed"]), ""]
    lines += _calibration_lines(results["calibration"])
    if "robustness" in results:
        lines += _robustness_lines(results["robustness"])
    lines += _broken_lines(results)
    return "\n".join(lines).rstrip() + "\n"


def _interval(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return MISSING
    return f"{percent(rate['value'], 2)} [{percent(rate['low'], 2)}, {percent(rate['high'], 2)}]"


def _largest(groups: dict[str, Any]) -> dict[str, Any]:
    """All groups where they are few, else those with the most utterances, in the order that they have."""
    if len(groups) <= MAX_GROUPS:
        return groups
    by_size = sorted(groups, key=lambda name: -groups[name]["utterances"])[:MAX_GROUPS]
    return {name: groups[name] for name in groups if name in by_size}


def _rates_table(dimension: str, groups: dict[str, Any]) -> list[str]:
    rows = []
    for name, group in groups.items():
        wer = group["wer"]
        kinds = f"{wer['substitutions']} / {wer['deletions']} / {wer['insertions']}"
        rows.append(
            (
                markdown_line(name),
                str(group["utterances"]),
                duration(group["seconds"]),
                _interval(group["cer"]),
                _interval(wer),
                kinds,
            )
        )
    return _table((dimension, "utterances", "audio", "CER", "WER", "words substituted / deleted / inserted"), rows)


def _confusion_lines(unit: str, kinds: dict[str, Any]) -> list[str]:
    substitutions = []
    for row in kinds["substitutions"]:
        substitutions.append(f"{_shown(row['reference'])} → {_shown(row['hypothesis'])} ({row['count']})")
    lines = [f"- {unit} substituted: {', '.join(substitutions) or 'none'}"]
    for kind, verb in (("deletions", "deleted"), ("insertions", "inserted")):
        texts = [f"{_shown(row['text'])} ({row['count']})" for row in kinds[kind]]
        lines.append(f"- {unit} {verb}: {', '.join(texts) or 'none'}")
    return [*lines, ""]


def _shown(text: str) -> str:
    # A space is a character too.
    return markdown_code(text.replace(" ", "␣"))


def _speed(speed: dict[str, Any]) -> str:
    text = f"real-time factor {decimal(speed['rtf'])}"
    latency = speed["latency"]
    if latency is None:
        return text
    return (
        f"{text}; latency of one utterance at a time {decimal(latency['p50_s'])} s (median), "
        f"{decimal(latency['p90_s'])} s (90 %), {decimal(latency['p99_s'])} s (99 %), of {latency['utterances']}"
    )


def _calibration_line(calibration: dict[str, Any]) -> str:
    text = f"word confidences: {count(calibration['words'])} words, ECE {percent(calibration['as_given']['ece'])}"
    if "tempered" in calibration:
        tempered = percent(calibration["tempered"]["ece"])
        text += f", {tempered} at temperature {decimal(calibration['temperature'])}"
    return text


def _calibration_lines(calibration: dict[str, Any]) -> list[str]:
    if "as_given" not in calibration:
        return []
    lines = ["## Word confidences", "", f"{_calibration_line(calibration)}.", ""]
    names = {"as_given": "as given", "tempered": "with the temperature"}
    rows = []
    for kind, name in names.items():
        for row in calibration.get(kind, {}).get("curve", []):
            edges = f"{row['low']:.1f} to {row['high']:.1f}"
            rows.append((name, edges, str(row["words"]), f"{row['confidence']:.3f}", f"{row['accuracy']:.3f}"))
    return [*lines, *_table(("confidences", "bin", "words", "mean confidence", "share that is right"), rows), ""]


def _condition(row: dict[str, Any]) -> str:
    if "missing" in row:
        return f"not measured: {row['missing']}"
    if "cer" not in row:
        return "no utterance could be read"
    return f"CER {_interval(row['cer'])}   WER {_interval(row['wer'])}"


def _robustness_lines(table: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    notes = []
    for row in table:
        if "cer" not in row:
            notes.append(f"{row['condition']}: {_condition(row)}.")
            continue
        increase = MISSING
        if "wer_increase" in row:
            increase = _interval(row["wer_increase"])
        rows.append((row["condition"], str(row["utterances"]), _interval(row["cer"]), _interval(row["wer"]), increase))
    headings = ("condition", "utterances", "CER", "WER", "WER above that of the same utterances as they are")
    return ["## Robustness", "", *_table(headings, rows), "", *notes, ""]


def _broken_lines(results: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for kind, heading in (("broken", "Recordings that could not be read"), ("rejected", "Rows that were rejected")):
        items = results[kind]
        if not items:
            continue
        lines += [f"## {heading}: {len(items)}", ""]
        for item in items[:MAX_BROKEN]:
            lines.append(
                f"- {markdown_line(item['corpus'])}, {markdown_code(item['key'])}: {markdown_line(item['reason'])}"
            )
        if len(items) > MAX_BROKEN:
            lines.append(f"- and {len(items) - MAX_BROKEN} more, which the JSON names")
        lines.append("")
    return lines


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for row in rows:
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return lines
