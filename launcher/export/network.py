"""The network that exported models run, with the weights of a finished model."""

from torch import Tensor, nn

from launcher.export.model_files import ModelFiles
from launcher.export.remote_code.network_chorus import (
    Decoder,
    Encoder,
    ExpertStack,
    MixtureOfExperts,
    SeparateExperts,
    build_parts,
)
from model.recognizer import Recognizer


class Network(nn.Module):
    """The parts of a recogniser under the names that their tensors have in `model.safetensors`."""

    encoder: Encoder
    ctc: nn.Linear
    decoder: Decoder  # of recognisers that have one

    def __init__(self, recognizer: Recognizer):
        super().__init__()
        config = recognizer.config.model_dump(mode="json")
        for name, part in build_parts(config, recognizer.mel_bins, recognizer.vocabulary_size).items():
            self.add_module(name, part)
        # Every tensor by its name: one that the network lacks, or has beside them, is an error here.
        self.load_state_dict(recognizer.state_dict())
        self.eval()

    def forward(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features and lengths to CTC logits [B, S, V] and their lengths."""
        frames_BSD, lengths_B = self.encoder(features_BTF, lengths_B)
        return self.ctc(frames_BSD), lengths_B


def build_network(model: ModelFiles, separate_experts: bool = False) -> Network:
    """The network in evaluation mode; `separate_experts` gives each expert tensors of its own, as ONNX needs them."""
    network = Network(model.recognizer)
    if separate_experts:
        for module in list(network.modules()):
            if isinstance(module, MixtureOfExperts) and isinstance(module.experts, ExpertStack):
                module.experts = SeparateExperts(module.experts)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network
