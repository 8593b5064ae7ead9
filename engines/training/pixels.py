"""Pixels of a batch -> network input, on the device that trains: what is sent there are bytes."""

import torch
from torch import Tensor

from engines.model.contract import Contract


def normalise(pixels_u8: Tensor, contract: Contract) -> Tensor:
    """Pixels BGR uint8 [..., H, W, 3] -> float32 [..., 3, H, W] on the same device: as `preprocess.normalise`."""
    ordered = pixels_u8.flip(-1) if contract.colour == "RGB" else pixels_u8
    mean, std = (torch.tensor(values, dtype=torch.float32, device=pixels_u8.device)
                 for values in (contract.mean, contract.std))
    return ((ordered.float() * contract.value_scale - mean) / std).movedim(-1, -3).contiguous()
