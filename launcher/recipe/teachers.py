"""What must hold between a student and its teachers, from descriptions alone: no weights are read.

A teacher is an earlier stage or a folder: a finished model of Chorus (model.json), a model of `transformers` as its
save_pretrained writes it (config.json), or one of torchaudio (torchaudio.json: under `model` the arguments of
torchaudio.models.wav2vec2_model; model.safetensors: its weights).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.features import FeaturesConfig
from data.files import read_json
from launcher.errors import CheckpointError, ConfigError
from launcher.recipe.distillation import TeacherConfig
from launcher.recipe.schema import Recipe
from launcher.recipe.stages import DistillStage
from model.encoder import EncoderConfig
from model.export import HUB_DESCRIPTION_FILE, is_hub_layout, read_description

Kind = Literal["chorus", "transformers", "torchaudio"]

# The file that each kind of folder is known by, in the order in which they are looked for.
DESCRIPTION_FILES = ("model.json", "torchaudio.json", "config.json")

# Models of transformers that are known as teachers; all take 16 kHz.
WAVEFORM_MODELS = ("wav2vec2", "hubert")
FILTERBANK_MODELS = ("speech_to_text",)
SAMPLE_RATE_HZ = 16_000
# The hop of the filterbanks of FILTERBANK_MODELS.
FILTERBANK_HOP_S = 0.01

# Terms that compare tokens, so that both sides must have the same.
TOKEN_TERMS = ("ctc", "decoder", "sequence")

# The largest number of layers or of values in a state that the description of a model may give.
MAX_COUNT = 65_536
MAX_CONVOLUTIONS = 64
MAX_STRIDE = 1024

# What AugmentConfig draws anew at every step; the speeds are a few.
MASKS = ("frequency_masks", "time_masks")
# Terms that compare the frames of two models one by one.
FRAME_TERMS = ("ctc", "hidden", "units")


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher's encoder: its depth and width, seconds per frame, and of one of Chorus the mel bins of its input, its
    subsampling factor, and whether it is a recogniser's."""

    kind: Kind
    layers: int
    width: int
    frame_s: float
    mel_bins: int | None = None
    factor: int | None = None
    recognizes: bool = True

    @classmethod
    def from_encoder(
        cls, encoder: EncoderConfig, hop_s: float, mel_bins: int, recognizes: bool = True
    ) -> "TeacherSpec":
        """The spec of an encoder of Chorus on features with a hop of so many seconds."""
        return cls(
            kind="chorus",
            layers=encoder.layers,
            width=encoder.width,
            frame_s=encoder.subsampling.factor * hop_s,
            mel_bins=mel_bins,
            factor=encoder.subsampling.factor,
            recognizes=recognizes,
        )

    @classmethod
    def from_model_folder(cls, folder: Path) -> "TeacherSpec":
        """The spec of a finished model of Chorus, from its folder."""
        description = read_description(folder)
        features = read_model_features(folder)
        return cls.from_encoder(
            description.encoder,
            hop_s=FeaturesConfig.model_validate(features["config"]).hop_ms / 1000,
            mel_bins=description.mel_bins,
            recognizes=description.recognizer is not None,
        )

    @classmethod
    def from_transformers(cls, config: dict[str, Any]) -> "TeacherSpec":
        """The spec of a model of transformers, from its config.json; ValueError when it is none of the known ones."""
        model_type = config["model_type"]
        if model_type in WAVEFORM_MODELS:
            return cls(
                kind="transformers",
                layers=_count(config, "num_hidden_layers"),
                width=_count(config, "hidden_size"),
                frame_s=_samples_per_frame(config["conv_stride"]) / SAMPLE_RATE_HZ,
            )
        if model_type in FILTERBANK_MODELS:
            # Each convolution has a stride of 2.
            return cls(
                kind="transformers",
                layers=_count(config, "encoder_layers"),
                width=_count(config, "d_model"),
                frame_s=FILTERBANK_HOP_S * 2 ** _count(config, "num_conv_layers", MAX_CONVOLUTIONS),
            )
        raise ValueError(f"model_type is {model_type!r}; known are {', '.join(WAVEFORM_MODELS + FILTERBANK_MODELS)}")

    @classmethod
    def from_torchaudio(cls, description: dict[str, Any]) -> "TeacherSpec":
        """The spec of a wav2vec 2.0 or HuBERT of torchaudio, from the content of torchaudio.json."""
        arguments = description["model"]
        strides = [stride for _, _, stride in arguments["extractor_conv_layer_config"]]
        return cls(
            kind="torchaudio",
            layers=_count(arguments, "encoder_num_layers"),
            width=_count(arguments, "encoder_embed_dim"),
            frame_s=_samples_per_frame(strides) / SAMPLE_RATE_HZ,
        )


def _samples_per_frame(strides: Sequence[Any]) -> int:
    """The samples from one frame to the next; ValueError for strides that no convolutions have."""
    # A bound on each alone: the product of a few dozen is already beyond what a number of Python's takes for seconds.
    if not 1 <= len(strides) <= MAX_CONVOLUTIONS:
        raise ValueError(f"there are {len(strides)} strides of convolutions")
    for stride in strides:
        if type(stride) is not int or not 1 <= stride <= MAX_STRIDE:
            raise ValueError(f"a stride is {str(stride)[:40]!r}, and must be a number from 1 to {MAX_STRIDE}")
    return math.prod(strides)


def _count(config: dict[str, Any], key: str, largest: int = MAX_COUNT) -> int:
    """A number of layers or of values; ValueError when it is none that a model can have."""
    value = config[key]
    if type(value) is not int or not 1 <= value <= largest:
        raise ValueError(f"{key} is {str(value)[:40]!r}, and must be a number from 1 to {largest}")
    return value


def read_model_features(folder: Path) -> dict[str, Any]:
    """The front-end of a finished model of Chorus, in its own layout or in that of Hugging Face: `config`, `mean` and
    `std`. Raises OSError and ValueError."""
    # The names are those of launcher/export/model_files.py, which stands above the recipe.
    name = "features.json"
    if is_hub_layout(folder):
        name = "preprocessor_config.json"
    return read_json(folder / name)


def spec_of_stage(recipe: Recipe, name: str) -> TeacherSpec:
    """The spec of a training stage of this recipe; ConfigError when it trains no recogniser."""
    encoder = recipe.recognition_stage(name).model.encoder
    return TeacherSpec.from_encoder(encoder, recipe.features.hop_ms / 1000, recipe.features.mel_bins)


def read_spec(folder: Path, where: str) -> TeacherSpec:
    """The spec of a folder; CheckpointError, beginning with `where`, when it is none of the known ones."""
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{where} is the folder {folder}, which holds no finished model (*.safetensors). Name the model folder of "
            "a finished stage, such as runs/mini/teacher/model."
        )

    for name in DESCRIPTION_FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            if name == "model.json":
                return TeacherSpec.from_model_folder(folder)
            description = read_json(file)
            is_own = isinstance(description, dict) and description.get("model_type") == "chorus"
            if name == HUB_DESCRIPTION_FILE and is_own:
                return TeacherSpec.from_model_folder(folder)
            if name == "torchaudio.json":
                return TeacherSpec.from_torchaudio(description)
            return TeacherSpec.from_transformers(description)
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Of a configuration pydantic tells over several lines.
            reason = " ".join(repr(error).split())
            raise CheckpointError(
                f"{where} is the folder {folder}, whose {name} cannot be read: {reason}. Copy the folder again "
                "from where it was made."
            ) from None

    raise CheckpointError(
        f"{where} is the folder {folder}, which has none of {', '.join(DESCRIPTION_FILES)}: what is in it is not "
        "known. Name the folder of a finished model, or of a model that transformers or torchaudio has written."
    )


def terms_of(stage: DistillStage, teacher: TeacherConfig) -> frozenset[str]:
    """What a teacher teaches: the terms that weigh something, of which it may be given a part."""
    active = stage.distill.active()
    if teacher.terms is None:
        return active
    return active & frozenset(teacher.terms)


def frame_s(recipe: Recipe, stage: DistillStage) -> float:
    """Seconds from one frame of the student to the next."""
    return stage.model.encoder.subsampling.factor * recipe.features.hop_ms / 1000


def hidden_layers(stage: DistillStage) -> tuple[int, ...]:
    """The student's layers whose states are compared: by default where a contiguous group ends, the last layer that
    uses each block."""
    if stage.distill.hidden.layers:
        return stage.distill.hidden.layers
    # Later layers overwrite earlier ones of the same block.
    last_layer_of_block = {block: layer for layer, block in enumerate(stage.model.encoder.block_of_layer)}
    return tuple(sorted(last_layer_of_block.values()))


def compared_layers(stage: DistillStage, teacher: TeacherConfig) -> tuple[tuple[int, int], ...]:
    """The student's layers whose states are compared, each beside that of the teacher."""
    if "hidden" not in terms_of(stage, teacher):
        return ()
    student_layers = hidden_layers(stage)
    teacher_layers = teacher.layers or student_layers
    return tuple(zip(student_layers, teacher_layers, strict=True))


def units_layer(stage: DistillStage, spec: TeacherSpec) -> int:
    """The layer of a teacher whose states are clustered."""
    teacher_layer = stage.distill.units.teacher_layer
    if teacher_layer is None:
        return spec.layers - 1
    return teacher_layer


def check_teacher(recipe: Recipe, stage: DistillStage, teacher: TeacherConfig, spec: TeacherSpec) -> None:
    """Refuse a teacher from which this student cannot learn what it is to learn (ConfigError)."""
    name = "its teacher"
    if len(stage.named_teachers) > 1:
        name = f"its teacher {teacher.name}"

    if not spec.recognizes:
        raise ConfigError(
            f"Stage {stage.name}: {name} is an encoder that learnt without transcripts, and no recogniser. Start one "
            f"from it, a pretrain stage with initialize_from: {teacher.model}, and name that."
        )

    terms = terms_of(stage, teacher)
    for term in teacher.terms or ():
        if term not in terms:
            raise ConfigError(
                f"Stage {stage.name} is to learn {term} from {name}, but distill.{term} weighs nothing. Give it a "
                f"weight, or take {term} out of the teacher's terms."
            )

    _check_front_end(recipe, stage, teacher, spec, name)
    _check_time_warp(recipe, stage, teacher, spec, name)
    # Units are taken from the nearest frame, decoder and sequence compare tokens: these need no common frame rate.
    if "ctc" in terms or ("hidden" in terms and not stage.distill.hidden.resample):
        _check_frame_rate(recipe, stage, spec, name)
    if "hidden" in terms:
        _check_hidden_layers(stage, teacher, spec, name)
    if "units" in terms:
        units = stage.distill.units
        num_layers = stage.model.encoder.layers
        if units.layer is not None and units.layer >= num_layers:
            raise ConfigError(
                f"Stage {stage.name} predicts units from layer {units.layer} (distill.units.layer), but it has layers "
                f"0 to {num_layers - 1}."
            )
        _check_layers_of_teacher(stage, "distill.units.teacher_layer", [units_layer(stage, spec)], spec, name)

    if stage.distill.cache.required:
        reason = why_no_cache(recipe, stage, teacher, spec)
        if reason:
            raise ConfigError(
                f"Stage {stage.name} is to read {name} from a cache (distill.cache.use is {stage.distill.cache.use}), "
                f"and there can be none: {reason}."
            )


def check_cacheable(recipe: Recipe, stage: DistillStage) -> None:
    """Refuse to store the outputs of a stage's teachers where several corpora are mixed (ConfigError): a cache lies
    beside the shards of one, and is read by their names."""
    num_corpora = len(recipe.corpora())
    if num_corpora > 1:
        raise ConfigError(
            f"Stage {stage.name} is to store the outputs of its teachers (distill.cache), and the corpus of recipe "
            f"{recipe.name} is a mixture of {num_corpora}. Leave distill.cache out, so that teachers run at every "
            "step, or name one corpus."
        )


def why_no_cache(recipe: Recipe, stage: DistillStage, teacher: TeacherConfig, spec: TeacherSpec) -> str:
    """Why a teacher's outputs cannot be stored; empty when they can."""
    augment = recipe.augment_of(stage)
    # Every teacher's input is made of the recording that the student gets.
    for key in augment.waveform_kinds():
        return (
            f"its input is augmented anew at every step (augment.{key} has a probability of "
            f"{augment.probability_of(key):g}). Leave distill.cache out, so that the teacher runs at every step, or "
            "set that probability to 0"
        )
    if augment.probability_of("time_warp") and not _takes_waveform(teacher, spec):
        return (
            "its input is warped anew at every step (augment.time_warp has a probability of "
            f"{augment.probability_of('time_warp'):g}). Set that probability to 0"
        )
    # Other models take the waveform, which is never masked.
    if _takes_waveform(teacher, spec) or teacher.input == "clean":
        return ""
    for key in MASKS:
        num_masks = getattr(augment, key)
        if num_masks:
            return (
                f"its input has masks that are drawn anew at every step (augment.{key} is {num_masks}). List it in "
                "teachers with input: clean, which changes what is learnt, or set augment.frequency_masks and "
                "augment.time_masks to 0"
            )
    return ""


def _takes_waveform(teacher: TeacherConfig, spec: TeacherSpec) -> bool:
    return spec.kind != "chorus" or teacher.input == "waveform"


def _check_time_warp(
    recipe: Recipe,
    stage: DistillStage,
    teacher: TeacherConfig,
    spec: TeacherSpec,
    name: str,
) -> None:
    """Refuse to compare frames of warped features with those of a teacher that gets the waveform (ConfigError)."""
    if not recipe.augment_of(stage).probability_of("time_warp") or not _takes_waveform(teacher, spec):
        return
    for term in FRAME_TERMS:
        if term in terms_of(stage, teacher):
            raise ConfigError(
                f"Stage {stage.name} is compared to {name} frame by frame in distill.{term}, and its features are "
                "warped along time (augment.time_warp), while that teacher gets the waveform. Leave time_warp out, "
                f"or set the weight of distill.{term} to 0."
            )


def _check_front_end(recipe: Recipe, stage: DistillStage, teacher: TeacherConfig, spec: TeacherSpec, name: str) -> None:
    """Refuse a teacher whose mel bins, front-end, tokenizer or sample rate does not fit the student's."""
    if spec.kind == "chorus":
        # With `input: waveform` it computes its own features, of whatever size.
        if teacher.input != "waveform" and spec.mel_bins != recipe.features.mel_bins:
            raise ConfigError(
                f"Stage {stage.name}: {name} takes {spec.mel_bins} mel bins, and features.mel_bins is "
                f"{recipe.features.mel_bins}. Make them equal, or list it in teachers with input: waveform."
            )
        # Whether its tokenizer has the student's pieces is known when the stage starts and the tokenizer is there.
        return

    if teacher.input not in (None, "waveform"):
        raise ConfigError(
            f"Stage {stage.name}: {name} has a front-end of its own, but input is {teacher.input}. Set it to waveform "
            "or leave it out."
        )

    terms = terms_of(stage, teacher)
    for term in TOKEN_TERMS:
        if term in terms:
            raise ConfigError(
                f"Stage {stage.name} compares the tokens of {name}, a model of {spec.kind}, whose tokenizer is not "
                f"this run's, in distill.{term}. Set its weight to 0, or list the teacher in teachers with terms among "
                "hidden and units."
            )

    if recipe.features.sample_rate_hz != SAMPLE_RATE_HZ:
        raise ConfigError(
            f"Stage {stage.name}: {name}, a model of {spec.kind}, takes {SAMPLE_RATE_HZ} Hz, and "
            f"features.sample_rate_hz is {recipe.features.sample_rate_hz}. Prepare the corpus at {SAMPLE_RATE_HZ} Hz, "
            "or choose another teacher."
        )


def _check_frame_rate(recipe: Recipe, stage: DistillStage, spec: TeacherSpec, name: str) -> None:
    student_frame_s = frame_s(recipe, stage)
    if math.isclose(student_frame_s, spec.frame_s):
        return
    remedy = (
        "Make them equal, or set distill.hidden.weight, distill.hidden.cosine and distill.ctc.weight to 0; hidden "
        "states can be compared with distill.hidden.resample."
    )

    # Where both are of Chorus, the key to change says more than the milliseconds.
    student_factor = stage.model.encoder.subsampling.factor
    if spec.factor and spec.factor != student_factor:
        raise ConfigError(
            f"Stage {stage.name} is compared to {name} frame by frame, but its encoder.subsampling.factor is "
            f"{student_factor} and {name}'s is {spec.factor}. {remedy}"
        )
    raise ConfigError(
        f"Stage {stage.name} is compared to {name} frame by frame, but its frames are {1000 * student_frame_s:g} ms "
        f"apart and {name}'s {1000 * spec.frame_s:g} ms. {remedy}"
    )


def _check_hidden_layers(stage: DistillStage, teacher: TeacherConfig, spec: TeacherSpec, name: str) -> None:
    student = stage.model.encoder
    hidden = stage.distill.hidden
    off = "set distill.hidden.weight and distill.hidden.cosine to 0."

    # Without a list of the teacher's layers, layers of the same number are compared. Sharing keeps depth and width, so
    # a student with fewer blocks than its teacher needs neither a list nor a projection.
    if teacher.layers is None and spec.layers != student.layers:
        raise ConfigError(
            f"Stage {stage.name} compares hidden states layer by layer, but its encoder.layers is {student.layers} and "
            f"{name}'s is {spec.layers}. Make them equal, name the teacher's layers in teachers, or {off}"
        )

    # The squared distance and the cosine need states of the same width.
    if spec.width != student.width and not hidden.projection:
        raise ConfigError(
            f"Stage {stage.name} compares hidden states layer by layer, but its encoder.width is {student.width} and "
            f"{name}'s is {spec.width}. Make them equal, set distill.hidden.projection to true, or {off}"
        )

    beyond = [layer for layer in hidden.layers or () if not 0 <= layer < student.layers]
    if beyond:
        raise ConfigError(
            f"Stage {stage.name} compares layers {beyond} in distill.hidden.layers, but there are layers 0 "
            f"to {student.layers - 1}."
        )

    if teacher.layers is None:
        return
    student_layers = hidden_layers(stage)
    if len(student_layers) != len(teacher.layers):
        raise ConfigError(
            f"Stage {stage.name} compares its layers {list(student_layers)} (distill.hidden.layers) to layers "
            f"{list(teacher.layers)} of {name}; name as many of both."
        )
    _check_layers_of_teacher(stage, "teachers", teacher.layers, spec, name)


def _check_layers_of_teacher(
    stage: DistillStage, key: str, layers: Iterable[int], spec: TeacherSpec, name: str
) -> None:
    for layer in layers:
        if not 0 <= layer < spec.layers:
            raise ConfigError(
                f"Stage {stage.name} names layer {layer} of {name} in {key}, which has layers 0 to {spec.layers - 1}."
            )
