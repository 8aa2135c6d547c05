"""The transducer against every path there is, and its greedy search against one written out for a single utterance."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.layers.subsampling import SubsamplingConfig
from model.recognizer import BLANK, Recognizer, RecognizerConfig
from model.search import transducer_greedy
from model.transducer import Transducer, TransducerConfig
from model.upcycle import initialize_from_teacher

WIDTH, VOCABULARY, MEL_BINS = 6, 5, 20


def build(seed: int = 0, context: int = 2) -> Transducer:
    torch.manual_seed(seed)
    transducer = Transducer(TransducerConfig(width=8, context=context), WIDTH, VOCABULARY, BLANK)
    # Sharp choices: near-uniform ones would hide a wrong path among many.
    torch.nn.init.normal_(transducer.joint.weight, std=2.0)
    torch.nn.init.normal_(transducer.joint.bias, std=0.5)
    return transducer


def log_probs(transducer: Transducer, frame_D: torch.Tensor, history: list[int]) -> torch.Tensor:
    """Log probabilities [V] after a history of tokens, written out from the weights."""
    context = transducer.config.context
    last = ([BLANK] * context + history)[-context:]
    embedded_CW = transducer.prediction.embedding.weight[last]
    mixing = transducer.prediction.mixing
    prediction_W = torch.relu((embedded_CW * mixing.weight[:, 0].T).sum(0) + mixing.bias)
    joint_W = torch.tanh(transducer.frames.weight @ frame_D + transducer.frames.bias + prediction_W)
    return (transducer.joint.weight @ joint_W + transducer.joint.bias).log_softmax(-1)


def negative_log_probability(transducer: Transducer, frames_SD: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """-log of the sum over every way to place the tokens before the last blank."""
    places = len(frames_SD) - 1 + len(tokens)
    paths = []
    for chosen in combinations(range(places), len(tokens)):
        frame, history, score = 0, [], torch.zeros(())
        for place in range(places):
            symbol = tokens[len(history)] if place in chosen else BLANK
            score = score + log_probs(transducer, frames_SD[frame], history)[symbol]
            if symbol == BLANK:
                frame += 1
            else:
                history = [*history, symbol]
        paths.append(score + log_probs(transducer, frames_SD[frame], history)[BLANK])
    return -torch.stack(paths).logsumexp(0)


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3),
    context=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_the_loss_is_the_sum_over_every_alignment(sizes, context, seed):
    """loss(b) = -log sum over paths of the product of their probabilities, whatever the other rows of the batch are."""
    transducer = build(seed, context)
    lengths, token_lengths = (torch.tensor(column) for column in zip(*sizes, strict=True))
    frames = torch.randn(len(sizes), int(lengths.max()), WIDTH)
    tokens = torch.randint(1, VOCABULARY, (len(sizes), max(1, int(token_lengths.max()))))
    actual = transducer(frames, lengths, tokens, token_lengths)
    for row, (num_frames, num_tokens) in enumerate(sizes):
        expected = negative_log_probability(transducer, frames[row, :num_frames], tokens[row, :num_tokens].tolist())
        torch.testing.assert_close(actual[row], expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_the_sum_over_every_alignment():
    transducer, written_out = build(), build()
    frames, tokens = torch.randn(1, 3, WIDTH), torch.tensor([[2, 4]])
    transducer(frames, torch.tensor([3]), tokens, torch.tensor([2])).sum().backward()
    negative_log_probability(written_out, frames[0], [2, 4]).backward()
    for (name, one), other in zip(transducer.named_parameters(), written_out.parameters(), strict=True):
        assert one.grad.abs().max() > 0, name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_an_utterance_without_frames_costs_nothing_and_has_a_gradient_of_zero():
    transducer = build()
    nothing = torch.zeros(1, dtype=torch.int64)
    frames = torch.randn(1, 4, WIDTH, requires_grad=True)
    loss = transducer(frames, nothing, nothing[:, None], nothing).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert all(not tensor.grad.any() for tensor in [frames, *transducer.parameters()])


def test_no_more_than_one_utterances_joint_tensor_waits_for_the_backward_pass():
    transducer = build()
    frames, tokens = torch.randn(6, 50, WIDTH), torch.randint(1, VOCABULARY, (6, 20))
    saved_sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved_sizes.append(tensor.numel()) or tensor, lambda t: t
    ):
        transducer(frames, torch.full((6,), 50), tokens, torch.full((6,), 20))
    assert max(saved_sizes) < 50 * 21 * VOCABULARY


def one_utterance(transducer: Transducer, frames_SD: torch.Tensor, limit: int) -> tuple[list[int], list[int], float]:
    tokens, starts, score = [], [], 0.0
    for frame, frame_D in enumerate(frames_SD):
        for _ in range(limit):
            scores_V = log_probs(transducer, frame_D, tokens)
            best = int(scores_V.argmax())
            score += scores_V[best].item()
            if best == BLANK:
                break
            tokens.append(best)
            starts.append(frame)
    return tokens, starts, score


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    limit=st.integers(1, 4),
    context=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_greedy_search_takes_the_best_symbol_step_by_step(lengths, limit, context, seed):
    transducer = build(seed, context)
    frames = torch.randn(len(lengths), max(1, *lengths), WIDTH)
    actual = transducer_greedy(transducer, frames, torch.tensor(lengths), limit)
    for row, (hypothesis, length) in enumerate(zip(actual, lengths, strict=True)):
        tokens, starts, score = one_utterance(transducer, frames[row, :length], limit)
        assert (hypothesis.tokens, hypothesis.frames) == (tokens, starts)
        assert hypothesis.score == pytest.approx(score, abs=1e-3)


def test_what_the_transducer_learnt_greedy_search_says():
    torch.manual_seed(0)
    transducer = Transducer(TransducerConfig(width=32), WIDTH, VOCABULARY, BLANK)
    tokens, lengths = torch.tensor([[1, 2, 2, 3], [4, 1, 3, 0]]), torch.tensor([4, 3])
    frames, num_frames = 2 * torch.randn(2, 8, WIDTH), torch.tensor([8, 6])
    optimizer = torch.optim.Adam(transducer.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        transducer(frames, num_frames, tokens, lengths).sum().backward()
        optimizer.step()
    actual = transducer_greedy(transducer, frames, num_frames, 3)
    assert [hypothesis.tokens for hypothesis in actual] == [[1, 2, 2, 3], [4, 1, 3]]


def recognizer_config(transducer: TransducerConfig | None) -> RecognizerConfig:
    encoder = {"layers": 2, "width": 16, "heads": 2, "feedforward_width": 16, "kernel_size": 3}
    return RecognizerConfig(
        encoder=EncoderConfig.model_validate({**encoder, "subsampling": SubsamplingConfig(channels=2)}),
        decoder=DecoderConfig(layers=1, heads=2, feedforward_width=16),
        transducer=transducer,
    )


def recognizer(transducer: TransducerConfig | None, seed: int = 0) -> Recognizer:
    torch.manual_seed(seed)
    return Recognizer(recognizer_config(transducer), MEL_BINS, VOCABULARY)


def test_a_transducer_changes_no_other_weight_of_a_model():
    without, beside = recognizer(None), recognizer(TransducerConfig(width=8))
    assert {name for name, _ in beside.named_parameters()} > {name for name, _ in without.named_parameters()}
    for name, parameter in without.named_parameters():
        assert torch.equal(parameter, beside.get_parameter(name)), name


def test_the_loss_is_there_when_tokens_and_their_lengths_are():
    model = recognizer(TransducerConfig(width=8)).eval()
    features, lengths = torch.randn(2, 40, MEL_BINS), torch.tensor([40, 24])
    tokens, token_lengths = torch.randint(1, VOCABULARY, (2, 3)), torch.tensor([3, 2])
    assert model(features, lengths).transducer_B is None
    assert model(features, lengths, tokens).transducer_B is None
    together = model(features, lengths, tokens, token_lengths).transducer_B
    alone = model(features[1:, :24], lengths[1:], tokens[1:, :2], token_lengths[1:]).transducer_B
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_a_student_starts_from_its_teachers_transducer_and_refuses_one_of_another_shape():
    teacher, student = recognizer(TransducerConfig(width=8)), recognizer(TransducerConfig(width=8), seed=1)
    initialize_from_teacher(student, teacher)
    for one, other in zip(student.transducer.parameters(), teacher.transducer.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="transducers of student and teacher differ"):
        initialize_from_teacher(recognizer(TransducerConfig(width=12)), teacher)


def test_under_autocast_the_loss_stays_fp32():
    transducer = build()
    frames, tokens = torch.randn(1, 5, WIDTH), torch.tensor([[1, 2]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = transducer(frames, torch.tensor([5]), tokens, torch.tensor([2]))
    exact = transducer(frames, torch.tensor([5]), tokens, torch.tensor([2]))
    assert loss.dtype == torch.float32
    assert functional.l1_loss(loss, exact) < 0.05 * exact.item()
