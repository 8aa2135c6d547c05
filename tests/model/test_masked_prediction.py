"""The frozen quantizer, the loss at masked frames, and an encoder that starts another."""

import math

import pytest
import torch
from torch.nn import functional

from model.costs.flops import count_parts, forward_operations, masked_operations
from model.encoder import Encoder, EncoderConfig
from model.export import holds_encoder_alone, load_encoder, load_model, save_encoder, save_model
from model.masked_prediction import MaskedPredictor, MaskedPredictorConfig, evenness
from model.quantizer import QuantizerConfig, RandomProjectionQuantizer
from model.recognizer import Recognizer, RecognizerConfig
from model.upcycle import initialize_encoder

MEL_BINS, FACTOR = 12, 4
SMALL = {"layers": 4, "width": 16, "heads": 2, "feedforward_width": 24, "kernel_size": 5, "dropout": 0.0}


def encoder_config(**changes) -> EncoderConfig:
    return EncoderConfig.model_validate({**SMALL, "subsampling": {"channels": 4}, **changes})


def predictor(codebooks: int = 2, **changes) -> MaskedPredictor:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(codebooks=codebooks, codes=30, code_width=5)
    return MaskedPredictor(MaskedPredictorConfig(encoder=encoder_config(**changes), quantizer=quantizer), MEL_BINS)


def batch() -> tuple[torch.Tensor, ...]:
    """Features [2, 22, 12] of 22 and 13 frames, the same with noise at frames 4 to 11, and the encoder frames there."""
    torch.manual_seed(1)
    lengths_B = torch.tensor([22, 13])
    valid_BT = torch.arange(22) < lengths_B[:, None]
    features_BTF = torch.randn(2, 22, MEL_BINS) * valid_BT[..., None]
    masked_BTF = features_BTF.clone()
    masked_BTF[:, 4:12] = 0.1 * torch.randn(2, 8, MEL_BINS)
    predicted_BS = torch.zeros(2, 6, dtype=torch.bool)
    predicted_BS[:, 1:3] = True
    return features_BTF, lengths_B, masked_BTF, predicted_BS


def test_a_code_is_the_nearest_by_angle_of_the_projected_stack_of_features():
    quantizer = RandomProjectionQuantizer(QuantizerConfig(codebooks=3, codes=50, code_width=6), MEL_BINS, FACTOR)
    features_BTF, *_, chosen_BS = batch()
    actual_NQ = quantizer(features_BTF, chosen_BS)
    expected = []
    for row, frame in chosen_BS.nonzero().tolist():
        stack = features_BTF[row, FACTOR * frame : FACTOR * (frame + 1)].flatten()
        for projection, codes in zip(quantizer.projections_QIP, quantizer.codes_QCP, strict=True):
            expected.append(functional.cosine_similarity((stack @ projection)[None], codes).argmax())
    assert actual_NQ.flatten().tolist() == torch.stack(expected).tolist()


def test_the_last_stack_is_filled_up_with_zeros():
    quantizer = RandomProjectionQuantizer(QuantizerConfig(codes=50), MEL_BINS, FACTOR)
    features = torch.randn(1, 6, MEL_BINS)
    chosen = torch.ones(1, 2, dtype=torch.bool)
    longer = functional.pad(features, (0, 0, 0, 2))
    assert quantizer(features, chosen).equal(quantizer(longer, chosen))


def test_the_quantizer_is_drawn_with_the_weights_is_stored_with_them_and_never_learns():
    model = predictor()
    assert model.quantizer.projections_QIP.equal(predictor().quantizer.projections_QIP)
    assert {"quantizer.projections_QIP", "quantizer.codes_QCP"} <= model.state_dict().keys()
    assert not list(model.quantizer.parameters())
    torch.testing.assert_close(model.quantizer.codes_QCP.norm(dim=-1), torch.ones(2, 30))
    model(*batch()).loss_sum().backward()
    assert model.quantizer.projections_QIP.grad is None
    learnt = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in learnt)
    # Xavier: variance 2 / (inputs + outputs), here over 48 inputs and 5 outputs.
    assert model.quantizer.projections_QIP.var().item() == pytest.approx(2 / (FACTOR * MEL_BINS + 5), rel=0.3)


def test_the_loss_is_the_cross_entropy_of_the_codes_at_masked_frames():
    model = predictor()
    features_BTF, lengths_B, masked_BTF, predicted_BS = batch()
    output = model(features_BTF, lengths_B, masked_BTF, predicted_BS)
    frames_ND = model.encoder(masked_BTF, lengths_B).frames_BSD[predicted_BS]
    logits = model.heads(frames_ND).view(-1, 2, 30)
    expected, correct = torch.zeros(()), 0.0
    for frame_logits, codes in zip(logits, model.quantizer(features_BTF, predicted_BS), strict=True):
        for one, code in zip(frame_logits, codes, strict=True):
            expected = expected - one.log_softmax(-1)[code] / 2
            correct += float(one.argmax() == code) / 2
    torch.testing.assert_close(output.loss_sum(), expected)
    assert output.num_correct().item() == pytest.approx(correct)


def test_what_is_masked_has_no_effect_on_the_logits_and_padding_changes_nothing():
    model = predictor().eval()
    features_BTF, lengths_B, masked_BTF, predicted_BS = batch()
    before = model(features_BTF, lengths_B, masked_BTF, predicted_BS)
    other = features_BTF.clone()
    other[:, 4:12] = torch.randn(2, 8, MEL_BINS)
    after = model(other, lengths_B, masked_BTF, predicted_BS)
    torch.testing.assert_close(before.logits_NQC, after.logits_NQC)
    assert not before.codes_NQ.equal(after.codes_NQ)
    padded = [functional.pad(features, (0, 0, 0, 10)) for features in (features_BTF, masked_BTF)]
    longer = model(padded[0], lengths_B, padded[1], functional.pad(predicted_BS, (0, 2)))
    torch.testing.assert_close(before.logits_NQC, longer.logits_NQC)
    assert before.codes_NQ.equal(longer.codes_NQ)


def test_a_batch_without_masked_frames_costs_nothing_and_moves_nothing():
    model = predictor()
    features_BTF, lengths_B, masked_BTF, predicted_BS = batch()
    output = model(features_BTF, lengths_B, masked_BTF, torch.zeros_like(predicted_BS))
    loss = output.loss_sum()
    loss.backward()
    assert loss.item() == 0.0
    assert all(not gradient.any() for p in model.parameters() if (gradient := p.grad) is not None)
    assert evenness(output.code_counts()).item() == 0.0


def test_evenness_is_one_where_all_codes_are_used_alike_and_zero_in_a_collapse():
    assert evenness(torch.full((2, 8), 5)).item() == pytest.approx(1.0)
    assert evenness(torch.tensor([[12, 0, 0, 0]])).item() == pytest.approx(0.0)
    # Three frames cannot use eight codes: each its own is as even as can be.
    assert evenness(torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]])).item() == pytest.approx(1.0)
    assert evenness(torch.tensor([[2, 2, 0, 0]])).item() == pytest.approx(math.log(2) / math.log(4))


def test_codes_are_counted_by_codebook():
    output = predictor()(*batch())
    counts_QC = output.code_counts()
    for codebook in range(2):
        assert counts_QC[codebook].tolist() == torch.bincount(output.codes_NQ[:, codebook], minlength=30).tolist()


@pytest.mark.parametrize("changes", [{}, {"groups": 2, "experts": {"count": 2}}, {"convolution_norm": "batch"}])
def test_an_encoder_starts_as_one_of_the_same_structure_tensor_by_tensor(changes):
    start = predictor(**changes).encoder
    torch.manual_seed(9)
    recognizer = Recognizer(RecognizerConfig(encoder=encoder_config(dropout=0.1, **changes)), MEL_BINS, 20)
    head = recognizer.ctc.weight.clone()
    initialize_encoder(recognizer.encoder, start)
    for name, values in start.state_dict().items():
        assert recognizer.encoder.state_dict()[name].equal(values), name
    assert recognizer.ctc.weight.equal(head)


def test_an_encoder_with_shared_experts_starts_from_a_dense_one():
    start = predictor().encoder
    encoder = Encoder(encoder_config(groups=2, experts={"count": 2}), MEL_BINS)
    initialize_encoder(encoder, start)
    assert encoder.subsampling.first.weight.equal(start.subsampling.first.weight)
    assert encoder.blocks[0].attention.output.weight.equal(start.blocks[1].attention.output.weight)
    assert encoder.blocks[1].feedforward2.experts.w1[0].equal(start.blocks[2].feedforward2.expand.weight)


@pytest.mark.parametrize("changes", [{}, {"groups": 2}, {"groups": 2, "norms": "group", "experts": {"count": 2}}])
def test_layers_above_those_that_are_copied_stay_as_they_were_drawn(changes):
    """layers 0 and 1 of four, which is one group of two"""
    start, config = predictor().encoder, encoder_config(**changes)
    torch.manual_seed(9)
    encoder = Encoder(config, MEL_BINS)
    for norm in (encoder.layers[index].attention_norm for index in (1, 3)):
        torch.nn.init.uniform_(norm.weight)
    before = {name: values.clone() for name, values in encoder.state_dict().items()}
    whole = Encoder(config, MEL_BINS)
    initialize_encoder(whole, start)
    initialize_encoder(encoder, start, 2)
    upper = {f"layers.{layer}." for layer in (2, 3)}
    upper |= {f"{kind}.{block}." for kind in ("blocks", "groups") for block in config.block_of_layer[2:]}
    for name, values in encoder.state_dict().items():
        if any(name.startswith(prefix) for prefix in upper):
            assert values.equal(before[name]), name
        elif ".experts." not in name and "router" not in name:
            assert values.equal(whole.state_dict()[name]), name
    assert encoder.layers[1].attention_norm.weight.eq(1).all()
    assert encoder.layers[3].attention_norm.weight.ne(1).all()


def test_layers_that_share_a_block_are_copied_together():
    with pytest.raises(ValueError, match=r"layer 0 and some above it share a block"):
        initialize_encoder(Encoder(encoder_config(groups=2), MEL_BINS), predictor().encoder, 1)


def test_an_encoder_of_other_widths_is_no_start():
    with pytest.raises(ValueError, match=r"encoder\.width is 32"):
        initialize_encoder(Encoder(encoder_config(width=32), MEL_BINS), predictor().encoder)


def test_an_encoder_is_stored_alone_and_read_from_a_recogniser_too(tmp_path):
    model = predictor()
    save_encoder(tmp_path, model.config.encoder, MEL_BINS, model.state_dict())
    for name, values in load_encoder(tmp_path).state_dict().items():
        assert values.equal(model.encoder.state_dict()[name]), name
    assert holds_encoder_alone(tmp_path)
    with pytest.raises(KeyError, match="recognizer"):
        load_model(tmp_path)
    recognizer = Recognizer(RecognizerConfig(encoder=encoder_config()), MEL_BINS, 20)
    save_model(tmp_path, recognizer.config, MEL_BINS, 20, recognizer.state_dict())
    assert not holds_encoder_alone(tmp_path)
    for name, values in load_encoder(tmp_path).state_dict().items():
        assert values.equal(recognizer.encoder.state_dict()[name]), name


def test_heads_and_quantizer_are_counted_at_masked_frames_alone():
    model = predictor()
    parts, training = masked_operations(model, 40, masked_share=0.25)
    assert parts["heads"] == 0.25 * 10 * 2 * 16 * 60
    assert parts["quantizer"] == 0.25 * 10 * 2 * 2 * (48 * 5 + 30 * 5)
    whole = forward_operations(model, 40, 0)
    assert {name: count for name, count in parts.items() if name not in ("heads", "quantizer")} == {
        name: count for name, count in whole.items() if name not in ("heads", "quantizer")
    }
    assert training == 3 * sum(parts.values()) - 2 * parts["quantizer"]
    assert "quantizer" not in count_parts(model)
    assert sum(part.unique for part in count_parts(model).values()) == sum(p.numel() for p in model.parameters())
