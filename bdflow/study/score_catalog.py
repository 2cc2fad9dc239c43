"""Stores of scores: what judges see in photos and pictures, how these correlate, and the metrics."""

from __future__ import annotations

from bdflow.stores.spec import ArraySpec, StoreSpec
from bdflow.study.catalog import STIMULUS_ID


def judges(metric: str, per_partition: int) -> StoreSpec:
    return StoreSpec(
        f"Judge of {metric}: what the layer of a network that this metric compares gives for the test photos",
        (
            ArraySpec("feature", ("stimulus_id", "feature"), "f4", "activation", chunks={"stimulus_id": per_partition}),
            STIMULUS_ID,
        ),
        {"stimulus_id": per_partition},
    )


def similarities(per_partition: int) -> StoreSpec:
    return StoreSpec(
        "Similarities: how each reconstruction of a subject correlates with each test photo in the eyes of each judge",
        (
            ArraySpec(
                "correlation",
                ("variant", "metric", "stimulus_id", "photo_stimulus_id"),
                "f4",
                "Pearson correlation of the features of a reconstruction and of a photo",
                chunks={"variant": 1, "stimulus_id": per_partition},
            ),
            ArraySpec("variant", ("variant",), "str", "which parts of the method are on", role="coordinate"),
            ArraySpec("metric", ("metric",), "str", "metric that is computed from them", role="coordinate"),
            STIMULUS_ID,
            ArraySpec(
                "photo_stimulus_id",
                ("photo_stimulus_id",),
                "str",
                "stimulus_id of the photo compared with",
                role="coordinate",
            ),
        ),
        {"variant": 1, "stimulus_id": per_partition},
    )


def metrics(per_partition: int) -> StoreSpec:
    return StoreSpec(
        "Metrics: agreement of every reconstruction of a subject with the photo that was shown",
        (
            ArraySpec(
                "value",
                ("variant", "metric", "stimulus_id"),
                "f4",
                "score of one reconstruction; not a number where the metric is missing or undefined",
                chunks={"variant": 1, "stimulus_id": per_partition},
            ),
            ArraySpec("missing", ("metric",), "str", "why the metric is missing; empty if it is not", role="given"),
            ArraySpec("variant", ("variant",), "str", "which parts of the method are on", role="coordinate"),
            ArraySpec(
                "metric",
                ("metric",),
                "str",
                "metric, and its protocol where there are several",
                role="coordinate",
            ),
            STIMULUS_ID,
        ),
        {"variant": 1, "stimulus_id": per_partition},
    )
