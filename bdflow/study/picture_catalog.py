"""Stores of what is painted: how its networks compute attention, guesses, reconstructions, and the best of several."""

from __future__ import annotations

from bdflow.stores.spec import ArraySpec, StoreSpec
from bdflow.study.catalog import IMAGE_DIMS, PICTURE, STIMULUS_ID
from bdflow.study.coordinates import PIXELS


def attention() -> StoreSpec:
    doc = (
        "time of all attention of a batch, in one evaluation of the UNet, or in encoding and decoding; not a number if "
    )
    return StoreSpec(
        "Attention: how long each of torch's kernels takes for a painter; the fastest of each part is used",
        (
            ArraySpec("milliseconds", ("part", "kernel"), "f4", doc + "the kernel refuses it, and on the CPU", "ms"),
            ArraySpec("part", ("part",), "str", "unet or autoencoder", role="coordinate"),
            ArraySpec("kernel", ("kernel",), "str", "name of the kernel in settings", role="coordinate"),
        ),
        {},
    )


def guesses(per_partition: int) -> StoreSpec:
    chunks = {"stimulus_id": per_partition}
    return StoreSpec(
        "Guesses: the pictures that painting starts from",
        (ArraySpec("image", IMAGE_DIMS, "u1", PICTURE, chunks=chunks, codec="zstd"), STIMULUS_ID, *PIXELS),
        {"stimulus_id": per_partition},
    )


def reconstructions(per_partition: int) -> StoreSpec:
    dims, chunks = ("stimulus_id", "picture", *IMAGE_DIMS[1:]), {"stimulus_id": 1, "picture": 1}
    return StoreSpec(
        "Reconstructions: the pictures that a painter made, one or several of each stimulus",
        (ArraySpec("image", dims, "u1", PICTURE, chunks=chunks, codec="zstd"), STIMULUS_ID, *PIXELS),
        {"stimulus_id": per_partition},
    )


def selected(per_partition: int) -> StoreSpec:
    """Which picture of an item agrees most with the latent that was predicted."""
    chunks = {"variant": 1, "stimulus_id": per_partition}
    return StoreSpec(
        "Selected: which of several pictures of a stimulus agrees most with its predicted latent",
        (
            ArraySpec(
                "agreement",
                ("variant", "stimulus_id", "picture"),
                "f4",
                "Pearson correlation of the picture's latent with the predicted one; not a number where it is constant",
                chunks=chunks,
            ),
            ArraySpec("best", ("variant", "stimulus_id"), "i2", "number of the picture, from 0", chunks=chunks),
            ArraySpec("variant", ("variant",), "str", "which parts of the method are on", role="coordinate"),
            STIMULUS_ID,
        ),
        {"variant": 1, "stimulus_id": per_partition},
    )
