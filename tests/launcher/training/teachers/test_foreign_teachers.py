"""Teachers of transformers and torchaudio: small ones with random weights, saved and opened as real ones are."""

import json
from pathlib import Path

import gradients
import pupils
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torchaudio.models import wav2vec2_model

from launcher.errors import CheckpointError, ConfigError
from launcher.planning.machine import machine_of
from launcher.planning.table import plan_table
from launcher.recipe import Recipe, TeacherConfig, check_inputs, load_recipe
from launcher.recipe.teachers import read_spec
from launcher.run_folder import RunFolder
from launcher.training.distillation.terms import TeacherTerms
from launcher.training.feature_batch import CleanInputs, FeatureBatch
from launcher.training.teachers.waveform import TorchaudioTeacher, TransformersTeacher, WaveformTeacher
from model.student import AuxiliaryHead

CPU = torch.device("cpu")
SPEECH = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 8, 8),
    "conv_kernel": (10, 8, 8),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
}
KINDS = ("wav2vec2-group", "wav2vec2-layer", "hubert", "speech-to-text", "torchaudio-group", "torchaudio-layer")


def save(kind: str, folder: Path) -> Path:
    torch.manual_seed(4)
    if kind.startswith("torchaudio"):
        return save_torchaudio(kind, folder)
    if kind == "speech-to-text":
        config = transformers.Speech2TextConfig(
            vocab_size=12, d_model=24, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, conv_channels=16,
        )  # fmt: skip
        transformers.Speech2TextForConditionalGeneration(config).save_pretrained(folder)
        transformers.Speech2TextFeatureExtractor().save_pretrained(folder)
        return folder
    if kind == "hubert":
        transformers.HubertForCTC(transformers.HubertConfig(**SPEECH)).save_pretrained(folder)
    else:
        stable = kind.endswith("layer")
        norm = {"feat_extract_norm": "layer" if stable else "group", "do_stable_layer_norm": stable}
        transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**SPEECH, **norm)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def save_torchaudio(kind: str, folder: Path) -> Path:
    arguments = {
        "extractor_mode": "layer_norm" if kind.endswith("layer") else "group_norm",
        "extractor_conv_layer_config": [(8, 10, 5), (8, 8, 8), (8, 8, 8)],
        "extractor_conv_bias": False,
        "encoder_embed_dim": 24,
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": 4,
        "encoder_pos_conv_groups": 2,
        "encoder_num_layers": 3,
        "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.1,
        "encoder_ff_interm_features": 32,
        "encoder_ff_interm_dropout": 0.1,
        "encoder_dropout": 0.1,
        "encoder_layer_norm_first": kind.endswith("layer"),
        "encoder_layer_drop": 0.1,
        "aux_num_out": None,
    }
    folder.mkdir(parents=True)
    save_file(wav2vec2_model(**arguments).state_dict(), folder / "model.safetensors")
    description = {"model": arguments, "normalize_waveform": kind.endswith("layer")}
    (folder / "torchaudio.json").write_text(json.dumps(description))
    return folder


def opened(kind: str, folder: Path) -> WaveformTeacher:
    spec = read_spec(save(kind, folder), "The teacher")
    assert (spec.layers, spec.width) == (3, 24)
    of = TorchaudioTeacher if spec.kind == "torchaudio" else TransformersTeacher
    return of(folder, spec, CPU)


def batch(samples: list[int]) -> FeatureBatch:
    """Noise as speech, each utterance the same in any company, beside a student's features of the same length."""
    waveforms_BS = torch.zeros(len(samples), max(samples))
    for row, number in enumerate(samples):
        waveforms_BS[row, :number] = torch.randn(number, generator=torch.Generator().manual_seed(number)) / 10
    lengths_B = ((torch.tensor(samples) - 400) // 160 + 1).clamp(min=0)
    features_BTF = torch.randn(len(samples), max(16, int(lengths_B.max())), gradients.MEL_BINS)
    tokens_BU = torch.full((len(samples), 3), 5)
    source = CleanInputs(features_BTF, features_BTF[..., 0] > 9, waveforms_BS, torch.tensor(samples))
    return FeatureBatch(features_BTF, lengths_B, tokens_BU, torch.full((len(samples),), 3), source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_says_the_same_of_an_utterance_alone_and_in_any_company(kind, tmp_path):
    teacher = opened(kind, tmp_path / kind)
    together, alone = teacher(batch([16000, 9000, 300])), teacher(batch([9000]))
    frames = round(9000 / 16000 / teacher.frame_s)
    assert together.lengths_B[2] == 0  # shorter than a window
    assert together.lengths_B[1] == alone.lengths_B[0]
    assert abs(int(alone.lengths_B[0]) - frames) <= 2
    for layer in range(3):
        length = int(alone.lengths_B[0])
        mine, theirs = together.layers[layer][1], alone.layers[layer][0]
        torch.testing.assert_close(mine[:length], theirs[:length], rtol=1e-4, atol=1e-5)
        assert not mine[length:].any()
    assert not alone.layers[0].equal(alone.layers[2])


def test_the_states_are_those_that_transformers_gives(tmp_path):
    teacher = opened("hubert", tmp_path / "hubert")
    model = transformers.HubertForCTC.from_pretrained(tmp_path / "hubert").eval()
    noise = batch([8000])
    waveform = noise.source.waveforms_BS[0]
    normal = (waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-7).sqrt()
    with torch.no_grad():
        expected = model(normal[None], output_hidden_states=True).hidden_states
    found = teacher(noise)
    for layer in range(3):
        torch.testing.assert_close(found.layers[layer], expected[layer + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["wav2vec2-layer", "speech-to-text", "torchaudio-group"])
def test_a_student_follows_states_and_units_of_a_teacher_from_elsewhere(kind, tmp_path):
    teacher = opened(kind, tmp_path / kind)
    of = pupils.stage(
        hidden={"layers": [1, 3], "projection": True, "resample": True},
        units={"weight": 1.0, "count": 4},
        ctc={"weight": 0},
        decoder={"weight": 0},
    )
    auxiliary_heads = {"a": AuxiliaryHead(1, 24), "b": AuxiliaryHead(3, 24), "units": AuxiliaryHead(3, 4)}
    teacher_terms = TeacherTerms(
        "other",
        teacher,
        1.0,
        of.distill.active(),
        ((1, 0), (3, 2)),
        pupils.FRAME_S / teacher.frame_s,
        projections={1: "a", 3: "b"},
        units_head="units",
        units_layer=2,
        centroids_CD=torch.randn(4, 24, generator=torch.Generator().manual_seed(1)),
    )
    stage_loss, pupil = (
        pupils.stage_loss(of, [teacher_terms], auxiliary_heads),
        pupils.student(1, auxiliary_heads).train(),
    )
    optimizer = torch.optim.Adam(pupil.parameters(), lr=3e-3)
    noise = batch([16000, 12000])
    losses = []
    for _ in range(40):
        terms, _ = stage_loss(pupil, noise, gradients.totals(), 0.0)
        optimizer.zero_grad()
        loss = terms["distill/hidden"] + terms["distill/units"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# --- what is refused --------------------------------------------------------------------------------


def taught_by(folder: Path, *overrides: str) -> Recipe:
    """mini, whose student has a teacher in a folder."""
    recipe = load_recipe("mini", ["stages.student.initialize_from_teacher=false", *overrides])
    stage = recipe.training_stage("student")
    teachers = stage.model_copy(
        update={"teacher": None, "teachers": (TeacherConfig(model=str(folder), layers=(0, 2)),)}
    )
    stages = tuple(teachers if one.name == "student" else one for one in recipe.stages)
    return recipe.model_copy(update={"stages": stages})


def sampler(folder: Path, *overrides: str) -> None:
    check_inputs(taught_by(folder, *overrides))


BRIDGED = (
    "stages.student.distill.ctc.weight=0",
    "stages.student.distill.decoder.weight=0",
    "stages.student.distill.hidden={layers: [1, 5], projection: true, resample: true}",
)


def test_a_plan_counts_a_foreign_teachers_weights_and_refuses_what_a_run_would(tmp_path):
    folder = save("wav2vec2-group", tmp_path / "model")
    run, hosts = RunFolder(tmp_path / "run"), (2,)

    def counted(*overrides: str) -> int:
        recipe = taught_by(folder, *overrides)
        row = plan_table(recipe, run, hosts, machine_of(recipe.cluster, hosts))["stages"]["student"]
        return row["memory_bytes"]["teacher"]

    assert counted(*BRIDGED) == (folder / "model.safetensors").stat().st_size
    unmasked = "augment.frequency_masks=0", "augment.time_masks=0"
    assert counted(*BRIDGED, *unmasked, "stages.student.distill.cache.use=make") == 0
    with pytest.raises(ConfigError, match="tokenizer is not this run's"):
        counted()


def test_states_of_a_foreign_teacher_are_compared_and_its_tokens_are_not(tmp_path):
    folder = save("hubert", tmp_path / "hubert")
    sampler(folder, *BRIDGED)
    for term in ("ctc", "decoder", "sequence"):
        with pytest.raises(
            ConfigError, match=rf"tokenizer is not this run's, in distill\.{term}\. Set its weight to 0"
        ):
            sampler(folder, *BRIDGED, f"stages.student.distill.{term}.weight=1")


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ("{layers: [1, 5], resample: true}", "set distill.hidden.projection to true"),
        ("{layers: [1, 5], projection: true}", "its frames are 40 ms apart and its teacher's 20 ms"),
        ("{layers: [1, 3, 5], projection: true, resample: true}", "name as many of both"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would_bridge_it(hidden, message, tmp_path):
    folder = save("hubert", tmp_path / "hubert")
    with pytest.raises(ConfigError, match=message):
        sampler(folder, *BRIDGED, f"stages.student.distill.hidden={hidden}")


def test_a_folder_of_an_unknown_kind_is_refused(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has none of model"):
        sampler(tmp_path, *BRIDGED)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="model_type is 'bert'; known are wav2vec2"):
        sampler(tmp_path, *BRIDGED)
