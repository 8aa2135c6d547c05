"""The searches that ask the decoder, and forced alignment, against every text and every path there is."""

import math
from itertools import pairwise, product

import pytest
import torch
from ctc_paths import collapse, ends, path_scores, starts, text_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.functional import forced_align

from model.decoder import Decoder, DecoderConfig, reverse
from model.encoder import EncoderConfig
from model.recognizer import BLANK, END, START, Recognizer, RecognizerConfig
from model.search import (
    AttentionOptions,
    CtcPrefixScores,
    Fusion,
    Hotwords,
    Hypothesis,
    align,
    attention_beam,
    joint,
    prefix_beam,
    rescore,
    with_times,
)

WIDTH, VOCABULARY = 8, 6
WRITABLE = [1, 4, 5]
EVERYTHING = AttentionOptions(beam=200, candidates=VOCABULARY, length_power=0.0)


def build(seed: int = 0, layers: int = 2) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(layers=layers, heads=2, feedforward_width=16), WIDTH, VOCABULARY).eval()
    with torch.no_grad():
        decoder.output.weight.mul_(4.0)
    return decoder


def text_score(decoder: Decoder, frames_SD: torch.Tensor, text: tuple[int, ...]) -> float:
    """ln p(text and its end), token after token, by the decoder's whole forward pass."""
    valid = torch.ones(1, len(frames_SD), dtype=torch.bool)
    log_probs = decoder(frames_SD[None], valid, torch.tensor([[START, *text]]))[0].log_softmax(-1)
    return sum(log_probs[position, token].item() for position, token in enumerate([*text, END]))


def texts(longest: int) -> list[tuple[int, ...]]:
    return [text for length in range(longest + 1) for text in product(WRITABLE, repeat=length)]


def test_a_decoder_reads_token_by_token_what_it_reads_at_once():
    decoder = build()
    memory, valid = torch.randn(2, 5, WIDTH), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    tokens = torch.tensor([[[START, 4, 5, 1], [START, 5, 5, 4]], [[START, 4, 4, 4], [START, 1, 5, 4]]])
    state = decoder.begin(memory, valid)
    steps = torch.stack([decoder.step(state, tokens[..., position]) for position in range(4)], dim=2)
    for hypothesis in range(2):
        whole = decoder(memory, valid, tokens[:, hypothesis])
        torch.testing.assert_close(steps[:, hypothesis], whole, rtol=1e-4, atol=1e-5)


def test_a_decoder_goes_on_with_the_hypotheses_that_are_selected():
    decoder = build()
    memory, valid = torch.randn(2, 5, WIDTH), torch.ones(2, 5, dtype=torch.bool)
    state = decoder.begin(memory, valid)
    decoder.step(state, torch.tensor([[START], [START]]))
    state.select(torch.zeros(2, 2, dtype=torch.int64))
    decoder.step(state, torch.tensor([[4, 5], [5, 1]]))
    state.select(torch.tensor([[1, 1, 0], [0, 1, 1]]))
    found = decoder.step(state, torch.tensor([[4, 5, 5], [1, 1, 4]]))
    for row, texts_of_row in enumerate([[[5, 4], [5, 5], [4, 5]], [[5, 1], [1, 1], [1, 4]]]):
        for number, text in enumerate(texts_of_row):
            whole = decoder(memory[row : row + 1], valid[:1], torch.tensor([[START, *text]]))[0, -1]
            torch.testing.assert_close(found[row, number], whole, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(frames=st.integers(0, 4), seed=st.integers(0, 1000), length_power=st.sampled_from([0.0, 1.0]))
def test_a_wide_attention_beam_finds_the_best_of_all_texts(frames, seed, length_power):
    """score(text) == ln p(text) / (tokens + 1) ** length_power."""
    decoder = build(seed)
    memory = torch.randn(1, 5, WIDTH)
    options = AttentionOptions(beam=200, candidates=VOCABULARY, length_power=length_power)
    (found,) = attention_beam(decoder, memory, torch.tensor([frames]), options, n_best=200)
    scores = {
        text: text_score(decoder, memory[0, : max(frames, 1)], text) / (len(text) + 1) ** length_power
        for text in texts(frames)
    }
    assert {tuple(hypothesis.tokens) for hypothesis in found} == set(scores)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(scores[tuple(hypothesis.tokens)], abs=1e-4)
    assert found[0].tokens == list(max(scores, key=scores.__getitem__))


def test_the_beam_ends_when_nothing_better_can_come():
    decoder = build(3)
    with torch.no_grad():
        decoder.output.bias[END] = 9.0
    steps = []
    decoder.output.register_forward_hook(lambda *_: steps.append(1))
    options = AttentionOptions(beam=1, candidates=3, length_power=0.0)
    attention_beam(decoder, torch.randn(1, 50, WIDTH), torch.tensor([50]), options)
    assert len(steps) < 5


def test_length_normalisation_prefers_longer_texts():
    decoder = build(1)
    memory = torch.randn(1, 6, WIDTH)

    def tokens(power: float) -> list[int]:
        options = AttentionOptions(beam=100, candidates=3, length_power=power)
        return attention_beam(decoder, memory, torch.tensor([5]), options)[0][0].tokens

    assert len(tokens(0.0)) < len(tokens(3.0))


@settings(deadline=None, max_examples=20)
@given(frames=st.integers(1, 5), seed=st.integers(0, 1000))
def test_ctc_prefix_scores_sum_all_paths_whose_text_begins_so(frames, seed):
    torch.manual_seed(seed)
    logits = 2 * torch.randn(1, 5, 3)
    paths = path_scores(logits[0, :frames])

    def log_sum(texts_that) -> float:
        chosen = [score for path, score in paths.items() if texts_that(collapse(path))]
        return torch.tensor(chosen or [-math.inf], dtype=torch.float64).logsumexp(0).item()

    scores = CtcPrefixScores(logits, torch.tensor([frames]))
    for prefix in ((), (1,), (1, 1), (1, 1, 2)):
        extended, whole = scores.extend(torch.tensor([[[1, 2]]]))
        assert whole.item() == pytest.approx(log_sum(lambda text, p=prefix: text == p), abs=1e-5)
        for candidate, token in enumerate((1, 2)):
            grown = (*prefix, token)
            expected = log_sum(lambda text, g=grown: text[: len(g)] == g)
            assert extended[0, 0, candidate].item() == pytest.approx(expected, abs=1e-5)
        scores.select(torch.tensor([[0]]), torch.tensor([[1 if len(prefix) == 2 else 0]]))


@settings(deadline=None, max_examples=15)
@given(frames=st.integers(1, 4), weight=st.sampled_from([0.0, 0.3, 0.9]), seed=st.integers(0, 1000))
def test_a_wide_joint_beam_finds_the_best_text_of_both(frames, weight, seed):
    """score(text) == weight ln p_ctc(text) + (1 - weight) ln p_decoder(text)."""
    decoder = build(seed)
    memory, logits = torch.randn(1, frames, WIDTH), 2 * torch.randn(1, frames, VOCABULARY)
    logits[..., [START, END]] = -30.0
    options = AttentionOptions(beam=200, candidates=VOCABULARY, length_power=0.0, ctc_weight=weight)
    (found,) = joint(decoder, memory, logits, torch.tensor([frames]), options, n_best=200)
    of_ctc = text_scores(path_scores(logits[0]))
    of_both = {
        text: weight * of_ctc[text] + (1 - weight) * text_score(decoder, memory[0], text)
        for text in texts(frames)
        if text in of_ctc
    }
    best = max(of_both, key=of_both.__getitem__) if weight else None
    assert weight == 0.0 or found[0].tokens == list(best)
    for hypothesis in found:
        text = tuple(hypothesis.tokens)
        if text in of_both:
            assert hypothesis.score == pytest.approx(of_both[text], abs=1e-3)


def test_an_utterance_is_searched_the_same_alone_and_among_others():
    decoder = build(2)
    memory, logits, lengths = torch.randn(3, 9, WIDTH), torch.randn(3, 9, VOCABULARY), torch.tensor([9, 0, 5])
    options = AttentionOptions(beam=4, candidates=3, ctc_weight=0.3)
    fusion = Fusion(VOCABULARY, [(Hotwords([[4, 5]], list("-?<>ab"), 0.5), 1.0)], 0.1)
    together = joint(decoder, memory, logits, lengths, options, 4, fusion)
    for row, length in enumerate(lengths.tolist()):
        frames = slice(0, max(length, 1))
        one = slice(row, row + 1)
        (alone,) = joint(decoder, memory[one, frames], logits[one, frames], lengths[one], options, 4, fusion)
        assert [h.tokens for h in together[row]] == [h.tokens for h in alone]
        assert [h.frames for h in together[row]] == [h.frames for h in alone]
        assert [h.score for h in together[row]] == pytest.approx([h.score for h in alone], abs=1e-4)


def test_hotwords_reach_the_attention_beam():
    decoder = build(4)
    memory, lengths = torch.randn(1, 4, WIDTH), torch.tensor([4])
    plain = attention_beam(decoder, memory, lengths, EVERYTHING)[0][0].tokens
    wanted = next(list(text) for text in texts(4) if len(text) == 3 and list(text) != plain)
    pieces = ["<blank>", "▁x", "<s>", "</s>", "▁a", "▁b"]
    fusion = Fusion(VOCABULARY, [(Hotwords([wanted], pieces, 30.0), 1.0)])
    found = attention_beam(decoder, memory, lengths, EVERYTHING, fusion=fusion)[0][0].tokens
    assert any(found[start : start + 3] == wanted for start in range(len(found)))


@pytest.fixture(scope="module")
def two_way() -> Recognizer:
    torch.manual_seed(0)
    encoder = EncoderConfig(layers=1, width=WIDTH, heads=2, feedforward_width=16, kernel_size=3)
    decoder = DecoderConfig(layers=1, heads=2, feedforward_width=16, right_to_left_layers=2)
    return Recognizer(RecognizerConfig(encoder=encoder, decoder=decoder), 20, VOCABULARY).eval()


@pytest.mark.parametrize(("ctc_weight", "reverse_weight"), [(0.5, 0.0), (0.0, 0.3), (2.0, 1.0)])
def test_rescoring_adds_up_ctc_and_both_decoders(two_way, ctc_weight, reverse_weight):
    memory, logits, lengths = torch.randn(2, 6, WIDTH), torch.randn(2, 6, VOCABULARY), torch.tensor([6, 4])
    first = prefix_beam(logits, lengths, beam=5, n_best=5)
    found = rescore(two_way, memory, lengths, first, ctc_weight, reverse_weight)
    for row, length in enumerate(lengths.tolist()):
        expected = {}
        for hypothesis in first[row]:
            text, frames = tuple(hypothesis.tokens), memory[row, :length]
            forwards = text_score(two_way.decoder, frames, text)
            backwards = text_score(two_way.reverse_decoder, frames, text[::-1])
            attention = (1 - reverse_weight) * forwards + reverse_weight * backwards
            expected[text] = ctc_weight * hypothesis.score + attention
        assert [h.score for h in found[row]] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-4)
        assert all(h.score == pytest.approx(expected[tuple(h.tokens)], abs=1e-4) for h in found[row])
        times = {tuple(h.tokens): h.frames for h in first[row]}
        assert all(h.frames == times[tuple(h.tokens)] for h in found[row])


def test_a_recogniser_without_a_second_decoder_is_the_one_it_was(two_way):
    torch.manual_seed(0)
    plain_decoder = two_way.config.decoder.model_copy(update={"right_to_left_layers": 0})
    plain = Recognizer(two_way.config.model_copy(update={"decoder": plain_decoder}), 20, VOCABULARY)
    with_second = two_way.state_dict()
    assert all(torch.equal(tensor, with_second[name]) for name, tensor in plain.state_dict().items())
    assert {name.split(".")[0] for name in with_second.keys() - plain.state_dict().keys()} == {"reverse_decoder"}


def test_the_second_decoder_reads_texts_backwards(two_way):
    features, lengths = torch.randn(2, 40, 20), torch.tensor([40, 30])
    tokens, token_lengths = torch.tensor([[4, 5, 5], [5, 4, 0]]), torch.tensor([3, 2])
    output = two_way(features, lengths, tokens, token_lengths)
    assert reverse(tokens, token_lengths).tolist() == [[5, 5, 4], [4, 5, 0]]
    valid = torch.arange(10) < output.encoder.lengths_B[:, None]
    expected = two_way.reverse_decoder(
        output.encoder.frames_BSD, valid, torch.tensor([[START, 5, 5, 4], [START, 4, 5, 0]])
    )
    torch.testing.assert_close(output.reverse_BUV, expected)


@settings(deadline=None, max_examples=60)
@given(
    frames=st.integers(1, 14),
    tokens=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_an_alignment_is_torchaudios(frames, tokens, seed):
    repeats = sum(one == other for one, other in pairwise(tokens))
    torch.manual_seed(seed)
    log_probs = (2 * torch.randn(2, 15, 4)).log_softmax(-1)
    padded = torch.tensor([tokens, tokens])
    found, scores = align(log_probs, torch.tensor([frames, 15]), padded, torch.tensor([len(tokens), len(tokens)]))
    if len(tokens) + repeats > frames:
        assert scores[0] == -math.inf
        return
    path, points = forced_align(log_probs[:1, :frames], padded[:1], blank=BLANK)
    ours = [tokens[number] if number >= 0 else BLANK for number in found[0, :frames].tolist()]
    assert ours == path[0].tolist()
    assert found[0, frames:].tolist() == [-1] * (15 - frames)
    assert scores[0].item() == pytest.approx(points.sum().item(), abs=1e-4)


def test_tokens_get_the_frames_of_their_best_path_or_none_when_they_do_not_fit():
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, 4, 3)
    texts_of = [[Hypothesis([1, 2], [], 0.0), Hypothesis([1, 1, 1], [], 0.0)], [Hypothesis([], [], 0.0)]]
    (fits, too_long), (empty,) = with_times(texts_of, logits, torch.tensor([4, 0]))
    paths = path_scores(logits[0])
    best = max((path for path in paths if collapse(path) == (1, 2)), key=paths.__getitem__)
    assert fits.frames == starts(best)
    assert fits.ends == ends(best)
    assert too_long.frames == empty.frames == []
    assert too_long.ends == empty.ends == []
