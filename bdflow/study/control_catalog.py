"""The stores of controls beside their pictures; all other stores are in `catalog`."""

from __future__ import annotations

from bdflow.stores.spec import ArraySpec, StoreSpec
from bdflow.study.catalog import STIMULUS_ID


def neighbours(stimuli: int) -> StoreSpec:
    each, cut = ("stimulus_id", "neighbour"), {"stimulus_id": stimuli}
    return StoreSpec(
        "Neighbours: which training stimuli are nearest to a test stimulus, by cosine of latents z-scored by training",
        (
            ArraySpec("train_stimulus_id", each, "str", "nearest to the prediction, the nearest first", chunks=cut),
            ArraySpec("agreement", each, "f4", "cosine of the prediction with the latent of that one", chunks=cut),
            ArraySpec(
                "similar_stimulus_id", each, "str", "nearest to the stimulus itself, the nearest first", chunks=cut
            ),
            ArraySpec(
                "similarity", each, "f4", "cosine of the stimulus's latent with the latent of that one", chunks=cut
            ),
            STIMULUS_ID,
        ),
        cut,
    )
