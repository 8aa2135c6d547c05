"""A model with adapters as one without them, of the same outputs up to rounding.

A low-rank product is added to its matrix. A bottleneck becomes further hidden units of the feed-forward layer, or of
every expert, beside which it stands. Where layers that share a block have adapters of their own, the merged model
shares nothing: each layer gets the block that it had in effect.
"""

from typing import Any

import torch
from torch import Tensor

from model.adapters import BlockAdapters, Bottleneck, LowRank
from model.block import ConformerBlock, LayerParameters
from model.encoder import EncoderConfig
from model.layers.depthwise import ViewMixture
from model.layers.feedforward import FeedForward
from model.moe.experts import MixtureOfExperts
from model.recognizer import Recognizer

# The linear layer of each site of a low-rank adapter, in its block.
LINEARS = {
    "query_key_value": "attention.query_key_value",
    "attention_output": "attention.output",
    "gated": "convolution.gated",
    "convolution_output": "convolution.output",
    "feedforward1_expand": "feedforward1.expand",
    "feedforward1_contract": "feedforward1.contract",
    "feedforward2_expand": "feedforward2.expand",
    "feedforward2_contract": "feedforward2.contract",
}


def merged_config(encoder: EncoderConfig) -> EncoderConfig:
    """The shape of an encoder whose adapters are merged."""
    adapters = encoder.adapters
    if adapters is None:
        return encoder
    changes: dict[str, Any] = {"adapters": None}
    if adapters.kind == "bottleneck":
        changes["feedforward_width"] = encoder.feedforward_width + adapters.rank
    if adapters.scope == "layer" and encoder.num_blocks < encoder.layers:
        changes |= {"groups": None, "private_head": 0, "private_tail": 0, "norms": "layer"}
        experts = encoder.experts
        if experts is not None and experts.router.scope == "group":
            router = experts.router.model_copy(update={"scope": "layer"})
            changes["experts"] = experts.model_copy(update={"router": router})
    return encoder.model_copy(update=changes)


@torch.no_grad()
def merge_adapters(recognizer: Recognizer) -> Recognizer:
    """The same model without adapters, in evaluation mode; itself where it has none."""
    encoder = recognizer.encoder
    if encoder.config.adapters is None:
        return recognizer
    config = recognizer.config.model_copy(update={"encoder": merged_config(encoder.config)})
    merged = Recognizer(config, recognizer.mel_bins, recognizer.vocabulary_size)
    merged.to(next(recognizer.parameters()).dtype)

    state = merged.state_dict()
    for name, tensor in recognizer.state_dict().items():
        # Blocks, and layers that own what was shared, follow below.
        if name in state and not name.startswith("encoder.blocks."):
            state[name] = tensor
    old_blocks = encoder.config.block_of_layer
    new_blocks = config.encoder.block_of_layer
    for index, layer in enumerate(encoder.layers):
        assert isinstance(layer, LayerParameters)
        block = encoder.blocks[old_blocks[index]]
        assert isinstance(block, ConformerBlock)
        adapters = layer.adapters
        if adapters is None:
            adapters = block.adapters
        assert adapters is not None
        # A block that is still shared is written once for each of its layers, every time the same.
        for name, tensor in _merged_block(block, adapters).items():
            state[f"encoder.blocks.{new_blocks[index]}.{name}"] = tensor
        state |= _own_parts(layer, f"encoder.layers.{index}", state)
    merged.load_state_dict(state)
    return merged.eval()


@torch.no_grad()
def merge_views(recognizer: Recognizer) -> Recognizer:
    """The same model with one depthwise kernel for each layer in place of views, in evaluation mode; itself where it
    has none."""
    encoder = recognizer.encoder
    if not encoder.config.convolution_views:
        return recognizer
    changes = {"convolution_views": (), "kernel_owner": "layer"}
    config = recognizer.config.model_copy(update={"encoder": encoder.config.model_copy(update=changes)})
    merged = Recognizer(config, recognizer.mel_bins, recognizer.vocabulary_size)
    merged.to(next(recognizer.parameters()).dtype)

    state = merged.state_dict()
    for name, tensor in recognizer.state_dict().items():
        if name in state:
            state[name] = tensor
    for index, layer in enumerate(encoder.layers):
        block = encoder.blocks[encoder.config.block_of_layer[index]]
        assert isinstance(layer, LayerParameters)
        assert isinstance(block, ConformerBlock)
        assert isinstance(layer.kernel, ViewMixture)
        state[f"encoder.layers.{index}.kernel.weight"] = layer.kernel(block.convolution.depthwise())
    merged.load_state_dict(state)
    return merged.eval()


def _own_parts(layer: LayerParameters, prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the norms and routers that a layer used, under the names that they have where it owns them."""
    parts: dict[str, Any] = dict(layer.norms())
    parts["feedforward1_router"] = layer.feedforward1_router
    parts["router"] = layer.router
    own = {}
    for part, module in parts.items():
        if module is None:
            continue
        for name, tensor in module.state_dict().items():
            full_name = f"{prefix}.{part}.{name}"
            # Not where a group or the encoder still owns them.
            if full_name in state:
                own[full_name] = tensor
    return own


def _merged_block(block: ConformerBlock, adapters: BlockAdapters) -> dict[str, Tensor]:
    """The tensors of a block with these adapters merged, by their names in the block."""
    state = {}
    for name, tensor in block.state_dict().items():
        if not name.startswith("adapters."):
            state[name] = tensor
    for site, adapter in adapters.named_children():
        if isinstance(adapter, LowRank):
            name = f"{LINEARS[site]}.weight"
            state[name] = state[name] + adapter.product()
        else:
            assert isinstance(adapter, Bottleneck)
            state |= _wider(getattr(block, site), site, adapter)
    return state


def _wider(feedforward: FeedForward | MixtureOfExperts, place: str, adapter: Bottleneck) -> dict[str, Tensor]:
    """The tensors of a feed-forward layer, or of experts, with the hidden units of a bottleneck behind their own."""
    down = adapter.down.weight
    up = adapter.scale * adapter.up.weight
    if isinstance(feedforward, FeedForward):
        expand = feedforward.expand
        return {
            f"{place}.expand.weight": torch.cat((expand.weight, down)),
            f"{place}.expand.bias": torch.cat((expand.bias, adapter.down.bias)),
            f"{place}.contract.weight": torch.cat((feedforward.contract.weight, up), dim=1),
        }
    # Every expert gets the same units: what a frame's experts weigh together weighs them.
    stack = feedforward.experts
    num_experts = len(stack.w1)
    biases1, biases2 = stack.w3.split((stack.hidden, stack.w3.shape[-1] - stack.hidden), dim=-1)
    down_bias = adapter.down.bias.expand(num_experts, 1, -1)
    return {
        f"{place}.experts.w1": torch.cat((stack.w1, down.expand(num_experts, -1, -1)), dim=1),
        f"{place}.experts.w2": torch.cat((stack.w2, up.expand(num_experts, -1, -1)), dim=2),
        f"{place}.experts.w3": torch.cat((biases1, down_bias, biases2), dim=-1),
    }
