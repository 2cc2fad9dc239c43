"""An error of too little memory is told in every type and wording, and no other error is taken for one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from bdflow.device_memory import out_of_memory


class OutOfMemoryError(Exception):
    """As `cupy.cuda.memory.OutOfMemoryError`, which is no RuntimeError."""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nand more"),
        OutOfMemoryError("Out of memory allocating 8,589,934,592 bytes"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_each_way_of_saying_it_is_told(error: Exception) -> None:
    said = out_of_memory(error)
    assert said
    assert "\n" not in said


def test_it_is_told_through_the_error_that_ends_a_recording() -> None:
    """What leaves `torch.cuda.graph` is the error of ending a capture that has failed already."""

    @contextmanager
    def capture() -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError, match="previous error during capture") as caught, capture():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert out_of_memory(caught.value) == "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        ValueError("out of memory"),
        KeyError("memory"),
    ],
)
def test_other_errors_are_not(error: Exception) -> None:
    assert out_of_memory(error) is None
