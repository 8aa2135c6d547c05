"""A teacher's frames at the times of the student's.

Frame s of either begins s times its frame length after the first one. Neither padding nor the length of an utterance
changes that.

Shapes: B batch, S frames of the teacher, R frames of the student, D width.
"""

import torch
from torch import Tensor


def interpolate(
    states_BSD: Tensor,
    lengths_B: Tensor,
    ratio: float,
    num_frames: int,
) -> Tensor:
    """States [B, R, D] at `num_frames` frames of the student, each `ratio` frames of the teacher long: linear between
    the two nearest valid frames, in fp32, and the last valid one beyond it.

    The same tensor where the frames of both are the same.
    """
    if ratio == 1 and num_frames == states_BSD.shape[1]:
        return states_BSD
    position_BR, last_B1 = _positions(lengths_B, ratio, num_frames)
    low_BR = position_BR.long()
    # Frames beyond the last valid one are never read: what they hold is not defined.
    high_BR = torch.minimum(low_BR + 1, last_B1)
    fraction_BR1 = (position_BR - low_BR)[..., None].float()
    row_B = torch.arange(len(lengths_B), device=states_BSD.device)
    row_B1 = row_B[:, None]
    low_BRD = states_BSD[row_B1, low_BR].float()
    high_BRD = states_BSD[row_B1, high_BR].float()
    return torch.lerp(low_BRD, high_BRD, fraction_BR1)


def gather_nearest(
    units_BS: Tensor,
    lengths_B: Tensor,
    ratio: float,
    num_frames: int,
) -> Tensor:
    """Units [B, R] of the teacher's valid frames that are nearest to the student's frames."""
    position_BR, _ = _positions(lengths_B, ratio, num_frames)
    nearest_BR = (position_BR + 0.5).long()
    return units_BS.gather(1, nearest_BR)


def _positions(lengths_B: Tensor, ratio: float, num_frames: int) -> tuple[Tensor, Tensor]:
    """Where the student's frames lie, counted in the teacher's, and the teacher's last valid frame."""
    # An utterance without frames would have a last frame of -1.
    last_B = (lengths_B - 1).clamp(min=0)
    last_B1 = last_B[:, None]
    # In fp64, in which a frame times a ratio such as 2 / 3 keeps its fraction in recordings of any length.
    frame_R = torch.arange(num_frames, device=lengths_B.device, dtype=torch.float64)
    position_R = frame_R * ratio
    position_BR = torch.minimum(position_R, last_B1.double())
    return position_BR, last_B1
