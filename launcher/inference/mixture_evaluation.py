"""The evaluation of a mixture: the set of each corpus, and all of them as one."""

from collections.abc import Mapping
from typing import Any

import jiwer


def join_evaluations(split: str, evaluations: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One evaluation of what `evaluate_model` gave for a split of several corpora, by their labels.

    Rates are those of all utterances together, so that a set counts as it is long; `sets` has the results of each
    corpus. A hypothesis says of which corpus it is: keys of two corpora may be the same.
    """
    rows = []
    sets = {}
    busy_s = 0.0
    for label, evaluation in evaluations.items():
        result = evaluation[split]
        sets[label] = result
        busy_s += result["rtf"] * result["seconds"]
        for row in evaluation["hypotheses"]:
            rows.append({"corpus": label, **row})
    references = [row["reference"] for row in rows]
    hypotheses = [row["hypothesis"] for row in rows]
    seconds = sum(result["seconds"] for result in sets.values())

    # Sizes, threads, device and search are the same for all.
    joint = dict(next(iter(evaluations.values())))
    joint[split] = joint[split] | {
        "cer": jiwer.cer(references, hypotheses),
        "wer": jiwer.wer(references, hypotheses),
        "utterances": len(rows),
        "quarantined": sum(result["quarantined"] for result in sets.values()),
        "seconds": round(seconds, 3),
        "rtf": busy_s / seconds,
        "sets": sets,
    }
    joint["hypotheses"] = rows
    return joint
