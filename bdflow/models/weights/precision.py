"""What float32 means on a GPU, settled in one place for every network that is loaded."""

import torch

TF32 = False
"""Whether float32 is multiplied with mantissas of 10 bits, as torch's convolutions on CUDA are by default. Then pixels
would move by several levels, as in half precision, and `networks.dtype: float32` would not say what is computed.
"""


def settle() -> None:
    """Products of matrices and convolutions in float32 keep all bits of float32. Does the same however often it is
    called, and touches no device.
    """
    torch.backends.cuda.matmul.allow_tf32 = TF32
    torch.backends.cudnn.allow_tf32 = TF32
