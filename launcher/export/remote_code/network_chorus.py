"""The network of a Chorus recogniser for recognition alone. It needs torch and nothing else.

Every batch is padded, and nothing depends on the values of a tensor but which frames an expert gets: so
`torch.export` and ONNX can follow it. Tensors have the names that training gave them. Layers may share blocks, norms
and routers; each is stored once.

Shapes: B batch, T feature frames, S encoder frames, F mel bins, D width, H heads, K head width, E experts, N frames of
all utterances, U tokens, V vocabulary, L layers, C cached frames, W width of the transducer.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# The first ids of every vocabulary.
BLANK = 0
UNKNOWN = 1
START = 2
END = 3

# The strides that make each subsampling factor, over time and frequency alike.
STRIDES = {4: (2, 2), 6: (2, 3), 8: (2, 2, 2)}
ROTARY_BASE = 10_000.0
LAYER_EMBEDDING_WIDTH = 16

Config = dict[str, Any]


def build_parts(
    recognizer: Config,
    mel_bins: int,
    vocabulary_size: int,
) -> dict[str, nn.Module]:
    """The modules of a recogniser by name: encoder and CTC output, and a decoder and a transducer where it has them."""
    encoder = recognizer["encoder"]
    width = encoder["width"]
    parts: dict[str, nn.Module] = {
        "encoder": Encoder(encoder, mel_bins),
        "ctc": nn.Linear(width, vocabulary_size),
    }
    decoder = recognizer["decoder"]
    if decoder is not None:
        parts["decoder"] = Decoder(decoder, decoder["layers"], width, vocabulary_size)
        num_backwards = decoder["right_to_left_layers"]
        if num_backwards:
            parts["reverse_decoder"] = Decoder(decoder, num_backwards, width, vocabulary_size)
    transducer = recognizer["transducer"]
    if transducer is not None:
        parts["transducer"] = Transducer(transducer, width, vocabulary_size)
    return parts


class Encoder(nn.Module):
    """Features to frames, through layers that each use one of the blocks."""

    def __init__(self, config: Config, mel_bins: int):
        super().__init__()
        self.config = config
        self.block_of_layer = block_of_layer(config)
        self.subsampling = Subsampling(config["subsampling"], mel_bins, config["width"])
        self.blocks = nn.ModuleList()
        for _ in range(max(self.block_of_layer) + 1):
            self.blocks.append(Block(config))

        router_scope = None
        if config["experts"] is not None:
            router_scope = config["experts"]["router"]["scope"]
        layer_owns_norms = config["norms"] == "layer"
        self.layers = nn.ModuleList()
        for _ in range(config["layers"]):
            layer = LayerParameters(
                config,
                norms=layer_owns_norms,
                routers=router_scope == "layer",
                owns_kernel=layers_own_kernels(config),
            )
            self.layers.append(layer)
        self.groups = nn.ModuleList()
        if not layer_owns_norms or router_scope == "group":
            for _ in self.blocks:
                group = LayerParameters(config, norms=not layer_owns_norms, routers=router_scope == "group")
                self.groups.append(group)
        self.common = None
        if router_scope in ("global", "conditioned"):
            num_layers = config["layers"] if router_scope == "conditioned" else 0
            self.common = LayerParameters(config, norms=False, routers=True, num_layers=num_layers)

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Features and their valid lengths to frames [B, S, D], zero beyond the valid lengths [B] that come with them.

        With `chunk_frames`, for models of causal convolutions, a frame attends to its own chunk and to `left_chunks`
        before it (None: all), as it does while audio arrives.
        """
        x_BSD, lengths_B = self.subsampling(features_BTF, lengths_B, torch.zeros_like(lengths_B))
        num_frames = x_BSD.shape[1]
        valid_BS = valid_mask(lengths_B, num_frames)
        mask_BTS = valid_key_mask(valid_BS)
        if chunk_frames is not None:
            mask_BTS = _chunk_mask(valid_BS, chunk_frames, left_chunks)
        context = None
        for index in range(len(self.layers)):
            x_BSD, _ = self._run_layer(index, x_BSD, valid_BS, mask_BTS, context)
        return x_BSD * valid_BS[:, :, None], lengths_B

    def step(
        self,
        features_BTF: Tensor,
        skipped_B: Tensor,
        cached_B: Tensor,
        keys_LBHCK: Tensor,
        values_LBHCK: Tensor,
        inputs_LBCD: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The next chunk of each of B streams: its frames [B, S, D] and the state for the one after it.

        `features_BTF` are the last `factor` features before the chunk and then its own. At the beginning of a stream
        there are none before: they are zeros, and `skipped_B` is `factor`, otherwise 0. `cached_B` counts the frames
        whose keys and values are at the end of the caches, C at most; `inputs_LBCD` are the last inputs of each layer's
        convolution. All begin as zeros. Returned are the frames, and `cached_B`, keys, values and inputs anew.
        """
        lengths_B = torch.full_like(skipped_B, features_BTF.shape[1])
        x_BSD, _ = self.subsampling(features_BTF, lengths_B, skipped_B)
        # The first frame is made of the features before the chunk: it was given with them.
        x_BSD = x_BSD[:, 1:]
        batch, num_frames, _ = x_BSD.shape
        num_cached = keys_LBHCK.shape[3]

        valid_BS = torch.ones(batch, num_frames, dtype=torch.bool, device=x_BSD.device)
        slots_C = torch.arange(num_cached, device=x_BSD.device)
        filled_BC = slots_C >= num_cached - cached_B[:, None]
        mask_BTS = torch.cat((filled_BC, valid_BS), dim=1)[:, None, None, :]

        keys = []
        values = []
        inputs = []
        for index in range(len(self.layers)):
            context = (keys_LBHCK[index], values_LBHCK[index], inputs_LBCD[index])
            x_BSD, context = self._run_layer(index, x_BSD, valid_BS, mask_BTS, context)
            keys.append(context[0])
            values.append(context[1])
            inputs.append(context[2])
        cached_B = (cached_B + num_frames).clamp(max=num_cached)
        return x_BSD, cached_B, torch.stack(keys), torch.stack(values), torch.stack(inputs)

    def _run_layer(
        self,
        index: int,
        x_BSD: Tensor,
        valid_BS: Tensor,
        mask_BTS: Tensor,
        context: tuple[Tensor, Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """One layer, with the norms and routers of whoever owns them, and the caches that follow `context`."""
        block = self.blocks[self.block_of_layer[index]]
        owners = [self.layers[index]]
        if len(self.groups):
            owners.append(self.groups[self.block_of_layer[index]])
        if self.common is not None:
            owners.append(self.common)
        parameters: dict[str, nn.Module] = {}
        for owner in owners:
            parameters.update(owner.named_children())
        return block(x_BSD, parameters, index, valid_BS, mask_BTS, context)


def block_of_layer(config: Config) -> list[int]:
    """The block that each layer uses: private ones at both ends, and groups between them."""
    head = config["private_head"]
    tail = config["private_tail"]
    num_grouped = config["layers"] - head - tail
    num_groups = config["groups"] or num_grouped
    blocks = list(range(head))
    for layer in range(num_grouped):
        if config["sharing"] == "cyclic":
            group = layer % num_groups
        else:
            group = layer * num_groups // num_grouped
        blocks.append(head + group)
    blocks.extend(range(head + num_groups, head + num_groups + tail))
    return blocks


def layers_own_kernels(config: Config) -> bool:
    """Whether each layer has a depthwise kernel of its own. Configurations of earlier versions do not say."""
    return config.get("kernel_owner", "block") == "layer"


def expert_places(config: Config) -> tuple[str, ...]:
    """The feed-forward layers of a block that are experts."""
    experts = config["experts"]
    if experts is None:
        return ()
    if experts["placement"] == "both":
        return ("first", "second")
    return (experts["placement"],)


class LayerParameters(nn.Module):
    """Norms and routers of a layer, of the layers of a block, or of all."""

    def __init__(
        self,
        config: Config,
        norms: bool,
        routers: bool,
        num_layers: int = 0,
        owns_kernel: bool = False,
    ):
        super().__init__()
        width = config["width"]
        if norms:
            self.feedforward1_norm = nn.LayerNorm(width)
            self.attention_norm = nn.LayerNorm(width)
            self.convolution_norm = nn.LayerNorm(width)
            if config["convolution_norm"] == "batch":
                self.convolution_inner_norm = RunningNorm(width)
            else:
                self.convolution_inner_norm = nn.LayerNorm(width)
            self.feedforward2_norm = nn.LayerNorm(width)
            self.final_norm = nn.LayerNorm(width)
        if owns_kernel:
            self.kernel = LayerKernel(width, config["kernel_size"])
        if routers:
            places = expert_places(config)
            if "first" in places:
                self.feedforward1_router = Router(config["experts"], width, num_layers)
            if "second" in places:
                self.router = Router(config["experts"], width, num_layers)


class LayerKernel(nn.Module):
    """The depthwise kernel of a layer that does not take its block's."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1, 1, kernel_size))

    def forward(self) -> Tensor:
        return self.weight


class KernelBias(nn.Module):
    """What a block keeps of its depthwise convolution where layers own the kernels."""

    bias: Tensor | None

    def __init__(self, width: int, has_bias: bool):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width)) if has_bias else None


class RunningNorm(nn.Module):
    """BatchNorm by the statistics of the training (Ioffe and Szegedy, 2015)."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale_D = self.weight * (self.running_var + self.eps).rsqrt()
        shift_D = self.bias - self.running_mean * scale_D
        return torch.addcmul(shift_D, x, scale_D)


class Block(nn.Module):
    """A conformer block (Gulati et al., 2020): every matrix, and neither norms nor routers, which belong to layers."""

    def __init__(self, config: Config):
        super().__init__()
        places = expert_places(config)
        self.feedforward1 = _feed_forward(config, "first" in places)
        if config["positions"] == "relative":
            self.attention = RelativeSelfAttention(config["width"], config["heads"])
        else:
            self.attention = SelfAttention(config["width"], config["heads"], config["positions"] == "rotary")
        self.convolution = Convolution(config)
        self.feedforward2 = _feed_forward(config, "second" in places)

    def forward(
        self,
        x_BSD: Tensor,
        parameters: dict[str, nn.Module],
        layer: int,
        valid_BS: Tensor,
        mask_BTS: Tensor,
        context: tuple[Tensor, Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Frames to frames. `context`: keys and values before them, and the inputs before them of the convolution."""
        past = None
        inputs_BCD = None
        if context is not None:
            past = context[:2]
            inputs_BCD = context[2]

        normed_BSD = parameters["feedforward1_norm"](x_BSD)
        router = parameters.get("feedforward1_router")
        x_BSD = x_BSD + 0.5 * _apply(self.feedforward1, router, normed_BSD, layer, valid_BS)

        normed_BSD = parameters["attention_norm"](x_BSD)
        added_BSD, key, value = self.attention(normed_BSD, mask_BTS, past)
        x_BSD = x_BSD + added_BSD

        normed_BSD = parameters["convolution_norm"](x_BSD)
        inner_norm = parameters["convolution_inner_norm"]
        kernel = parameters.get("kernel")
        added_BSD, inputs_BCD = self.convolution(normed_BSD, inner_norm, valid_BS, inputs_BCD, kernel)
        x_BSD = x_BSD + added_BSD

        normed_BSD = parameters["feedforward2_norm"](x_BSD)
        router = parameters.get("router")
        x_BSD = x_BSD + 0.5 * _apply(self.feedforward2, router, normed_BSD, layer, valid_BS)
        return parameters["final_norm"](x_BSD), (key, value, inputs_BCD)


def _feed_forward(config: Config, has_experts: bool) -> nn.Module:
    width = config["width"]
    hidden = config["feedforward_width"]
    if not has_experts:
        return FeedForward(width, hidden)
    mixture = MixtureOfExperts(config["experts"]["count"], width, hidden)
    if config["experts"]["residual"]:
        return ResidualMixture(mixture, width, hidden)
    return mixture


def _apply(
    feedforward: nn.Module,
    router: nn.Module | None,
    x_BSD: Tensor,
    layer: int,
    valid_BS: Tensor,
) -> Tensor:
    """A feed-forward layer, or the experts that the router chooses for each valid frame."""
    if router is None:
        return feedforward(x_BSD)
    x_ND = x_BSD.flatten(0, 1)
    weights_NE = router(x_ND, layer)
    # No expert multiplies padding.
    weights_NE = weights_NE * valid_BS.flatten()[:, None]
    return feedforward(x_ND, weights_NE).view_as(x_BSD)


class FeedForward(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(functional.silu(self.expand(x)))


class Router(nn.Module):
    """The weight of each expert for each frame, 0 for those that are not chosen."""

    bias: Tensor

    def __init__(self, experts: Config, width: int, num_layers: int):
        super().__init__()
        self.per_frame = experts["router"]["per_frame"]
        num_experts = experts["count"]
        self.embedding = None
        if num_layers:
            self.embedding = nn.Parameter(torch.zeros(num_layers, LAYER_EMBEDDING_WIDTH))
            width += LAYER_EMBEDDING_WIDTH
        self.weight = nn.Parameter(torch.zeros(num_experts, width))
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, x_ND: Tensor, layer: int) -> Tensor:
        if self.embedding is not None:
            embedding_ND = self.embedding[layer].expand(x_ND.shape[0], -1)
            x_ND = torch.cat((x_ND, embedding_ND), dim=-1)
        probabilities_NE = functional.linear(x_ND, self.weight).softmax(dim=-1)
        # The bias balances the loads: it decides the choice and not the weight (Wang et al., 2024).
        chosen_NK = (probabilities_NE + self.bias).topk(self.per_frame, dim=-1).indices
        is_chosen_NE = torch.zeros_like(probabilities_NE).scatter(1, chosen_NK, 1.0)
        weights_NE = probabilities_NE * is_chosen_NE
        # The weight of a single choice is its probability.
        if self.per_frame > 1:
            weights_NE = weights_NE / weights_NE.sum(dim=-1, keepdim=True)
        return weights_NE


class ExpertStack(nn.Module):
    """Feed-forward layers as stacks: w1 [E, F, D], w2 [E, D, F], w3 [E, 1, F + D] (both biases)."""

    def __init__(self, num_experts: int, width: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.w1 = nn.Parameter(torch.zeros(num_experts, hidden, width))
        self.w2 = nn.Parameter(torch.zeros(num_experts, width, hidden))
        self.w3 = nn.Parameter(torch.zeros(num_experts, 1, hidden + width))

    def __len__(self) -> int:
        return self.w1.shape[0]

    def run_expert(self, expert: int, x_RD: Tensor) -> Tensor:
        """One expert's output for its frames."""
        biases = self.w3[expert, 0]
        hidden_RF = functional.linear(x_RD, self.w1[expert], biases[: self.hidden])
        return functional.linear(functional.silu(hidden_RF), self.w2[expert], biases[self.hidden :])


class SeparateExperts(nn.ModuleList):
    """The experts of a stack as layers with tensors of their own, which stay whole and constant in an ONNX graph."""

    def __init__(self, stack: ExpertStack):
        super().__init__()
        num_experts, hidden, width = stack.w1.shape
        biases_EH = stack.w3.detach()[:, 0]
        for expert in range(num_experts):
            layer = FeedForward(width, hidden)
            with torch.no_grad():
                layer.expand.weight.copy_(stack.w1[expert])
                layer.expand.bias.copy_(biases_EH[expert, :hidden])
                layer.contract.weight.copy_(stack.w2[expert])
                layer.contract.bias.copy_(biases_EH[expert, hidden:])
            self.append(layer)

    def run_expert(self, expert: int, x_RD: Tensor) -> Tensor:
        """One expert's output for its frames."""
        return self[expert](x_RD)


class MixtureOfExperts(nn.Module):
    """Each expert on the frames that chose it, and on no others."""

    def __init__(self, num_experts: int, width: int, hidden: int):
        super().__init__()
        self.experts: ExpertStack | SeparateExperts = ExpertStack(num_experts, width, hidden)

    def forward(self, x_ND: Tensor, weights_NE: Tensor) -> Tensor:
        output_ND = torch.zeros_like(x_ND)
        for expert in range(len(self.experts)):
            weight_N = weights_NE[:, expert]
            rows_R = weight_N.nonzero().squeeze(1)
            weighted_RD = self.experts.run_expert(expert, x_ND[rows_R]) * weight_N[rows_R, None]
            output_ND = output_ND.index_add(0, rows_R, weighted_RD)
        return output_ND


class ResidualMixture(nn.Module):
    """Experts beside a dense layer, mixed per frame (PR-MoE, Rajbhandari et al., 2022)."""

    def __init__(self, mixture: MixtureOfExperts, width: int, hidden: int):
        super().__init__()
        self.mixture = mixture
        self.dense = FeedForward(width, hidden)
        self.coefficients = nn.Linear(width, 2)

    def forward(self, x_ND: Tensor, weights_NE: Tensor) -> Tensor:
        shares_N2 = self.coefficients(x_ND).softmax(dim=-1)
        experts_ND = self.mixture(x_ND, weights_NE)
        return shares_N2[:, :1] * experts_ND + shares_N2[:, 1:] * self.dense(x_ND)


class SelfAttention(nn.Module):
    """Self-attention, with rotary positions (Su et al., 2021) or none."""

    def __init__(self, width: int, heads: int, rotary: bool):
        super().__init__()
        self.heads = heads
        self.rotary = rotary
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x_BTD: Tensor,
        mask_BTS: Tensor | None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frames to frames, and the last keys and values [B, H, C, K], as many as `past` has, all without it.

        Without a mask attention is causal.
        """
        batch, num_frames, width = x_BTD.shape
        packed = self.query_key_value(x_BTD).view(batch, num_frames, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        next_key = key
        next_value = value
        if past is not None:
            key = torch.cat((past[0], key), dim=2)
            value = torch.cat((past[1], value), dim=2)
            # The newest, counted from the front: there may be room for none.
            next_key = key[:, :, num_frames:]
            next_value = value[:, :, num_frames:]
        mixed_BHTK = self._mix(query, key, value, mask_BTS)
        mixed_BTD = mixed_BHTK.transpose(1, 2).flatten(2)
        return self.output(mixed_BTD), next_key, next_value

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask_BTS: Tensor | None) -> Tensor:
        if self.rotary:
            num_keys = key.shape[2]
            cos_SJ, sin_SJ = rotary_angles(num_keys, key)
            # Queries are the last of the frames that are attended to.
            first = num_keys - query.shape[2]
            query = rotate(query, cos_SJ[first:], sin_SJ[first:])
            key = rotate(key, cos_SJ, sin_SJ)
        return functional.scaled_dot_product_attention(query, key, value, mask_BTS, is_causal=mask_BTS is None)


class RelativeSelfAttention(SelfAttention):
    """Self-attention whose scores know the offset between two frames (Dai et al., Transformer-XL, 2019)."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, rotary=False)
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(width))
        self.position_bias = nn.Parameter(torch.zeros(width))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask_BTS: Tensor | None) -> Tensor:
        assert mask_BTS is not None
        batch, heads, num_frames, head_width = query.shape
        num_keys = key.shape[2]
        num_offsets = num_keys + num_frames - 1
        # Offsets from num_keys - 1 down to 1 - num_frames.
        offsets_P = num_keys - 1 - torch.arange(num_offsets, device=query.device)
        angles_PJ = offsets_P[:, None] * _inverse_frequency(heads * head_width, query)
        encoded_PD = torch.stack((angles_PJ.sin(), angles_PJ.cos()), dim=-1).flatten(1)
        position_HKP = self.position(encoded_PD).view(num_offsets, heads, head_width).permute(1, 2, 0)

        content_query = query + self.content_bias.view(heads, 1, head_width)
        position_query = query + self.position_bias.view(heads, 1, head_width)
        scores_BHTP = position_query @ position_HKP
        # Row t, key s reads column T - 1 - t + s.
        frames_T = torch.arange(num_frames, device=query.device)
        keys_S = torch.arange(num_keys, device=query.device)
        columns_TS = num_frames - 1 - frames_T[:, None] + keys_S
        columns_BHTS = columns_TS.expand(batch, heads, num_frames, num_keys)
        scores_BHTS = scores_BHTP.gather(3, columns_BHTS) / math.sqrt(head_width)
        scores_BHTS = scores_BHTS.masked_fill(~mask_BTS, -math.inf)
        return functional.scaled_dot_product_attention(content_query, key, value, scores_BHTS)


class Convolution(nn.Module):
    """The convolution module of a conformer block. The norm in it is handed in: it belongs to the layer."""

    def __init__(self, config: Config):
        super().__init__()
        width = config["width"]
        kernel_size = config["kernel_size"]
        self.left_frames = kernel_size // 2
        self.right_frames = kernel_size // 2
        if config["causal_convolution"]:
            self.left_frames = kernel_size - 1
            self.right_frames = 0
        self.gated = nn.Linear(width, 2 * width)
        has_bias = config["convolution_norm"] != "batch"
        if layers_own_kernels(config):
            self.depthwise = KernelBias(width, has_bias)
        else:
            self.depthwise = nn.Conv2d(width, width, (1, kernel_size), groups=width, bias=has_bias)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x_BSD: Tensor,
        norm: nn.Module,
        valid_BS: Tensor,
        inputs_BCD: Tensor | None,
        kernel: nn.Module | None,
    ) -> tuple[Tensor, Tensor]:
        """Frames to frames, and the last inputs for the next call; `inputs_BCD` are those before the frames, and
        `kernel` is that of the layer, if it owns one."""
        x_BSD = functional.glu(self.gated(x_BSD), dim=-1)
        # Padding counts as silence for its neighbours.
        x_BSD = x_BSD * valid_BS[:, :, None]
        num_frames = x_BSD.shape[1]
        if inputs_BCD is None:
            x_BSD = functional.pad(x_BSD, (0, 0, self.left_frames, self.right_frames))
        else:
            x_BSD = torch.cat((inputs_BCD, x_BSD), dim=1)
        next_inputs_BCD = x_BSD[:, num_frames:]
        image_BD1S = x_BSD.unsqueeze(1).permute(0, 3, 1, 2)
        if kernel is None:
            image_BD1S = self.depthwise(image_BD1S)
        else:
            weight = kernel()
            image_BD1S = functional.conv2d(image_BD1S, weight, self.depthwise.bias, groups=len(weight))
        x_BSD = image_BD1S.permute(0, 2, 3, 1).squeeze(1)
        return self.output(functional.silu(norm(x_BSD))), next_inputs_BCD


class Subsampling(nn.Module):
    """Strided convolutions over time and frequency, then a projection to the model width."""

    def __init__(self, config: Config, mel_bins: int, width: int):
        super().__init__()
        channels = config["channels"]
        self.strides = STRIDES[config["factor"]]
        self.first = _strided(1, channels, self.strides[0])
        self.further = nn.ModuleList()
        for stride in self.strides[1:]:
            if config["convolutions"] == "full":
                convolution = _strided(channels, channels, stride)
            else:
                depthwise = _strided(channels, channels, stride, groups=channels)
                convolution = nn.Sequential(depthwise, nn.Conv2d(channels, channels, kernel_size=1))
            self.further.append(convolution)
        remaining_bins = -(-mel_bins // config["factor"])
        self.projection = nn.Linear(channels * remaining_bins, width)

    def forward(
        self,
        features_BTF: Tensor,
        lengths_B: Tensor,
        skipped_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Features to frames and lengths; the first `skipped_B` and those from `lengths_B` on are not there."""
        lengths_B = (lengths_B + self.strides[0] - 1) // self.strides[0]
        skipped_B = skipped_B // self.strides[0]
        x_BCSF = torch.relu(self.first(features_BTF.unsqueeze(1)))
        for convolution, stride in zip(self.further, self.strides[1:], strict=True):
            # Biases made frames that are not there other than zero.
            num_frames = x_BCSF.shape[2]
            valid_BS = valid_mask(lengths_B, num_frames) & ~valid_mask(skipped_B, num_frames)
            x_BCSF = x_BCSF * valid_BS[:, None, :, None]
            lengths_B = (lengths_B + stride - 1) // stride
            skipped_B = skipped_B // stride
            x_BCSF = torch.relu(convolution(x_BCSF))
        return self.projection(x_BCSF.transpose(1, 2).flatten(2)), lengths_B


def _strided(inputs: int, outputs: int, stride: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 2 * stride - 1, stride, padding=stride - 1, groups=groups)


class Decoder(nn.Module):
    """A Transformer decoder over the encoder's frames."""

    def __init__(self, config: Config, num_layers: int, width: int, vocabulary_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            self.layers.append(DecoderLayer(config, width))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary_size)

    def forward(self, frames_BSD: Tensor, lengths_B: Tensor, tokens_BU: Tensor) -> Tensor:
        """Logits [B, U, V] of the token after each of `tokens_BU`, of which the first is `START`."""
        x_BUD = self.embedding(tokens_BU) * self.embedding.embedding_dim**0.5
        mask_B11S = valid_key_mask(valid_mask(lengths_B, frames_BSD.shape[1]))
        for layer in self.layers:
            x_BUD = layer(x_BUD, frames_BSD, mask_B11S)
        return self.output(self.norm(x_BUD))


class DecoderLayer(nn.Module):
    """Causal attention, attention to the encoder, feed-forward."""

    def __init__(self, config: Config, width: int):
        super().__init__()
        heads = config["heads"]
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, rotary=True)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = CrossAttention(width, heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, config["feedforward_width"])

    def forward(self, x_BUD: Tensor, frames_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
        added_BUD, _, _ = self.attention(self.attention_norm(x_BUD), None)
        x_BUD = x_BUD + added_BUD
        x_BUD = x_BUD + self.cross(self.cross_norm(x_BUD), frames_BSD, mask_B11S)
        return x_BUD + self.feedforward(self.feedforward_norm(x_BUD))


class CrossAttention(nn.Module):
    """Tokens attend to encoder frames."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BUD: Tensor, frames_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
        batch, num_tokens, width = x_BUD.shape
        num_frames = frames_BSD.shape[1]
        head_width = width // self.heads
        query = self.query(x_BUD).view(batch, num_tokens, self.heads, head_width).transpose(1, 2)
        key_value = self.key_value(frames_BSD).view(batch, num_frames, 2, self.heads, head_width)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, mask_B11S)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Transducer(nn.Module):
    """A stateless prediction network (Ghodsi et al., 2020) and a joint network over the encoder's frames."""

    def __init__(self, config: Config, width: int, vocabulary_size: int):
        super().__init__()
        self.frames = nn.Linear(width, config["width"])
        self.prediction = PredictionNetwork(config["width"], config["context"], vocabulary_size)
        self.joint = JointNetwork(config["width"], vocabulary_size)

    def forward(self, frames_BSD: Tensor, tokens_BU: Tensor) -> Tensor:
        """Logits [B, S, U, V] of every frame after every token; before the first token stand `context` blanks."""
        frames_BSW = self.frames(frames_BSD)
        predictions_BUW = self.prediction(tokens_BU)
        return self.joint(frames_BSW[:, :, None] + predictions_BUW[:, None])


class PredictionNetwork(nn.Module):
    """Embeds tokens and mixes each with those before it, channel by channel."""

    def __init__(self, width: int, context: int, vocabulary_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.mixing = nn.Conv1d(width, width, context, groups=width)

    def forward(self, tokens_BU: Tensor) -> Tensor:
        embedded_BWU = self.embedding(tokens_BU).transpose(1, 2)
        return torch.relu(self.mixing(embedded_BWU)).transpose(1, 2)


class JointNetwork(nn.Module):
    """Token logits of a frame and a prediction."""

    def __init__(self, width: int, vocabulary_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocabulary_size, width))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, joint: Tensor) -> Tensor:
        return functional.linear(joint.tanh(), self.weight, self.bias)


def valid_mask(lengths_B: Tensor, num_frames: int) -> Tensor:
    """[B, num_frames] bool, True where a frame is valid."""
    frames_S = torch.arange(num_frames, device=lengths_B.device)
    return frames_S < lengths_B[:, None]


def valid_key_mask(valid_BS: Tensor) -> Tensor:
    """[B, 1, 1, S], True at keys that may be attended to; of an utterance without any the first."""
    first_S = torch.arange(valid_BS.shape[1], device=valid_BS.device) == 0
    return (valid_BS | first_S)[:, None, None, :]


def _chunk_mask(valid_BS: Tensor, chunk_frames: int, left_chunks: int | None) -> Tensor:
    """[B, 1, S, S], True where a frame (row) attends to a frame (column): to itself at least."""
    frames_S = torch.arange(valid_BS.shape[1], device=valid_BS.device)
    chunk_S = frames_S // chunk_frames
    chunks_behind_SS = chunk_S[:, None] - chunk_S
    mask_SS = chunks_behind_SS >= 0
    if left_chunks is not None:
        mask_SS = mask_SS & (chunks_behind_SS <= left_chunks)
    itself_SS = frames_S[:, None] == frames_S
    return (mask_SS & valid_BS[:, None, None, :]) | itself_SS


def rotary_angles(num_frames: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [num_frames, K / 2], of heads as wide as those of `like`."""
    positions_S = torch.arange(num_frames, device=like.device)
    angles_SJ = positions_S[:, None] * _inverse_frequency(like.shape[-1], like)
    return angles_SJ.cos().to(like.dtype), angles_SJ.sin().to(like.dtype)


def _inverse_frequency(width: int, like: Tensor) -> Tensor:
    exponents = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    return ROTARY_BASE ** (-exponents / width)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (k, k + K / 2) of a query or key by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def greedy_tokens(logits_BSV: Tensor, lengths_B: Tensor) -> list[list[int]]:
    """The best token of each valid frame, repeats merged and blanks removed."""
    best_BS = logits_BSV.argmax(-1)
    texts = []
    for best_S, length in zip(best_BS.tolist(), lengths_B.tolist(), strict=True):
        tokens = []
        last = BLANK
        for token in best_S[:length]:
            if token not in (BLANK, last):
                tokens.append(token)
            last = token
        texts.append(tokens)
    return texts
