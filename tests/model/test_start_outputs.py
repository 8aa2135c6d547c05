"""What stands over an encoder starts as another model's where both have the same; what does not is named."""

import pytest
import torch

from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.layers.subsampling import SubsamplingConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.transducer import TransducerConfig
from model.upcycle import initialize_outputs

ENCODER = EncoderConfig(
    layers=2, width=16, heads=2, feedforward_width=16, kernel_size=3, subsampling=SubsamplingConfig(channels=4)
)
DECODER = DecoderConfig(layers=1, heads=2, feedforward_width=16, right_to_left_layers=1)
WHOLE = RecognizerConfig(encoder=ENCODER, decoder=DECODER, transducer=TransducerConfig(width=8))
HEADS = ("ctc", "decoder", "reverse_decoder", "transducer")


def build(config, seed, vocabulary_size=9):
    torch.manual_seed(seed)
    return Recognizer(config, 20, vocabulary_size)


def copied_tensors(student, source, before):
    """The names over the encoder that are the source's now; all others must be as they were drawn."""
    values = source.state_dict()
    copied = set()
    for name, tensor in student.state_dict().items():
        if name.startswith("encoder."):
            continue
        if tensor.equal(before[name]):
            continue
        assert tensor.equal(values[name]), name
        copied.add(name)
    return copied


def started(student_config, source_config, same_tokens, vocabulary_size=9):
    student = build(student_config, 1, vocabulary_size)
    source = build(source_config, 2)
    with torch.no_grad():
        for parameter in source.parameters():
            # Norms begin as ones and biases as zeros, in both.
            parameter += 0.5
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    outputs = initialize_outputs(student, source, same_tokens)
    return outputs, copied_tensors(student, source, before), before


def test_with_the_same_tokens_all_of_it_is_copied():
    outputs, copied, before = started(WHOLE, WHOLE, same_tokens=True)
    assert outputs.copied == HEADS
    assert outputs.drawn == {}
    assert copied == {name for name in before if not name.startswith("encoder.")}


@pytest.mark.parametrize("vocabulary_size", [9, 12])
def test_with_other_tokens_what_has_a_row_for_each_is_drawn_anew_and_named(vocabulary_size):
    """Also where there are as many: their rows would be those of other pieces."""
    outputs, copied, before = started(WHOLE, WHOLE, same_tokens=False, vocabulary_size=vocabulary_size)
    assert outputs.copied == HEADS[1:]
    over_encoder = {name for name in before if not name.startswith("encoder.")}
    assert outputs.drawn.keys() == over_encoder - copied
    assert {"ctc.weight", "ctc.bias", "decoder.embedding.weight"} <= outputs.drawn.keys()
    assert all(before[name].shape[0] == vocabulary_size for name in outputs.drawn)


def test_a_part_of_another_shape_is_drawn_anew_as_a_whole():
    deeper = WHOLE.model_copy(update={"decoder": DECODER.model_copy(update={"layers": 2})})
    outputs, copied, _ = started(deeper, WHOLE, same_tokens=True)
    assert outputs.copied == ("ctc", "transducer")
    assert outputs.drawn["decoder"] == "its settings are not those of the model's decoder"
    assert not any(name.startswith(("decoder.", "reverse_decoder.")) for name in copied)
    # As many values in another number of heads mean something else.
    heads = WHOLE.model_copy(update={"decoder": DECODER.model_copy(update={"heads": 4})})
    assert "decoder" in started(heads, WHOLE, same_tokens=True)[0].drawn


def test_a_part_that_the_model_lacks_is_drawn_anew_and_dropout_is_no_shape():
    plain = RecognizerConfig(encoder=ENCODER)
    outputs, copied, _ = started(WHOLE, plain, same_tokens=True)
    assert outputs.copied == ("ctc",)
    assert outputs.drawn == dict.fromkeys(HEADS[1:], "the model has none")
    assert copied == {"ctc.weight", "ctc.bias"}
    dropping = WHOLE.model_copy(update={"decoder": DECODER.model_copy(update={"dropout": 0.3})})
    assert started(dropping, WHOLE, same_tokens=True)[0].drawn == {}
    assert started(plain, WHOLE, same_tokens=True)[0].copied == ("ctc",)
