"""Losses as sums: against torch's own, over any split of a batch, and at their extremes."""

import pytest
import torch
from torch.nn import functional

from model import losses
from model.decoder import Decoder, DecoderConfig, append_end, shift_right
from model.recognizer import BLANK, END, START

VOCABULARY = 7


def batch(num: int = 4):
    torch.manual_seed(0)
    logits = torch.randn(num, 12, VOCABULARY)
    lengths = torch.tensor([12, 9, 11, 7])[:num]
    tokens = torch.randint(4, VOCABULARY, (num, 5))
    token_lengths = torch.tensor([5, 3, 4, 2])[:num]
    return logits, lengths, tokens, token_lengths


def test_the_ctc_sum_is_torchs_sum():
    logits, lengths, tokens, token_lengths = batch()
    expected = functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), tokens, lengths, token_lengths, blank=BLANK, reduction="sum"
    )
    torch.testing.assert_close(losses.ctc_sum(logits, lengths, tokens, token_lengths), expected)


def test_sums_do_not_depend_on_how_a_batch_is_split():
    logits, lengths, tokens, token_lengths = batch()
    decoder_logits = torch.randn(4, 6, VOCABULARY)

    def total(rows: slice) -> torch.Tensor:
        return losses.ctc_sum(logits[rows], lengths[rows], tokens[rows], token_lengths[rows]) + losses.attention_sum(
            decoder_logits[rows], tokens[rows], token_lengths[rows], lengths[rows] > 0, 0.1
        )

    torch.testing.assert_close(total(slice(0, 4)), total(slice(0, 1)) + total(slice(1, 4)))


def test_an_utterance_without_frames_costs_nothing_and_has_a_gradient_of_zero():
    logits = torch.randn(1, 4, VOCABULARY, requires_grad=True)
    nothing = torch.zeros(1, dtype=torch.int64)
    decoder_logits = torch.randn(1, 2, VOCABULARY, requires_grad=True)
    loss = losses.ctc_sum(logits, nothing, nothing[:, None], nothing)
    loss = loss + losses.attention_sum(decoder_logits, nothing[:, None], nothing, nothing > 0, 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.abs().max() == 0.0
    assert decoder_logits.grad.abs().max() == 0.0


def test_the_attention_sum_counts_each_token_and_one_end_per_utterance():
    _, lengths, tokens, token_lengths = batch()
    logits = torch.zeros(4, 6, VOCABULARY)
    per_target = torch.log(torch.tensor(float(VOCABULARY)))
    actual = losses.attention_sum(logits, tokens, token_lengths, lengths > 0, 0.0)
    torch.testing.assert_close(actual, per_target * (int(token_lengths.sum()) + 4))


def test_decoder_inputs_and_targets_are_shifted_by_one():
    tokens, lengths = torch.tensor([[5, 6, 0], [4, 5, 6]]), torch.tensor([2, 3])
    assert shift_right(tokens, START).tolist() == [[START, 5, 6, 0], [START, 4, 5, 6]]
    assert append_end(tokens, lengths, END).tolist() == [[5, 6, END, 0], [4, 5, 6, END]]


def test_the_decoder_does_not_see_later_tokens():
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(layers=2, heads=2, feedforward_width=16), 8, VOCABULARY).eval()
    memory, valid = torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    tokens = torch.tensor([[START, 4, 5, 6]])
    changed = torch.tensor([[START, 4, 6, 4]])
    before, after = decoder(memory, valid, tokens), decoder(memory, valid, changed)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2:], after[:, 2:])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_zero_at_the_teacher_and_has_its_gradient_there(temperature):
    teacher = torch.randn(2, 3, VOCABULARY)
    weight = torch.ones(2, 3)
    assert float(losses.divergence_sum(teacher, teacher, weight, temperature)) == pytest.approx(0.0, abs=1e-5)
    student = (teacher + 0.5 * torch.randn_like(teacher)).requires_grad_()
    loss = losses.divergence_sum(student, teacher, weight, temperature)
    loss.backward()
    # d/dz T^2 KL(p_T || p_S) = T (p_S - p_T): of about the same size for every temperature.
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    torch.testing.assert_close(student.grad, expected, rtol=1e-4, atol=1e-6)


def test_hidden_and_cosine_distances_ignore_padding():
    student, teacher = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    changed = student.clone()
    changed[1, 2:] += 10.0
    for distance in (losses.hidden_sum, losses.cosine_sum):
        torch.testing.assert_close(distance(student, teacher, valid), distance(changed, teacher, valid))
    assert float(losses.hidden_sum(teacher, teacher, valid)) == 0.0


def test_blank_frames_weigh_less_and_padding_nothing():
    teacher = torch.zeros(1, 3, VOCABULARY)
    teacher[0, 0, BLANK] = 5.0
    teacher[0, 1, 4] = 5.0
    valid = torch.tensor([[True, True, False]])
    torch.testing.assert_close(losses.frame_weights(teacher, valid, 0.1), torch.tensor([[0.1, 1.0, 0.0]]))
