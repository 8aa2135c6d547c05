"""Counting, storing and starting whole recognisers."""

import pytest
import torch

from model.accounting import count_parameters
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.export import load_model, save_model
from model.recognizer import Recognizer, RecognizerConfig
from model.router import ExpertsConfig
from model.subsampling import SubsamplingConfig
from model.upcycle import initialize_from_teacher

MEL_BINS, VOCABULARY = 20, 9


def config(**encoder) -> RecognizerConfig:
    values = {
        "layers": 6,
        "width": 16,
        "heads": 2,
        "feedforward_width": 64,
        "kernel_size": 5,
        "subsampling": SubsamplingConfig(channels=4),
    }
    return RecognizerConfig(
        encoder=EncoderConfig.model_validate(values | encoder),
        decoder=DecoderConfig(layers=1, heads=2, feedforward_width=32),
    )


def teacher_config(**changes) -> RecognizerConfig:
    return config(**changes)


def student_config(**changes) -> RecognizerConfig:
    return config(groups=1, experts=ExpertsConfig(count=4), **changes)


def build(recognizer_config: RecognizerConfig, seed: int = 0) -> Recognizer:
    torch.manual_seed(seed)
    return Recognizer(recognizer_config, MEL_BINS, VOCABULARY)


def test_the_default_student_of_twelve_layers_has_a_third_of_the_teachers_blocks():
    with torch.device("meta"):
        teacher = Recognizer(RecognizerConfig(), 80, 500)
        student = Recognizer(
            RecognizerConfig(encoder=EncoderConfig(layers=12, groups=2, experts=ExpertsConfig(count=4))), 80, 500
        )
    size = [sum(p.numel() for p in model.encoder.blocks.parameters()) for model in (student, teacher)]
    assert size[0] / size[1] == pytest.approx(0.340, abs=0.001)


def test_counts_agree_with_tensors_counted_by_hand():
    student = build(student_config())
    counts = count_parameters(student)
    encoder = student.encoder
    block = sum(p.numel() for p in encoder.blocks[0].parameters())
    experts = sum(p.numel() for p in encoder.blocks[0].feedforward2.parameters())
    outside = sum(p.numel() for p in encoder.subsampling.parameters()) + sum(
        p.numel() for p in encoder.layers.parameters()
    )
    assert counts.parameters == sum(p.numel() for p in student.parameters())
    assert counts.encoder_parameters == outside + block
    assert counts.effective_encoder_parameters == outside + 6 * block
    assert counts.activated_encoder_parameters == outside + 6 * (block - experts * 3 // 4)


def test_a_dense_unshared_model_is_equally_large_in_every_way():
    counts = count_parameters(build(teacher_config()))
    assert counts.encoder_parameters == counts.effective_encoder_parameters == counts.activated_encoder_parameters


def test_a_stored_model_gives_the_same_logits_and_stores_each_tensor_once(tmp_path):
    student = build(student_config()).eval()
    save_model(tmp_path, student.config, MEL_BINS, VOCABULARY, student.state_dict())
    loaded = load_model(tmp_path)
    features, lengths = torch.randn(2, 50, MEL_BINS), torch.tensor([50, 33])
    assert torch.equal(student(features, lengths).ctc_BSV, loaded(features, lengths).ctc_BSV)
    stored_bytes = (tmp_path / "model.safetensors").stat().st_size
    assert stored_bytes < 4 * count_parameters(student).parameters + 40_000


def test_a_model_of_a_later_format_is_refused(tmp_path):
    student = build(student_config())
    save_model(tmp_path, student.config, MEL_BINS, VOCABULARY, student.state_dict())
    description = tmp_path / "model.json"
    description.write_text(description.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="format 99"):
        load_model(tmp_path)


def test_a_student_starts_from_its_teachers_parts_with_different_experts():
    teacher, student = build(teacher_config(), seed=1), build(student_config(), seed=2)
    initialize_from_teacher(student, teacher)
    block = student.encoder.blocks[0]
    assert torch.equal(student.ctc.weight, teacher.ctc.weight)
    assert torch.equal(student.encoder.layers[4].final_norm.weight, teacher.encoder.layers[4].final_norm.weight)
    assert torch.equal(block.attention.output.weight, teacher.encoder.blocks[3].attention.output.weight)
    for expert, layer in enumerate([0, 1, 3, 4]):
        source = teacher.encoder.blocks[layer].feedforward2
        x = torch.randn(3, 16)
        counts = [3 if e == expert else 0 for e in range(4)]
        torch.testing.assert_close(block.feedforward2.experts(x, counts), source(x))


def test_a_teacher_of_another_width_is_refused_with_both_widths():
    with pytest.raises(ValueError, match=r"width is 16 and the teacher's 32"):
        initialize_from_teacher(build(student_config()), build(teacher_config(width=32)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "relative"}, "positions is rotary and the teacher's relative"),
        ({"convolution_norm": "batch"}, "convolution_norm is layer and the teacher's batch"),
        ({"subsampling": SubsamplingConfig(channels=4, factor=8)}, "subsampling"),
    ],
)
def test_a_teacher_of_other_parts_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        initialize_from_teacher(build(student_config()), build(teacher_config(**changes)))


def test_intermediate_outputs_exist_in_training_only():
    recognizer = Recognizer(config().model_copy(update={"intermediate_ctc": (1, 3)}), MEL_BINS, VOCABULARY)
    features, lengths = torch.randn(1, 40, MEL_BINS), torch.tensor([40])
    assert len(recognizer(features, lengths).intermediate) == 2
    assert recognizer.eval()(features, lengths).intermediate == []


def test_an_intermediate_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="layer 5"):
        RecognizerConfig(encoder=EncoderConfig(layers=6), intermediate_ctc=(5,))
