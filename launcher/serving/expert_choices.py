"""Which expert each frame of a recording used, at each layer.

Shapes: N packed frames of a batch, K experts per frame.
"""

from typing import Any, TypeAlias

from launcher.inference.finished_model import FinishedModel
from model.encoder import EncoderOutput

# For each layer and place of experts a row: its name, its block, the number of experts, and the frames' experts.
ExpertChoices: TypeAlias = list[dict[str, Any]]


def expert_choices(model: FinishedModel, output: EncoderOutput) -> list[ExpertChoices]:
    """The choices of each utterance of a batch; none of a model without experts. A frame has its experts, the likeliest
    first, and null where an expert's capacity was used up."""
    config = model.recognizer.encoder.config
    lengths = output.lengths_B.tolist()
    choices_of: list[ExpertChoices] = [[] for _ in lengths]
    if config.experts is None:
        return choices_of
    num_places = len(config.experts.places)
    for index, (name, routing) in enumerate(zip(config.routing_names, output.routings, strict=True)):
        rows: list[list[int | None]] = routing.experts_NK.tolist()
        if routing.kept_NK is not None:
            for frame, is_kept in enumerate(routing.kept_NK.tolist()):
                rows[frame] = [expert if kept else None for expert, kept in zip(rows[frame], is_kept, strict=True)]
        layer = index // num_places
        start = 0
        for length, choices in zip(lengths, choices_of, strict=True):
            choices.append(
                {
                    "name": name,
                    "layer": layer,
                    "block": config.block_of_layer[layer],
                    "experts": len(routing.counts_E),
                    "frames": rows[start : start + length],
                }
            )
            start += length
    return choices_of
