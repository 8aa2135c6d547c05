"""A mixture and DeepSpeed's own with the same weights and frames: `stock_mixture.py OUT`, as one process.

What differs by design is switched off there: dropping, the random order of dropping, the noise on the second choice.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE

from launcher.training import parallel
from model.layers.feedforward import FeedForward
from model.moe.experts import MixtureOfExperts, ResidualMixture
from model.moe.router import Router, RouterConfig

NUM_EXPERTS, WIDTH, HIDDEN, NUM_FRAMES = 4, 16, 24, 60


def copy_into(stock: MoE, router: Router, mixture: MixtureOfExperts) -> None:
    """Give DeepSpeed's layer the weights of ours."""
    stock.deepspeed_moe.gate.wg.weight.copy_(router.weight)
    stacks = mixture.experts
    for expert, module in enumerate(stock.deepspeed_moe.experts.deepspeed_experts):
        bias1, bias2 = stacks.w3[expert, 0].split((HIDDEN, WIDTH))
        values = {"expand.weight": stacks.w1, "contract.weight": stacks.w2}
        state = {name: stack[expert] for name, stack in values.items()}
        module.load_state_dict({**state, "expand.bias": bias1, "contract.bias": bias2})


def compare(per_frame: int, residual: bool) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Ours and theirs: outputs, choices per expert, balance loss, and gradients of frames, router and experts."""
    torch.manual_seed(per_frame)
    router = Router(WIDTH, NUM_EXPERTS, RouterConfig(per_frame=per_frame))
    mixture = MixtureOfExperts(NUM_EXPERTS, WIDTH, HIDDEN)
    torch.nn.init.normal_(mixture.experts.w3)
    ours = ResidualMixture(mixture, WIDTH, HIDDEN) if residual else mixture
    stock = MoE(
        WIDTH,
        FeedForward(WIDTH, HIDDEN),
        NUM_EXPERTS,
        k=per_frame,
        min_capacity=0,
        use_residual=residual,
        drop_tokens=False,
        use_rts=False,
        top2_2nd_expert_sampling=False,
    )
    stock.set_deepspeed_parallelism()
    with torch.no_grad():
        copy_into(stock, router, mixture)
        if isinstance(ours, ResidualMixture):
            stock.mlp.load_state_dict(ours.dense.state_dict())
            stock.coefficient.load_state_dict(ours.coefficients.state_dict())
    frames = torch.randn(NUM_FRAMES, WIDTH)
    x_ours, x_theirs = frames.clone().requires_grad_(), frames.clone().requires_grad_()
    routing = router(x_ours)
    y_ours, (y_theirs, balance, counts) = ours(x_ours, routing), stock(x_theirs)
    balance_ours = routing.balance_loss("first_choice")
    (y_ours.square().sum() + balance_ours).backward()
    (y_theirs.square().sum() + balance).backward()
    experts = stock.deepspeed_moe.experts.deepspeed_experts
    return {
        "output": (y_ours, y_theirs),
        "counts": (routing.counts_E, counts),
        "balance": (balance_ours, balance),
        "frames' gradient": (x_ours.grad, x_theirs.grad),
        "router's gradient": (router.weight.grad, stock.deepspeed_moe.gate.wg.weight.grad),
        "experts' gradient": (mixture.experts.w1.grad, torch.stack([expert.expand.weight.grad for expert in experts])),
    }


if __name__ == "__main__":
    parallel.start_processes(60)
    kinds = [(per_frame, residual) for per_frame in (1, 2) for residual in (False, True)]
    torch.save({kind: compare(*kind) for kind in kinds}, Path(sys.argv[1]) / "compared.pt")
    dist.destroy_process_group()  # gloo's threads may abort a process that ends with them
