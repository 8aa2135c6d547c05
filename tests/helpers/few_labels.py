"""Does an encoder that has listened learn to transcribe from fewer transcripts? `few_labels.py` prints error rates.

Phrases of the embedded corpus; an encoder hears all of them and then learns from every ninth transcript, beside one
that starts from nothing, on the same batches for as many steps. Some seven minutes of one core.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import jiwer
import torch

from data.audio import Utterance, read_audio
from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.features import FeaturesConfig, LogMel
from data.masking import Masking, MaskingConfig, fully_masked_frames
from data.sampling.sampler import Totals
from data.seeds import derive_seed
from data.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from launcher.recipe import OptimizerConfig
from launcher.training.feature_batch import CleanInputs, FeatureBatch
from launcher.training.masked_prediction_loss import MaskedPredictionLoss
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.schedule import learning_rate
from model.encoder import EncoderConfig
from model.layers.subsampling import output_length
from model.losses import ExpertsObjectiveConfig, ObjectiveConfig
from model.masked_prediction import MaskedPredictor, MaskedPredictorConfig
from model.quantizer import QuantizerConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.search import greedy
from model.upcycle import initialize_encoder

NUM_HEARD, NUM_HELD_OUT, EVERY = 1400, 60, 9
BATCH = 8
LISTENING_STEPS, LEARNING_STEPS = 4000, 800
# Little speech wants an easy task: spans that the frames beside them tell much about, and few codes.
MASKING = MaskingConfig(start_probability=0.08, span_s=0.08)
QUANTIZER = QuantizerConfig(codebooks=8, codes=64)
FEATURES = FeaturesConfig()
ENCODER = EncoderConfig.model_validate(
    {
        "layers": 4,
        "width": 64,
        "heads": 4,
        "feedforward_width": 192,
        "dropout": 0.0,
        "subsampling": {"channels": 8},
    }
)
OPTIMIZER = OptimizerConfig(peak_learning_rate=2e-3, warmup_steps=50)


@dataclass
class Corpus:
    """Batches of all phrases, of those with a transcript, and of some held out, as normalised features."""

    heard: list[FeatureBatch]
    labelled: list[FeatureBatch]
    held_out: list[FeatureBatch]
    tokenizer: Tokenizer


def phrases() -> list[Utterance]:
    """The training phrases, in an order without meaning."""
    selected = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases",)), seed=1).utterances
    training = [utterance for utterance in selected if utterance.split == "train"]
    return sorted(training, key=lambda utterance: derive_seed(1, utterance.key))


def make_corpus(folder: Path) -> Corpus:
    """The corpus, whose tokenizer is left in `folder`."""
    heard = phrases()
    heard, held_out = heard[:NUM_HEARD], heard[NUM_HEARD : NUM_HEARD + NUM_HELD_OUT]
    texts = [utterance.text for utterance in heard]
    tokenizer = train_tokenizer(texts, TokenizerConfig(kind="char"), folder)
    features = [log_mel(utterance) for utterance in heard + held_out]
    frames_TF = torch.cat(features[:NUM_HEARD])
    features = [(one - frames_TF.mean(0)) / frames_TF.std(0) for one in features]
    tokens = [tokenizer.encode(utterance.text) for utterance in heard + held_out]
    pairs = list(zip(features, tokens, strict=True))
    return Corpus(batches(pairs[:NUM_HEARD]), batches(pairs[:NUM_HEARD:EVERY]), batches(pairs[NUM_HEARD:]), tokenizer)


def log_mel(utterance: Utterance) -> torch.Tensor:
    waveform = torch.from_numpy(read_audio(utterance, FEATURES.sample_rate_hz))
    return LogMel(FEATURES)(waveform[None], torch.tensor([len(waveform)]))[0][0]


def batches(pairs: list[tuple[torch.Tensor, list[int]]]) -> list[FeatureBatch]:
    """Micro-batches of utterances of about equal length."""
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))
    return [collate(pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH)]


def collate(pairs: list[tuple[torch.Tensor, list[int]]]) -> FeatureBatch:
    features = [features for features, _ in pairs]
    tokens = [torch.tensor(tokens) for _, tokens in pairs]
    pad = torch.nn.utils.rnn.pad_sequence
    return FeatureBatch(
        pad(features, batch_first=True),
        torch.tensor([len(one) for one in features]),
        pad(tokens, batch_first=True),
        torch.tensor([len(one) for one in tokens]),
    )


def hide(batch: FeatureBatch, step: int) -> tuple[FeatureBatch, Totals]:
    masking = Masking(MASKING, FEATURES, ENCODER.subsampling.factor, seed=1)
    heard_BTF, masked_BT = masking.apply_mask(batch.features_BTF, batch.lengths_B, step, 0)
    predicted_BS = fully_masked_frames(masked_BT, batch.lengths_B, ENCODER.subsampling.factor)
    silence = torch.zeros(len(batch.lengths_B), 0), torch.zeros_like(batch.lengths_B)
    masked_batch = replace(batch, features_BTF=heard_BTF, source=CleanInputs(batch.features_BTF, masked_BT, *silence))
    return masked_batch, Totals(0, 0, 1, masked=int(predicted_BS.sum()))


def totals(batch: FeatureBatch) -> Totals:
    frames = int(output_length(batch.lengths_B, ENCODER.subsampling.factor).sum())
    return Totals(len(batch.lengths_B), int(batch.token_lengths_B.sum()), frames)


def train(model: torch.nn.Module, task, prepared, num_steps: int) -> None:
    """Updates from `prepared(step)`, a batch with its totals."""
    adamw = torch.optim.AdamW(model.parameters(), betas=OPTIMIZER.betas, weight_decay=OPTIMIZER.weight_decay)
    model.train()
    for step in range(num_steps):
        adamw.param_groups[0]["lr"] = learning_rate(OPTIMIZER, step, num_steps)
        batch, counts = prepared(step)
        parts, _ = task(model, batch, counts, step / num_steps)
        adamw.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        adamw.step()


def drawn(batches: list[FeatureBatch], step: int) -> FeatureBatch:
    return batches[derive_seed(1, "batch", step) % len(batches)]


def listen(corpus: Corpus) -> MaskedPredictor:
    torch.manual_seed(1)
    model = MaskedPredictor(MaskedPredictorConfig(encoder=ENCODER, quantizer=QUANTIZER), 80)
    task = MaskedPredictionLoss(ExpertsObjectiveConfig(), ENCODER)
    train(model, task, lambda step: hide(drawn(corpus.heard, step), step), LISTENING_STEPS)
    return model.eval()


@torch.no_grad()
def masked_accuracy(model: MaskedPredictor, corpus: Corpus) -> tuple[float, float]:
    """The share of the held-out phrases' masked frames whose code is predicted, and that of the commonest code."""
    task = MaskedPredictionLoss(ExpertsObjectiveConfig(), ENCODER)
    correct, masked, counts_QC = 0.0, 0, 0
    for step, batch in enumerate(corpus.held_out):
        hidden, counts = hide(batch, step)
        _, output = task(model, hidden, counts, 1.0)
        correct, masked = correct + float(output.num_correct()), masked + counts.masked
        counts_QC = counts_QC + output.code_counts()
    assert isinstance(counts_QC, torch.Tensor)
    return correct / masked, float(counts_QC.max() / masked)


def learn(corpus: Corpus, seed: int, start: MaskedPredictor | None) -> float:
    """The error rate on the held-out phrases after learning from the labelled ones."""
    torch.manual_seed(seed)
    model = Recognizer(RecognizerConfig(encoder=ENCODER), 80, corpus.tokenizer.vocabulary_size)
    if start is not None:
        initialize_encoder(model.encoder, start.encoder)
    task = RecognitionLoss(ObjectiveConfig(), ENCODER)

    def prepared(step: int) -> tuple[FeatureBatch, Totals]:
        batch = drawn(corpus.labelled, step)
        return batch, totals(batch)

    train(model, task, prepared, LEARNING_STEPS)
    return error_rate(model.eval(), corpus)


@torch.no_grad()
def error_rate(model: Recognizer, corpus: Corpus) -> float:
    """Character error rate of greedy transcripts of the held-out phrases."""
    references, hypotheses = [], []
    for batch in corpus.held_out:
        output = model(batch.features_BTF, batch.lengths_B)
        found = greedy(output.ctc_BSV, output.encoder.lengths_B)
        hypotheses += [corpus.tokenizer.decode(hypothesis.tokens) for hypothesis in found]
        tokens = zip(batch.tokens_BU.tolist(), batch.token_lengths_B.tolist(), strict=True)
        references += [corpus.tokenizer.decode(row[:length]) for row, length in tokens]
    return jiwer.cer(references, hypotheses)


def main() -> None:
    """Print the error rates of both, for two seeds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder))
    for name, batches in (("heard", corpus.heard), ("transcribed", corpus.labelled)):
        frames = sum(int(batch.lengths_B.sum()) for batch in batches)
        print(f"{name}: {sum(len(batch.lengths_B) for batch in batches)} phrases, {frames / 6000:.1f} min")
    listener = listen(corpus)
    print("masked accuracy, commonest code:", masked_accuracy(listener, corpus))
    for seed in (1, 2):
        print(f"seed {seed}: started {learn(corpus, seed, listener):.1%}, anew {learn(corpus, seed, None):.1%}")


if __name__ == "__main__":
    main()
