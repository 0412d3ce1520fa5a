"""Windows and lookup tables on tensors."""

from __future__ import annotations

import torch

from medimg.core.window import LookupTable, Voi, Window

__all__ = ["apply_voi"]


def apply_voi(values: torch.Tensor, voi: Voi) -> torch.Tensor:
    """
    Map modality values to 0..1, as :meth:`medimg.Window.apply` does in float64.

    Parameters
    ----------
    values : torch.Tensor
        Any shape, float32 or integers.
    voi : Window or LookupTable
        What to apply.

    Returns
    -------
    torch.Tensor
        float32, the same shape and device.
    """
    if isinstance(voi, LookupTable):
        return _looked_up(values, voi)
    x = values.to(torch.float32)
    if voi.is_step:
        return (x > voi.threshold).to(torch.float32)
    if voi.function == "SIGMOID":
        return torch.sigmoid((x - voi.center) * (4.0 / voi.width))
    return _ramp(x, voi)


def _ramp(x: torch.Tensor, window: Window) -> torch.Tensor:
    slope, _ = window.ramp()
    # subtracting the lower end first keeps float32 exact where a narrow window lies far from 0
    low = window.center - window.width / 2
    if window.function == "LINEAR":
        low = window.center - 0.5 - (window.width - 1) / 2
    return ((x - low) * slope).clamp_(0.0, 1.0)


def _looked_up(values: torch.Tensor, table: LookupTable) -> torch.Tensor:
    entries = torch.from_numpy(table.normalized()).to(values.device, torch.float32)
    whole = torch.floor(values.to(torch.float32)) if values.is_floating_point() else values
    index = (whole.to(torch.int64) - table.first).clamp_(0, entries.numel() - 1)
    return entries[index]
