"""Counting, storing and starting whole recognisers."""

import pytest
import torch

from model.costs.flops import count_parameters
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.export import load_model, save_model
from model.layers.subsampling import SubsamplingConfig
from model.moe.router import EMBEDDING_WIDTH, ExpertsConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.upcycle import initialize_from_teacher, spread_evenly

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
    return config(**{"groups": 1, "experts": ExpertsConfig(count=4), **changes})


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


def test_counts_with_every_option_agree_with_tensors_counted_by_hand():
    experts = {"count": 4, "placement": "both", "residual": True, "router": {"per_frame": 2, "scope": "conditioned"}}
    student = build(config(private_head=1, groups=1, norms="group", experts=experts))
    counts, encoder = count_parameters(student), student.encoder

    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    block, norms, front = size(encoder.blocks[0]), size(encoder.groups[0]), size(encoder.subsampling)
    stacks = 2 * size(encoder.blocks[0].feedforward1.mixture)
    embeddings = 2 * 6 * EMBEDDING_WIDTH
    routers = 2 * 4 * (16 + EMBEDDING_WIDTH)
    assert counts.encoder_parameters == front + 2 * block + 2 * norms + routers + embeddings
    assert counts.effective_encoder_parameters == front + 6 * (block + norms + routers) + embeddings
    assert counts.activated_encoder_parameters == front + 6 * (block - stacks // 2 + norms + routers) + embeddings


def test_a_dense_unshared_model_is_equally_large_in_every_way():
    counts = count_parameters(build(teacher_config()))
    assert counts.encoder_parameters == counts.effective_encoder_parameters == counts.activated_encoder_parameters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norms": "group", "experts": ExpertsConfig.model_validate({"router": {"scope": "group"}})},
        {
            "private_head": 1,
            "experts": ExpertsConfig.model_validate(
                {"placement": "both", "residual": True, "router": {"scope": "conditioned"}}
            ),
        },
    ],
)
def test_a_stored_model_gives_the_same_logits_and_stores_each_tensor_once(tmp_path, changes):
    student = build(student_config(**changes)).eval()
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
        counts = torch.tensor([3 if e == expert else 0 for e in range(4)])
        torch.testing.assert_close(block.feedforward2.experts(x, counts), source(x))


def test_experts_start_from_layers_at_equal_distances_of_which_one_is_the_last():
    assert spread_evenly([4, 5, 6, 7], 4) == [4, 5, 6, 7]
    assert spread_evenly([0, 1, 2, 3, 4, 5], 4) == [0, 1, 3, 4]
    assert spread_evenly([0, 2, 4, 6, 8, 10], 2) == [0, 6]
    assert spread_evenly([3, 4], 4) == [3, 3, 4, 4]
    assert spread_evenly([5], 3) == [5, 5, 5]


def test_experts_of_both_places_start_from_the_same_place_of_the_teacher_and_the_dense_layer_from_the_middle():
    teacher = build(teacher_config(), seed=1)
    experts = ExpertsConfig.model_validate({"placement": "both", "residual": True, "router": {"scope": "global"}})
    student = build(student_config(experts=experts, norms="group"), seed=2)
    router = student.encoder.common.router.weight.clone()
    initialize_from_teacher(student, teacher)
    for name in ("feedforward1", "feedforward2"):
        mixture = student.encoder.blocks[0].get_submodule(name)
        for expert, layer in enumerate([0, 1, 3, 4]):
            source = teacher.encoder.blocks[layer].get_submodule(name)
            assert torch.equal(mixture.mixture.experts.w1[expert], source.expand.weight)
        middle = teacher.encoder.blocks[3].get_submodule(name)
        assert torch.equal(mixture.dense.contract.weight, middle.contract.weight)
    assert torch.equal(student.encoder.groups[0].final_norm.weight, teacher.encoder.layers[3].final_norm.weight)
    assert torch.equal(student.encoder.common.router.weight, router)


def test_private_blocks_start_as_their_own_layers_and_their_experts_are_set_apart():
    teacher, student = build(teacher_config(), seed=1), build(student_config(private_head=1, private_tail=1), seed=2)
    initialize_from_teacher(student, teacher)
    for block, layer in ((0, 0), (1, 3), (2, 5)):
        student_block, teacher_block = student.encoder.blocks[block], teacher.encoder.blocks[layer]
        assert torch.equal(student_block.attention.output.weight, teacher_block.attention.output.weight)
    private, source = student.encoder.blocks[2].feedforward2.experts.w1, teacher.encoder.blocks[5].feedforward2
    assert torch.equal(private[0], source.expand.weight)
    for expert in range(1, 4):
        assert 0.01 < (private[expert] - private[0]).std() / private[0].std() < 0.03


def test_all_upcycled_experts_start_as_the_teachers_middle_layer_plus_noise():
    teacher = build(teacher_config(), seed=1)
    student = build(student_config(experts=ExpertsConfig(initial="upcycled", initial_noise=0.1)), seed=2)
    initialize_from_teacher(student, teacher)
    stack, source = student.encoder.blocks[0].feedforward2.experts, teacher.encoder.blocks[3].feedforward2
    for expert in range(4):
        apart = (stack.w2[expert] - source.contract.weight).std() / source.contract.weight.std()
        assert apart.item() == pytest.approx(0.1 if expert else 0.0, rel=0.2)


def test_a_teacher_that_shares_norms_passes_them_to_every_layer():
    teacher = build(teacher_config(groups=2, norms="group"), seed=1)
    with torch.no_grad():
        teacher.encoder.groups[1].final_norm.weight.fill_(3.0)
    student = build(student_config(), seed=2)
    initialize_from_teacher(student, teacher)
    assert [layer.final_norm.weight[0].item() for layer in student.encoder.layers] == [1.0] * 3 + [3.0] * 3


def test_a_student_takes_over_both_decoders_of_its_teacher():
    def two_way(recognizer_config: RecognizerConfig) -> RecognizerConfig:
        decoder = recognizer_config.decoder.model_copy(update={"right_to_left_layers": 1})
        return recognizer_config.model_copy(update={"decoder": decoder})

    teacher, student = build(two_way(teacher_config()), seed=1), build(two_way(student_config()), seed=2)
    initialize_from_teacher(student, teacher)
    for student_decoder, teacher_decoder in (
        (student.decoder, teacher.decoder),
        (student.reverse_decoder, teacher.reverse_decoder),
    ):
        assert torch.equal(student_decoder.output.weight, teacher_decoder.output.weight)
    with pytest.raises(ValueError, match="decoders of student and teacher differ"):
        initialize_from_teacher(build(student_config()), teacher)


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
