"""Items through a network in batches that fit into memory: a size that proves too large is halved, and remembered."""

import gc
import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bdflow.device_memory import out_of_memory
from bdflow.errors import InputError

log = logging.getLogger(__name__)


def pinned(values: Tensor, device: str) -> Tensor:
    """Values on the CPU, for a CUDA device where it can fetch them beside its work."""
    return values.pin_memory() if device.startswith("cuda") else values


def moved(values: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Values on a device in another type: they go as they are, beside its work, and are converted there."""
    return values.to(device, non_blocking=True).to(dtype)


class Batches:
    """How one network's items are cut into batches.

    Parameters
    ----------
    what : what the network does, for messages ("denoising").
    size : items a batch; None takes all at once.
    fixed : fill up the last batch to `size` with copies of its last item, whose results are dropped. Then every call
        has one shape, which compiled networks need, and an item's result does not depend on how many others there are.
    buckets : fill up every batch to the next power of two, at most `size`: where batches come in any number, few shapes
        are compiled or recorded. Not with `fixed`.
    halve : halve a size that proves too large; else that is an error. In half precision and fp8 results depend on it.

    Attributes
    ----------
    size : the size now: the one asked for, or the smaller one that fits; a warning is logged when it was halved.
    """

    def __init__(
        self, what: str, size: int | None = None, *, fixed: bool = False, buckets: bool = False, halve: bool = True
    ) -> None:
        self.what, self.size, self.fixed, self.halve = what, size, fixed and size is not None, halve
        self.buckets = buckets and not self.fixed

    def run(self, work: Callable[..., Tensor], *items: np.ndarray | Tensor | None) -> Tensor:
        """`work` over all items, results (n, ...) in their order.

        `items` : arrays or tensors (n, ...) cut alike, handed on as tensors, or None. n is at least 1.
        Raises InputError when a single item is too much for the device's memory, or a batch that must not be halved.
        """
        # One memory order: convolutions round otherwise in another, and joining small batches may change it.
        given = [None if values is None else torch.as_tensor(values).contiguous() for values in items]
        n = next(len(values) for values in given if values is not None)
        done: list[Tensor] = []
        start = 0
        while start < n:
            size = (bucket(n, 2 * n) if self.buckets else n) if self.size is None else self.size
            here = [None if values is None else values[start : start + size] for values in given]
            count = min(size, n - start)
            ran = size if self.fixed else bucket(count, size) if self.buckets else count
            if count < ran:
                here = [None if values is None else _filled(values, ran) for values in here]
            try:
                done.append(work(*here)[:count])
            except Exception as error:
                said = out_of_memory(error)
                if said is None:
                    raise
                refused = said
            else:
                start += count
                continue
            del here
            self._halve(ran, refused)
        return torch.cat(done)

    def _halve(self, ran: int, refused: str) -> None:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if ran == 1:
            raise InputError(
                f"memory of the device, {self.what}",
                found=f"too little for a single image ({refused})",
                expected="space for the network and one image",
                action="use a device with more memory, fewer workers on it (`execution`, `gpus`), or a smaller "
                "`networks.dtype`.",
            )
        if not self.halve:
            raise InputError(
                f"memory of the device, {self.what}",
                found=f"too little for a batch of {ran}, which must not be halved ({refused})",
                expected="space for the network and the batch",
                meaning="In half precision, and with `linear: fp8`, results depend on the size of a batch, and one "
                "store never holds both. In float32 the batch would have been halved.",
                action=f"set a batch size of at most {ran // 2} and run again; what this step has filled so far has to "
                "be replaced, if it has filled any.",
                remedy="remake",
            )
        self.size = ran // 2
        log.warning(
            "%s: a batch of %d did not fit into the device's memory; from now on %d. "
            "A smaller batch size in the configuration saves the attempt.",
            self.what,
            ran,
            self.size,
        )


def bucket(count: int, most: int) -> int:
    """The next power of two, at most `most`."""
    return min(1 << (count - 1).bit_length(), max(count, most))


def _filled(values: Tensor, size: int) -> Tensor:
    return torch.cat([values, values[-1:].expand(size - len(values), *values.shape[1:])])
