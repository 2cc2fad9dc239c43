"""The stores of encoding models; all other stores are in `catalog`."""

from __future__ import annotations

from collections.abc import Mapping

from bdflow.stores.spec import ArraySpec, StoreSpec

ENCODING: Mapping[str, str] = {
    "r2": "coefficient of determination on the test set",
    "pearson_r": "Pearson correlation with the responses to the test set",
    "p": "one-sided p value of pearson_r, of one voxel alone; false discoveries are controlled where it is shown",
    "held_out_r2": "leave-one-out R^2 of training stimuli with the chosen penalty",
    "alpha": "ridge penalty, of the mean product of z-scored latents",
}


def encoding(voxels: int) -> StoreSpec:
    cut = {"voxel": voxels}
    return StoreSpec(
        "Encoding models: how well the latents of a target space predict each voxel's response",
        tuple(ArraySpec(name, ("voxel",), "f4", doc, chunks=cut) for name, doc in ENCODING.items()),
        cut,
    )


def encoding_set(voxels: int) -> StoreSpec:
    cut = {"voxel": voxels}
    dims = ("band", "voxel")
    return StoreSpec(
        "Encoding models of several target spaces: how well their latents predict each voxel's response together",
        (
            *(ArraySpec(name, ("voxel",), "f4", doc, chunks=cut) for name, doc in ENCODING.items()),
            ArraySpec("share", dims, "f4", "weight of the space's kernel; they sum to 1", chunks=cut),
            ArraySpec(
                "unique_r2",
                dims,
                "f4",
                "r2 less that of the model of the other spaces, whose shares and penalty are chosen the same way",
                chunks=cut,
            ),
            ArraySpec("band", ("band",), "str", "target space", role="coordinate"),
        ),
        cut,
    )
