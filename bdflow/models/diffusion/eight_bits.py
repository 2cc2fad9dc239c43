"""Linear layers of the UNet's transformers in numbers of 8 bits: an approximate mode.

Weights are rounded to e4m3 (4 bits of exponent, 3 of mantissa) once, with a scale for each output; what comes in is
rounded with a scale for each row, found anew each time. P. Micikevicius et al. (2022), "FP8 formats for deep learning".
Products are added up by the device as it does for this format, and given in bfloat16.
"""

from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from bdflow.errors import InputError

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
STEP = 2.0**-4
"""Largest relative error of a number that is rounded to e4m3, above its smallest normal number: half of 2^-3."""
MULTIPLE = 16  # of both sizes of a matrix, as the devices' kernels want it
CAPABILITY = (8, 9)


class Linear8(nn.Module):
    """A linear layer with rounded weights and, at each call, rounded inputs; see the module.

    Parameters
    ----------
    linear : the exact layer (in and out multiples of 16); it is not changed.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = rounded(linear.weight.detach())
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, values: Tensor) -> Tensor:
        """(..., out) of (..., in), in the dtype of `values`."""
        rows, scale = rounded(values.reshape(-1, self.in_features))
        product: Tensor = torch._scaled_mm(
            rows, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16
        )
        product = product.to(values.dtype)
        if self.bias is not None:
            product = product + self.bias
        return product.view(*values.shape[:-1], self.out_features)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, k) as e4m3, and the float32 scale (n, 1) that each is multiplied with to give its values back. The
    largest of a row is the largest of the format.
    """
    values = rows.float()
    scale = values.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (values / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def replace_linears(unet: nn.Module) -> int:
    """Put a `Linear8` in the place of every linear layer of the transformers' blocks whose sizes are multiples of 16;
    returns how many. Raises InputError where the device has no such products.
    """
    refuse_without(next(unet.parameters()).device)
    found = 0
    for transformer in (module for module in unet.modules() if isinstance(module, Transformer2DModel)):
        of: Any = transformer
        for block in of.transformer_blocks:
            for name, layer in list(block.named_modules()):
                if (
                    isinstance(layer, nn.Linear)
                    and not layer.in_features % MULTIPLE
                    and not layer.out_features % MULTIPLE
                ):
                    parent, _, last = name.rpartition(".")
                    setattr(block.get_submodule(parent), last, Linear8(layer))
                    found += 1
    return found


def refuse_without(device: torch.device) -> None:
    """Raise InputError unless torch multiplies matrices of e4m3, with scales by row, on a device."""
    if device.type == "cuda":
        has = torch.cuda.get_device_capability(device)
        if has < CAPABILITY:
            name = torch.cuda.get_device_name(device)
            raise _refused(f"{name}, a GPU of compute capability {has[0]}.{has[1]}")
    try:
        rows, scale = rounded(torch.ones(MULTIPLE, MULTIPLE, device=device))
        torch._scaled_mm(rows, rows.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise _refused(f"torch {torch.__version__} on {device} ({str(error).splitlines()[0]})") from error


def _refused(found: str) -> InputError:
    return InputError(
        "painters.NAME.linear",
        found=f"fp8 on {found}",
        expected=f"a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or higher (Ada, Hopper and later), or a "
        "CPU, with a torch that multiplies numbers of 8 bits there",
        meaning="Nothing was painted.",
        action="set `linear: exact`, or paint on such a device.",
    )
