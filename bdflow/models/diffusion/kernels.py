"""Names of torch's kernels of attention, which is the fastest of them, and code that runs with one of them. Light to
import.
"""

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping

BACKENDS = ("flash", "cudnn", "efficient", "math")
"""As settings call them."""
TORCH = "fused"
"""Torch chooses a kernel for each call."""
PARTS = ("unet", "autoencoder")
"""Parts of a painter that have a kernel of their own."""
_turn = threading.RLock()
Milliseconds = Mapping[str, Mapping[str, float]]
"""By part and kernel: what all calls of a part take together; not a number where the kernel refuses one."""


def chosen(times: Milliseconds) -> dict[str, str]:
    """The fastest kernel of each part; `TORCH` where none was measured."""
    found = {}
    for part, by_name in times.items():
        fit = {name: value for name, value in by_name.items() if not math.isnan(value)}
        found[part] = min(fit, key=fit.__getitem__) if fit else TORCH
    return found


def said(times: Milliseconds) -> str:
    """What was measured and chosen, in one line."""
    parts = []
    for part, name in chosen(times).items():
        if name == TORCH:
            parts.append(f"{part} as torch chooses (nothing is measured on the CPU)")
            continue
        others = sorted((value, of) for of, value in times[part].items() if of != name and not math.isnan(value))
        refused = [of for of, value in times[part].items() if math.isnan(value)]
        slower = "".join(f"; {of} {value:.2f} ms" for value, of in others)
        parts.append(
            f"{part} {name}, {times[part][name]:.2f} ms{slower}" + (f"; refused: {', '.join(refused)}" * bool(refused))
        )
    return "attention: " + " | ".join(parts)


@contextlib.contextmanager
def attending(name: str) -> Iterator[None]:
    """Inside, torch's attention is computed by the kernel of that name alone; by any for another name.

    Torch keeps the choice for the whole process. So threads take turns: what is inside in one thread waits until it has
    ended in another, whichever kernels these two ask for. On a GPU only the launching of kernels waits.
    """
    with _turn:
        if name not in BACKENDS:
            yield
            return
        from torch.nn.attention import SDPBackend, sdpa_kernel

        of = {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "math": SDPBackend.MATH,
        }
        with sdpa_kernel(of[name]):
            yield
