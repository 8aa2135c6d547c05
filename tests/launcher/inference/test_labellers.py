"""Models of transformers as writers of labels: small ones with random weights, saved and opened as real ones are."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
import torch

from launcher.errors import CheckpointError, ConfigError
from launcher.inference.labellers import open_labeller

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
LETTERS = "abcdefghijklmnopqrst"
SPEECH = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 8, 8),
    "conv_kernel": (10, 8, 8),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
KINDS = ("wav2vec2-group", "wav2vec2-layer", "hubert", "whisper", "speech-to-text")


def save_ctc(kind, folder):
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    shape = {**SPEECH, "vocab_size": len(names), "pad_token_id": 0}
    if kind == "hubert":
        transformers.HubertForCTC(transformers.HubertConfig(**shape)).save_pretrained(folder)
        return
    stable = kind.endswith("layer")
    norm = {"feat_extract_norm": "layer" if stable else "group", "do_stable_layer_norm": stable}
    transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**shape, **norm)).save_pretrained(folder)


def save_whisper(folder):
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>"]
    ids = {name: number for number, name in enumerate([*LETTERS, "Ġ", *special])}
    end = ids["<|endoftext|>"]
    tokenizer = transformers.WhisperTokenizer(vocab=ids, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    config = transformers.WhisperConfig(
        vocab_size=len(ids), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=32,
        decoder_start_token_id=ids["<|startoftranscript|>"], eos_token_id=end, pad_token_id=end, bos_token_id=end,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        max_length=12, forced_eos_token_id=end, eos_token_id=end, pad_token_id=end, bos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"], is_multilingual=True,
        lang_to_id={"<|en|>": ids["<|en|>"], "<|de|>": ids["<|de|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        # As the real ones do: nothing but letters is written.
        suppress_tokens=[ids[name] for name in special[1:]], begin_suppress_tokens=[end],
        no_timestamps_token_id=ids["<|notimestamps|>"],
    )  # fmt: skip
    model.save_pretrained(folder)


def save_speech_to_text(folder):
    folder.mkdir()
    lines = folder / "lines.txt"
    lines.write_text("\n".join(f"{LETTERS[number:]} {LETTERS[: number + 1]}" for number in range(20)))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(lines), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=30, model_type="char",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(str(folder / "sentencepiece.bpe.model"))
    pieces = [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
    names = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    tokenizer = transformers.Speech2TextTokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))
    tokenizer.save_pretrained(folder)
    transformers.Speech2TextFeatureExtractor().save_pretrained(folder)
    config = transformers.Speech2TextConfig(
        vocab_size=len(names), d_model=24, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, conv_channels=16, max_length=12,
    )  # fmt: skip
    model = transformers.Speech2TextForConditionalGeneration(config)
    model.generation_config.max_length = 12
    model.generation_config.forced_eos_token_id = 2
    model.generation_config.suppress_tokens = [0, 1, 3]
    model.generation_config.begin_suppress_tokens = [2]
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        torch.manual_seed(1)
        if kind == "whisper":
            save_whisper(root / kind)
        elif kind == "speech-to-text":
            save_speech_to_text(root / kind)
        else:
            save_ctc(kind, root / kind)
    return root


def noise(seconds, seed):
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(round(16_000 * seconds))).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_writes_the_same_of_an_utterance_alone_and_in_any_company(folders, kind):
    labeller = open_labeller(folders / kind, CPU)
    waveforms = [noise(1.2, 1), noise(0.4, 2), noise(0.9, 3)]
    together = labeller.label(waveforms, 16_000)
    for waveform, label in zip(waveforms, together, strict=True):
        (alone,) = labeller.label([waveform], 16_000)
        assert alone.text == label.text
        assert alone.confidence == pytest.approx(label.confidence, rel=1e-3, abs=1e-6)
        assert 0 <= label.confidence <= 1
        assert label.ended
        assert "<" not in label.text
    assert any(label.text for label in together)
    assert labeller.label(waveforms, 16_000) == together


def test_speech_of_another_rate_is_resampled(folders):
    labeller = open_labeller(folders / "wav2vec2-layer", CPU)
    (label,) = labeller.label([noise(1.0, 1)[::2].copy()], 8_000)
    assert 0 <= label.confidence <= 1


def test_whisper_hears_no_more_than_its_window_and_writes_the_language_that_is_asked_for(folders):
    assert open_labeller(folders / "whisper", CPU).max_seconds == 30
    assert open_labeller(folders / "whisper", CPU, "de").options["language"] == "de"
    with pytest.raises(ConfigError, match=r"--language is 'xx', which .* does not know. It knows de, en"):
        open_labeller(folders / "whisper", CPU, "xx")


def test_a_folder_that_is_no_model_or_names_code_elsewhere_is_one_paragraph(folders, tmp_path):
    with pytest.raises(CheckpointError, match="holds no model that can be opened"):
        open_labeller(tmp_path, CPU)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="a model of type 'bert', which cannot write labels"):
        open_labeller(tmp_path, CPU)
    named = tmp_path / "named"
    shutil.copytree(folders / "hubert", named)
    config = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps(config | {"attn_implementation": "somebody/kernels"}))
    with pytest.raises(CheckpointError, match="names code or weights elsewhere"):
        open_labeller(named, CPU)


def test_an_encoder_without_an_output_of_texts_is_refused(folders, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(folders / "hubert", folder)
    transformers.HubertModel(transformers.HubertConfig(**SPEECH)).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"lacks weights .*lm_head.* drawn at random"):
        open_labeller(folder, CPU)


def test_weights_that_are_pickles_are_not_opened(folders, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(folders / "hubert", folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be opened by transformers"):
        open_labeller(folder, CPU)
