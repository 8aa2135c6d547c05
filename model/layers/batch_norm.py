"""BatchNorm over the valid frames of a lane, with running statistics that follow whole steps (Ioffe and Szegedy, 2015).

While training, a forward pass normalises by its own valid frames and returns their moments. The running statistics
change only in `update`, which is given the moments of a step, added up over all its lanes. So they depend neither on
how lanes are dealt to processes nor on how often a forward pass is run again for the backward one.

Shapes: D model width, N packed valid frames.
"""

import torch
from torch import Tensor, nn

MOMENTUM = 0.1  # of the running statistics, as in torch.nn.BatchNorm1d


class FrameBatchNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, per channel, in fp32 whatever the precision around it."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Packed valid frames to normalised ones and, in training, the moments [2 D + 1] that `update` takes."""
        num_frames = len(x_ND)
        mean_D = self.running_mean
        variance_D = self.running_var
        moments = None

        with torch.autocast(x_ND.device.type, enabled=False):
            x_ND = x_ND.float()
            # Frozen it is what it is in a finished model, and stays that.
            is_moving = self.training and self.weight.requires_grad
            if is_moving and num_frames:
                # Biased, as torch normalises while training; the running variance is the unbiased one.
                variance_D, mean_D = torch.var_mean(x_ND, dim=0, correction=0)
                moments = _moments(mean_D, variance_D, num_frames)
            elif self.training:
                # Nothing that would move the statistics. No frames have no variance, and their output stays finite.
                num_moments = 2 * len(self.weight) + 1
                moments = torch.zeros(num_moments, dtype=torch.float64, device=x_ND.device)

            # One scale and one shift per channel, so that the frames are passed over once.
            inverse_deviation_D = (variance_D + self.eps).rsqrt()
            scale_D = self.weight * inverse_deviation_D
            shift_D = self.bias - mean_D * scale_D
            return torch.addcmul(shift_D, x_ND, scale_D), moments

    @torch.no_grad()
    def update(self, moments: Tensor) -> None:
        """Move the running statistics towards those of a step, whose lanes' moments were added up.

        The running variance is the unbiased one, as torch's; a step without frames changes nothing.
        """
        sum_D, sum_of_squares_D = moments[:-1].chunk(2)
        count = float(moments[-1])
        if not count:
            return
        mean_D = sum_D / count
        mean_of_squares_D = sum_of_squares_D / count
        variance_D = mean_of_squares_D - mean_D.square()
        # A difference of two sums may round to less than 0.
        variance_D = variance_D.clamp(min=0)
        # Of one frame the unbiased variance is undefined, and the biased one 0.
        correction = count / max(count - 1, 1)
        unbiased_D = variance_D * correction

        # The moments are fp64, the statistics fp32.
        mean_D = mean_D.to(self.running_mean)
        unbiased_D = unbiased_D.to(self.running_var)
        self.running_mean.lerp_(mean_D, MOMENTUM)
        self.running_var.lerp_(unbiased_D, MOMENTUM)


def _moments(
    mean_D: Tensor,
    variance_D: Tensor,
    count: int,
) -> Tensor:
    """Sums, sums of squares and the count as one vector [2 D + 1]; fp64, because their differences are taken."""
    mean_D = mean_D.detach().double()
    variance_D = variance_D.detach().double()
    sum_D = mean_D * count
    mean_of_squares_D = variance_D + mean_D.square()
    sum_of_squares_D = mean_of_squares_D * count
    count_1 = mean_D.new_full((1,), count)
    return torch.cat((sum_D, sum_of_squares_D, count_1))
