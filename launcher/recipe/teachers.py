"""What must hold between a student and its teachers, from descriptions alone: no weights are read.

A teacher is an earlier stage or a folder: a finished model of Chorus (model.json), a model of `transformers` as its
save_pretrained writes it (config.json), or one of torchaudio (torchaudio.json: under `model` the arguments of
torchaudio.models.wav2vec2_model; model.safetensors: its weights).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.errors import CheckpointError, ConfigError
from launcher.recipe.distillation import TeacherConfig
from launcher.recipe.schema import DistillStage, Recipe
from model.encoder import EncoderConfig
from model.export import holds_encoder_alone

Kind = Literal["chorus", "transformers", "torchaudio"]
# Models of transformers that are known as teachers; all hear 16 kHz.
WAVEFORM_MODELS, FILTERBANK_MODELS = ("wav2vec2", "hubert"), ("speech_to_text",)
SAMPLE_RATE_HZ = 16_000
# Terms that compare tokens, so that both sides must have the same.
TOKEN_TERMS = ("ctc", "decoder", "sequence")
# What AugmentConfig draws anew at every step; the speeds are a few.
MASKS = ("frequency_masks", "time_masks")


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher's encoder: its depth and width, seconds per frame, and of one of Chorus the bins that it hears, its
    subsampling, and whether it is a recogniser's."""

    kind: Kind
    layers: int
    width: int
    frame_s: float
    mel_bins: int | None = None
    factor: int | None = None
    recognizes: bool = True


def spec_of_stage(recipe: Recipe, name: str) -> TeacherSpec:
    """The spec of a training stage of this recipe; ConfigError when it trains no recogniser."""
    encoder = recipe.recognition_stage(name).model.encoder
    return _chorus(encoder, recipe.features.hop_ms / 1000, recipe.features.mel_bins)


def read_spec(folder: Path, where: str) -> TeacherSpec:
    """The spec of a folder; CheckpointError, beginning with `where`, when it is none of the known ones."""
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{where} is the folder {folder}, which holds no finished model (*.safetensors). Name the model folder of "
            "a finished stage, such as runs/mini/teacher/model."
        )
    readers = {"model.json": _read_chorus, "torchaudio.json": _read_torchaudio, "config.json": _read_transformers}
    for name, read in readers.items():
        if (folder / name).is_file():
            try:
                return read(folder, json.loads((folder / name).read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{where} is the folder {folder}, whose {name} cannot be read: {error!r}. Copy the folder again "
                    "from where it was made."
                ) from None
    raise CheckpointError(
        f"{where} is the folder {folder}, which has none of {', '.join(readers)}: what is in it is not known. Name the "
        "folder of a finished model, or of a model that transformers or torchaudio has written."
    )


def _chorus(encoder: EncoderConfig, hop_s: float, mel_bins: int, recognizes: bool = True) -> TeacherSpec:
    factor = encoder.subsampling.factor
    return TeacherSpec("chorus", encoder.layers, encoder.width, factor * hop_s, mel_bins, factor, recognizes)


def _read_chorus(folder: Path, description: dict[str, Any]) -> TeacherSpec:
    features = json.loads((folder / "features.json").read_text(encoding="utf-8"))["config"]
    return _chorus(
        EncoderConfig.model_validate(description.get("encoder") or description["recognizer"]["encoder"]),
        features["hop_ms"] / 1000,
        description["mel_bins"],
        recognizes=not holds_encoder_alone(folder),
    )


def _read_transformers(folder: Path, config: dict[str, Any]) -> TeacherSpec:
    kind = config["model_type"]
    if kind in WAVEFORM_MODELS:
        hop_s = math.prod(config["conv_stride"]) / SAMPLE_RATE_HZ
        return TeacherSpec("transformers", config["num_hidden_layers"], config["hidden_size"], hop_s)
    if kind in FILTERBANK_MODELS:
        # Its front-end makes a frame every 10 ms, and each convolution halves them.
        return TeacherSpec(
            "transformers", config["encoder_layers"], config["d_model"], 0.01 * 2 ** config["num_conv_layers"]
        )
    raise ValueError(f"model_type is {kind!r}; known are {', '.join(WAVEFORM_MODELS + FILTERBANK_MODELS)}")


def _read_torchaudio(folder: Path, description: dict[str, Any]) -> TeacherSpec:
    arguments = description["model"]
    strides = [stride for _, _, stride in arguments["extractor_conv_layer_config"]]
    hop_s = math.prod(strides) / SAMPLE_RATE_HZ
    return TeacherSpec("torchaudio", arguments["encoder_num_layers"], arguments["encoder_embed_dim"], hop_s)


def terms_of(stage: DistillStage, teacher: TeacherConfig) -> frozenset[str]:
    """What a teacher teaches: the terms that weigh something, of which it may be given a part."""
    active = stage.distill.active()
    return active if teacher.terms is None else active & frozenset(teacher.terms)


def check_teacher(recipe: Recipe, stage: DistillStage, teacher: TeacherConfig, spec: TeacherSpec) -> None:
    """Refuse a teacher from which this student cannot learn what it is to learn (ConfigError)."""
    who = "its teacher" if len(stage.named_teachers) == 1 else f"its teacher {teacher.name}"
    if not spec.recognizes:
        raise ConfigError(
            f"Stage {stage.name}: {who} is an encoder that learnt without transcripts, and no recogniser. Start one "
            f"from it, a pretrain stage with initialize_from: {teacher.model}, and name that."
        )
    terms = terms_of(stage, teacher)
    idle = [] if teacher.terms is None else [name for name in teacher.terms if name not in terms]
    if idle:
        raise ConfigError(
            f"Stage {stage.name} is to learn {idle[0]} from {who}, but distill.{idle[0]} weighs nothing. Give it a "
            f"weight, or take {idle[0]} out of the teacher's terms."
        )
    _check_hearing(recipe, stage, teacher, spec, who)
    if spec.kind != "chorus":
        _check_foreign(recipe, stage, terms, spec, who)
    _check_frame_rates(recipe, stage, terms, spec, who)
    if "hidden" in terms:
        _check_hidden(stage, teacher, spec, who)
    if "units" in terms:
        _check_units(stage, spec, who)
    if stage.distill.cache.required and (reason := why_no_cache(recipe, stage, teacher, spec)):
        raise ConfigError(
            f"Stage {stage.name} is to read {who} from a cache (distill.cache.use is {stage.distill.cache.use}), and "
            f"there can be none: {reason}."
        )


def why_no_cache(recipe: Recipe, stage: DistillStage, teacher: TeacherConfig, spec: TeacherSpec) -> str:
    """Why what a teacher gives cannot be stored; empty when it can."""
    augment = recipe.augment_of(stage)
    masks = [key for key in MASKS if getattr(augment, key)]
    if spec.kind != "chorus" or teacher.hears not in (None, "augmented") or not masks:
        return ""
    return (
        f"it hears masks that are drawn anew at every step (augment.{masks[0]} is {getattr(augment, masks[0])}). List "
        "it in teachers with hears: clean, which changes what is learnt, or set augment.frequency_masks and "
        "augment.time_masks to 0"
    )


def _check_hearing(recipe: Recipe, stage: DistillStage, teacher: TeacherConfig, spec: TeacherSpec, who: str) -> None:
    if spec.kind != "chorus" and teacher.hears not in (None, "waveform"):
        raise ConfigError(
            f"Stage {stage.name}: {who} has a front-end of its own, but hears is {teacher.hears}. Set it to waveform "
            "or leave it out."
        )
    other_bins = spec.kind == "chorus" and spec.mel_bins != recipe.features.mel_bins
    if other_bins and teacher.hears != "waveform":
        raise ConfigError(
            f"Stage {stage.name}: {who} hears {spec.mel_bins} mel bins, and features.mel_bins is "
            f"{recipe.features.mel_bins}. Make them equal, or list it in teachers with hears: waveform."
        )


def _check_foreign(recipe: Recipe, stage: DistillStage, terms: frozenset[str], spec: TeacherSpec, who: str) -> None:
    tokens = [name for name in TOKEN_TERMS if name in terms]
    if tokens:
        raise ConfigError(
            f"Stage {stage.name} compares the tokens of {who}, a model of {spec.kind}, whose tokenizer is not this "
            f"run's, in distill.{tokens[0]}. Set its weight to 0, or list the teacher in teachers with terms among "
            "hidden and units."
        )
    if recipe.features.sample_rate_hz != SAMPLE_RATE_HZ:
        raise ConfigError(
            f"Stage {stage.name}: {who}, a model of {spec.kind}, hears {SAMPLE_RATE_HZ} Hz, and "
            f"features.sample_rate_hz is {recipe.features.sample_rate_hz}. Prepare the corpus at {SAMPLE_RATE_HZ} Hz, "
            "or choose another teacher."
        )


def frame_s(recipe: Recipe, stage: DistillStage) -> float:
    """Seconds from one frame of the student to the next."""
    return stage.model.encoder.subsampling.factor * recipe.features.hop_ms / 1000


def _check_frame_rates(recipe: Recipe, stage: DistillStage, terms: frozenset[str], spec: TeacherSpec, who: str) -> None:
    mine = frame_s(recipe, stage)
    framewise = "ctc" in terms or ("hidden" in terms and not stage.distill.hidden.resample)
    if not framewise or math.isclose(mine, spec.frame_s):
        return
    remedy = (
        "Make them equal, or set distill.hidden.weight, distill.hidden.cosine and distill.ctc.weight to 0; hidden "
        "states can be compared with distill.hidden.resample."
    )
    mine_ms, theirs_ms = f"{1000 * mine:g} ms", f"{1000 * spec.frame_s:g} ms"
    if spec.factor and spec.factor != stage.model.encoder.subsampling.factor:
        raise ConfigError(
            f"Stage {stage.name} is compared to {who} frame by frame, but its encoder.subsampling.factor is "
            f"{stage.model.encoder.subsampling.factor} and {who}'s is {spec.factor}. {remedy}"
        )
    raise ConfigError(
        f"Stage {stage.name} is compared to {who} frame by frame, but its frames are {mine_ms} apart and {who}'s "
        f"{theirs_ms}. {remedy}"
    )


def _check_hidden(stage: DistillStage, teacher: TeacherConfig, spec: TeacherSpec, who: str) -> None:
    student, hidden = stage.model.encoder, stage.distill.hidden
    off = "set distill.hidden.weight and distill.hidden.cosine to 0."
    if teacher.layers is None and spec.layers != student.layers:
        raise ConfigError(
            f"Stage {stage.name} compares hidden states layer by layer, but its encoder.layers is {student.layers} and "
            f"{who}'s is {spec.layers}. Make them equal, name the teacher's layers in teachers, or {off}"
        )
    if spec.width != student.width and not hidden.projection:
        raise ConfigError(
            f"Stage {stage.name} compares hidden states layer by layer, but its encoder.width is {student.width} and "
            f"{who}'s is {spec.width}. Make them equal, set distill.hidden.projection to true, or {off}"
        )
    beyond = [layer for layer in hidden.layers or () if not 0 <= layer < student.layers]
    if beyond:
        raise ConfigError(
            f"Stage {stage.name} compares layers {beyond} in distill.hidden.layers, but there are layers 0 "
            f"to {student.layers - 1}."
        )
    if teacher.layers is None:
        return
    compared = hidden_layers(stage)
    if len(compared) != len(teacher.layers):
        raise ConfigError(
            f"Stage {stage.name} compares its layers {list(compared)} (distill.hidden.layers) to layers "
            f"{list(teacher.layers)} of {who}; name as many of both."
        )
    _check_layers(stage, "teachers", [layer for layer in teacher.layers if not 0 <= layer < spec.layers], who, spec)


def _check_units(stage: DistillStage, spec: TeacherSpec, who: str) -> None:
    units, depth = stage.distill.units, stage.model.encoder.layers
    if units.layer is not None and units.layer >= depth:
        raise ConfigError(
            f"Stage {stage.name} predicts units from layer {units.layer} (distill.units.layer), but it has layers 0 to "
            f"{depth - 1}."
        )
    beyond = [units.teacher_layer] if (units.teacher_layer or 0) >= spec.layers else []
    _check_layers(stage, "distill.units.teacher_layer", beyond, who, spec)


def _check_layers(stage: DistillStage, key: str, beyond: list[Any], who: str, spec: TeacherSpec) -> None:
    if beyond:
        raise ConfigError(
            f"Stage {stage.name} names layer {beyond[0]} of {who} in {key}, which has layers 0 to {spec.layers - 1}."
        )


def compared_layers(stage: DistillStage, teacher: TeacherConfig) -> tuple[tuple[int, int], ...]:
    """The student's layers whose states are compared, each beside that of the teacher."""
    mine = hidden_layers(stage) if "hidden" in terms_of(stage, teacher) else ()
    return tuple(zip(mine, teacher.layers or mine, strict=True)) if mine else ()


def units_layer(stage: DistillStage, spec: TeacherSpec) -> int:
    """The layer of a teacher whose states are clustered."""
    given = stage.distill.units.teacher_layer
    return spec.layers - 1 if given is None else given


def hidden_layers(stage: DistillStage) -> tuple[int, ...]:
    """The student's layers whose states are compared: by default where a contiguous group ends, the last layer that
    uses each block."""
    last = {block: layer for layer, block in enumerate(stage.model.encoder.block_of_layer)}
    return stage.distill.hidden.layers or tuple(sorted(last.values()))
