"""A program of torch.export, saved and loaded, gives our logits on lengths and batches that it was not made with."""

import pytest
import torch
from small_models import real_speech, write_small_model

from launcher.export.model_files import open_model_files
from launcher.export.torch_program import PROGRAM_FILE, write_program
from launcher.inference.finished_model import FinishedModel

# The exporter takes seconds, and minutes where the cores are shared.
pytestmark = pytest.mark.timeout(900)

# The exporter takes seconds, and minutes where the cores are shared.
pytestmark = pytest.mark.timeout(900)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["streaming", pytest.param("transducer", marks=pytest.mark.slow)])
def test_a_loaded_program_gives_the_logits_of_the_model(kind, tmp_path):
    folder = write_small_model(tmp_path / "model", kind)
    write_program(tmp_path, open_model_files(folder))
    program = torch.export.load(tmp_path / PROGRAM_FILE).module()
    model = FinishedModel.load(folder)
    speech = real_speech(4)
    for waveforms in ([speech[0]], [speech[1][:3000]], speech[:2], speech):
        samples_B = torch.tensor([len(waveform) for waveform in waveforms])
        rows = [torch.from_numpy(waveform) for waveform in waveforms]
        features_BTF, lengths_B = model.features(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), samples_B)
        logits_BSV, logit_lengths_B = program(features_BTF, lengths_B)
        expected = model.recognizer(features_BTF, lengths_B)
        assert logit_lengths_B.equal(expected.encoder.lengths_B)
        torch.testing.assert_close(logits_BSV, expected.ctc_BSV, atol=1e-5, rtol=0)
