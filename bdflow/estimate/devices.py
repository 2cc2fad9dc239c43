"""GPUs by name: what their maker says of them, and how to find which one is meant."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from bdflow.errors import InputError

GIB = 2**30
REACHED = 0.8  # of the data sheet, by large products of matrices: 790 of 989 TFLOP/s on an H200


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, by its maker's data sheet.

    Attributes
    ----------
    name : as people say it.
    half : FLOP/s of dense products in float16 and bfloat16, summed in float32. single : in float32, without TF32.
    memory : bytes; of the smallest that is sold under this name.
    """

    name: str
    half: float
    single: float
    memory: int

    def products(self, dtype: str) -> float:
        """FLOP/s that large products of matrices of a dtype are thought to reach."""
        return REACHED * (self.single if dtype == "float32" else self.half)


GPUS = {
    "a100": Gpu("A100", 312e12, 19.5e12, 40 * GIB),
    "3090": Gpu("RTX 3090", 71e12, 35.6e12, 24 * GIB),
    "h100": Gpu("H100", 989e12, 67e12, 80 * GIB),
    "h200": Gpu("H200", 989e12, 67e12, 141 * GIB),
}
USUAL = "a100"
"""What is planned with where nobody says which GPU."""


def known(text: str) -> str | None:
    """The GPU of `GPUS` that a driver's name means, such as `NVIDIA A100-SXM4-80GB`."""
    words = text.lower().replace("-", " ").split()
    return next((name for name in GPUS if name in words), None)


def chosen(text: str) -> str:
    """The GPU that a user names. Raises InputError for one of which nothing is known."""
    name = known(text)
    if name is None:
        raise InputError(
            "--gpu",
            found=repr(text),
            expected=f"one of {', '.join(GPUS)}",
            action="name one of these, or measure yours with the benchmark diffusion, and hand the file that it writes "
            "with --json in with --figures",
            remedy="bench:diffusion --full --device cuda",
        )
    return name


def gpu_here() -> str | None:
    """The driver's name of the first GPU of this machine; None without one, or where nothing says which."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, encoding="utf-8", errors="replace")
    names = done.stdout.splitlines() if done.returncode == 0 else []
    return names[0].strip() if names else None
