"""Every store of a study on one screen: what `xarray.open_datatree(study)` shows, and where the words come from.

Dimensions: `stimulus_id` (test ones first, each in the dataset's order; join by this index, never by position),
`trial` (presentations in the order of the scan), `voxel` (of the subject's mask), `token` and `feature` (of a target
space), `picture` (of several that were painted of a stimulus), `y`, `x`, `rgb` (of a picture). Those of regions are in
`region_catalog`, those of encoding models in `encoding_catalog`, pictures in `picture_catalog`, those of controls in
`control_catalog`, those of scores in `score_catalog`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bdflow.datasets.contract import Encoding, Units
from bdflow.stores.spec import ArraySpec, StoreSpec
from bdflow.study.coordinates import PIXELS

Laid = tuple[StoreSpec, dict[str, int]]
"""What a store looks like, and the length of its dimensions."""

STIMULUS_ID = ArraySpec("stimulus_id", ("stimulus_id",), "str", "the dataset's name of the stimulus", role="coordinate")
SPLIT = ArraySpec("split", ("stimulus_id",), "str", "test or train", role="coordinate")
UNITS: Mapping[Units, str] = {"percent signal change": "percent signal change", "z": "", "arbitrary": "arbitrary"}
"""Units of betas as attributes of arrays; z-scores have none."""


def flags(*meanings: str) -> dict[str, object]:
    """Attributes of an array of codes, from 0, as the CF conventions have them."""
    return {"flag_values": list(range(len(meanings))), "flag_meanings": " ".join(meanings)}


MEASURED = flags("not_measured", "measured")
AFFINE_FORMS = flags("unknown", "scanner", "aligned", "talairach", "mni_152", "template_other")
PICTURE = "picture, in sRGB"
Coordinates = tuple[ArraySpec, ...]
"""Of latents, from `coordinates.of_latents`."""
IMAGE_DIMS = ("stimulus_id", "y", "x", "rgb")


def stimuli(per_partition: int, *, leave_out: bool = False) -> StoreSpec:
    """`leave_out` : the store also names the stimuli that the study leaves out, since they have no caption."""
    chunks = {"stimulus_id": per_partition}
    gone = ArraySpec("without_caption", ("left_out",), "str", "stimuli left out: they have no caption", role="given")
    image_chunks = {"stimulus_id": min(per_partition, 8)}
    return StoreSpec(
        "Stimuli: the photos that were shown, and their captions",
        (
            ArraySpec("image", IMAGE_DIMS, "u1", "photo as shown, in sRGB", chunks=image_chunks, codec="zstd"),
            *PIXELS,
            ArraySpec(
                "caption", ("stimulus_id", "caption_number"), "str", "COCO captions, unused ones empty", chunks=chunks
            ),
            STIMULUS_ID,
            SPLIT,
            *((gone,) if leave_out else ()),
        ),
        {"stimulus_id": per_partition},
        ("stimulus_id", "left_out"),
    )


def betas(most_trials: int, encoding: Encoding) -> StoreSpec:
    """Betas in blocks of as many trials as the longest session has, as the dataset stores them."""
    by_trial = {"trial": most_trials}
    scale = {} if encoding.divisor == 1 else {"scale_factor": 1 / encoding.divisor}
    chunks = {**by_trial, "voxel": 4096}
    axis = [
        ArraySpec(name, ("voxel",), "i4", f"voxel index along {axis} in the subject's volumes", role="coordinate")
        for name, axis in zip("ijk", "xyz", strict=True)
    ]
    return StoreSpec(
        "Betas: the response of every voxel to every trial, as the dataset has it",
        (
            ArraySpec(
                "beta",
                ("trial", "voxel"),
                {"int16": "i2", "float32": "f4"}[encoding.dtype],
                "GLM response amplitude of a trial",
                UNITS[encoding.units],
                chunks,
                "zstd",
                attrs={**scale, "divisor": encoding.divisor, "cut_off": int(encoding.cut_off)},
            ),
            ArraySpec(
                "valid",
                ("trial", "voxel"),
                "u1",
                "1 = a measurement; 0 = none (not a number, an outlier left out, a voxel its session did not measure)",
                chunks=chunks,
                codec="zstd",
                attrs=MEASURED,
            ),
            ArraySpec("valid_voxels", ("trial",), "i4", "voxels with a measurement", chunks=by_trial),
            ArraySpec("stimulus_id", ("trial",), "str", "stimulus shown; empty where none was", role="coordinate"),
            ArraySpec("session", ("trial",), "str", "scan session", role="coordinate"),
            ArraySpec(
                "run", ("trial",), "i4", "run of the session, from 1", role="coordinate", attrs=flags("not_known")
            ),
            ArraySpec("condition", ("trial",), "str", "what the subject did; empty if one thing", role="coordinate"),
            *axis,
            ArraySpec("grid", ("axis",), "i4", "voxels of the subject's volumes along x, y and z", role="given"),
            ArraySpec(
                "affine",
                ("world", "index"),
                "f8",
                "from voxel indices (i, j, k, 1) to (x, y, z, 1)",
                "mm",
                role="given",
            ),
            ArraySpec(
                "affine_form",
                ("code",),
                "i2",
                "NIfTI's code of the affine's space",
                role="given",
                attrs=AFFINE_FORMS,
            ),
            ArraySpec("region", ("region",), "str", "region of interest, collection/name", role="coordinate"),
            ArraySpec(
                "roi",
                ("region", "voxel"),
                "u1",
                "1 = the voxel is in the region",
                role="given",
                attrs=flags("outside", "inside"),
            ),
            ArraySpec(
                "ncsnr", ("voxel",), "f4", "noise-ceiling signal-to-noise ratio (signal SD / noise SD)", role="given"
            ),
        ),
        by_trial,
        ("region",),
    )


def row_dim(rows: str) -> str:
    """Dimension of the rows that ridge is fitted on: `stimulus`, or `row` where there is one a trial."""
    return "stimulus_id" if rows == "averaged" else "row"


def responses(voxels_per_partition: int, of: Units, *, rows: str = "averaged", z_scored: bool = False) -> StoreSpec:
    """Rows for ridge; `of`: units of the betas."""
    chunks, dim = {"voxel": voxels_per_partition}, row_dim(rows)
    units = UNITS["z" if z_scored else of]
    doc = "mean beta over repeats" if rows == "averaged" else "beta of a training trial, or mean over a test stimulus's"
    return StoreSpec(
        "Responses: betas averaged over the repeats of a stimulus"
        if rows == "averaged"
        else "Responses: single training trials, and averaged test stimuli",
        (
            ArraySpec("response", (dim, "voxel"), "f4", doc, units, chunks),
            ArraySpec("voxel_mean", ("voxel",), "f4", "mean over training rows", units, chunks),
            ArraySpec("voxel_scale", ("voxel",), "f4", "SD over training rows (ddof 1)", units, chunks),
            ArraySpec(
                "valid",
                ("voxel",),
                "u1",
                "1 = decoded from; 0 = left out: constant, or without a measurement of some stimulus (not a number)",
                chunks=chunks,
                attrs=flags("left_out", "decoded_from"),
            ),
            ArraySpec(
                "ncsnr_repeats",
                ("voxel",),
                "f4",
                "noise-ceiling signal-to-noise ratio of these betas, estimated from repeated stimuli",
                chunks=chunks,
            ),
            ArraySpec("missing_trials", ("voxel",), "i4", "trials without a measurement, in no mean", chunks=chunks),
            ArraySpec("clipped_trials", ("voxel",), "i4", "trials whose beta int16 cut off", chunks=chunks),
            ArraySpec("repeats", (dim,), "i2", "number of trials averaged, where the voxel has them all", role="given"),
            ArraySpec("trial", (dim,), "i4", "trial of the betas, from 0; of an average, the first", role="given"),
            replace(STIMULUS_ID, dims=(dim,)),
            replace(SPLIT, dims=(dim,)),
        ),
        {"voxel": voxels_per_partition},
    )


def space_dims(shape: Sequence[int]) -> tuple[str, ...]:
    """Dimensions of a target space: (feature,) or (token, feature)."""
    return ("token", "feature")[-len(shape) :]


def space_sizes(shape: Sequence[int]) -> dict[str, int]:
    """Lengths of the dimensions of a target space."""
    return dict(zip(space_dims(shape), shape, strict=True))


def targets(
    shape: Sequence[int], dtype: str, per_partition: int, columns: int, coordinates: Coordinates = ()
) -> StoreSpec:
    dims = space_dims(shape)
    chunks = {"stimulus_id": per_partition, **column_blocks(shape, columns)}
    return StoreSpec(
        "Targets: latents of the stimuli, what ridge predicts",
        (
            ArraySpec("latent", ("stimulus_id", *dims), dtype, "latent of the stimulus", chunks=chunks),
            STIMULUS_ID,
            SPLIT,
            *coordinates,
        ),
        {"stimulus_id": per_partition},
        ("stimulus_id",),
    )


def column_blocks(shape: Sequence[int], columns: int) -> dict[str, int]:
    """How a target space is cut into blocks of about `columns` latents: along `token` if it has tokens."""
    if len(shape) == 1:
        return {"feature": min(columns, shape[0])}
    return {"token": max(1, min(columns // shape[1], shape[0]))}


ALPHA = ArraySpec("alpha", ("alpha",), "f8", "ridge penalty (scikit-learn's convention)", role="coordinate")
TRAIN_STIMULUS_ID = ArraySpec(
    "train_stimulus_id", ("train_stimulus_id",), "str", "stimulus_id of the training stimulus", role="coordinate"
)
KERNEL_ROWS = 1024


def systems(dual: bool, rows: str = "averaged") -> StoreSpec:
    """The kernel of rows (dual), or the covariance of voxels (primal): what ridge solves."""
    dim = row_dim(rows)
    first, second = (dim, f"train_{dim}") if dual else ("voxel", "other_voxel")
    doc = f"inner product of the z-scored responses to two {'stimuli' if rows == 'averaged' else 'rows'}"
    used = ArraySpec(
        "used", ("any_voxel",), "u1", "1 = the voxel of the responses is decoded from, 0 = left out", role="given"
    )
    used = replace(used, attrs=flags("left_out", "decoded_from"))
    given: tuple[ArraySpec, ...] = (
        replace(STIMULUS_ID, dims=(dim,)),
        replace(SPLIT, dims=(dim,)),
        replace(TRAIN_STIMULUS_ID, dims=(f"train_{dim}",)),
    )
    if not dual:
        doc = "inner product over training rows of the z-scored responses of two voxels that are decoded from"
        given = (ArraySpec("voxel", ("voxel",), "i4", "position of the voxel in the responses", role="coordinate"),)
    return StoreSpec(
        "System: what ridge solves for every penalty and every target",
        (ArraySpec("gram", (first, second), "f4", doc, chunks={first: KERNEL_ROWS, second: 4096}), *given, used),
        {first: KERNEL_ROWS},
    )


def panels(width: int) -> StoreSpec:
    """A Cholesky factor that is larger than memory, column by column."""
    chunks = {"column": width, "row": 4096}
    return StoreSpec(
        "Factor: columns of the Cholesky factor of the kernel plus the penalty",
        (ArraySpec("factor", ("column", "row"), "f4", "element of the lower triangle", chunks=chunks),),
        {"column": width},
    )


def validation() -> StoreSpec:
    return StoreSpec(
        "Validation: cross-validated predictions of training stimuli = matrix @ latents, intercept included",
        (
            ArraySpec(
                "matrix",
                ("alpha", "held_out_stimulus_id", "train_stimulus_id"),
                "f4",
                "weight of each training stimulus in the prediction of one it was fitted without",
                chunks={"alpha": 1, "held_out_stimulus_id": 512, "train_stimulus_id": 4096},
            ),
            ALPHA,
            ArraySpec(
                "held_out_stimulus_id",
                ("held_out_stimulus_id",),
                "str",
                "stimulus_id that is predicted",
                role="coordinate",
            ),
            TRAIN_STIMULUS_ID,
        ),
        {"alpha": 1},
    )


def validation_by_rows() -> StoreSpec:
    """Where every training row is predicted, in folds of rows: the errors, not the predictions."""
    return StoreSpec(
        "Validation: mean squared errors of cross-validation = column sums of (error @ latents)^2",
        (
            ArraySpec(
                "error",
                ("alpha", "error_row", "train_stimulus_id"),
                "f4",
                "what predictions of training rows miss, over stimuli, or its triangular factor",
                chunks={"alpha": 1, "error_row": 512, "train_stimulus_id": 4096},
            ),
            ALPHA,
            TRAIN_STIMULUS_ID,
        ),
        {"alpha": 1},
    )


def selection(shape: Sequence[int], columns: int, coordinates: Coordinates = (), *, by_rows: bool = False) -> StoreSpec:
    dims, cut = space_dims(shape), column_blocks(shape, columns)
    score = "minus the mean squared error, averaged over folds of rows" if by_rows else "cross-validated R^2"
    return StoreSpec(
        "Selection: how well each penalty predicts training stimuli that were left out",
        (
            ArraySpec(
                "score",
                ("alpha", *dims),
                "f4",
                f"{score}; not a number where the latent was not drawn",
                chunks=cut,
            ),
            ArraySpec("best_alpha", dims, "f4", "penalty with the highest score", chunks=cut),
            ALPHA,
            *coordinates,
        ),
        cut,
    )


def weights(shape: Sequence[int], columns: int, voxels: int, coordinates: Coordinates = ()) -> StoreSpec:
    dims = space_dims(shape)
    cut = {"voxel": voxels, **column_blocks(shape, columns)}
    return StoreSpec(
        "Weights: ridge coefficients for z-scored responses",
        (
            ArraySpec("weight", ("voxel", *dims), "f4", "change of the latent per SD of the voxel", chunks=cut),
            *coordinates,
        ),
        cut,
    )


def importance(voxels: int) -> StoreSpec:
    return StoreSpec(
        "Importance: how strongly a target space depends on each voxel",
        (
            ArraySpec(
                "importance",
                ("voxel",),
                "f4",
                "root mean square over latents of the weight, in SD of the latent per SD of the voxel",
                chunks={"voxel": voxels},
            ),
        ),
        {"voxel": voxels},
    )


def decoders() -> StoreSpec:
    return StoreSpec(
        "Decoder: ridge of a subject, one hat matrix a penalty; predictions = hat_matrix @ latents + their mean",
        (
            ArraySpec(
                "hat_matrix",
                ("alpha", "stimulus_id", "train_stimulus_id"),
                "f4",
                "weight of each training stimulus in each test prediction",
                chunks={"alpha": 1, "stimulus_id": 512, "train_stimulus_id": 4096},
            ),
            ALPHA,
            ArraySpec(
                "space_alpha",
                ("space",),
                "f8",
                "penalty of the target space; not a number where each latent has its own",
                role="given",
            ),
            ArraySpec("space", ("space",), "str", "target space", role="coordinate"),
            STIMULUS_ID,
            TRAIN_STIMULUS_ID,
        ),
        {"alpha": 1},
    )


STATISTICS: Mapping[str, str] = {
    "train_mean": "mean of the training targets",
    "train_std": "SD of the training targets (ddof 0)",
    "prediction_mean": "mean of the predictions over the test set",
    "prediction_std": "SD of the predictions over the test set (ddof 0)",
    "r2": "coefficient of determination on the test set",
    "pearson_r": "Pearson correlation with the true latents on the test set",
    "alpha": "ridge penalty",
}
HELD_OUT: Mapping[str, str] = {
    "held_out_mean": "mean of cross-validated predictions of training stimuli",
    "held_out_std": "SD of cross-validated predictions of training stimuli (ddof 0)",
}


def predictions(
    shape: Sequence[int], columns: int, coordinates: Coordinates = (), *, held_out: bool = False
) -> StoreSpec:
    dims = space_dims(shape)
    cut = column_blocks(shape, columns)
    statistics = {**STATISTICS, **HELD_OUT} if held_out else STATISTICS
    return StoreSpec(
        "Predictions: latents of the test stimuli as ridge predicts them, raw; the statistics re-standardise them",
        (
            ArraySpec("latent", ("stimulus_id", *dims), "f4", "predicted latent", chunks={"stimulus_id": 64, **cut}),
            *(ArraySpec(name, dims, "f4", doc, chunks=cut) for name, doc in statistics.items()),
            STIMULUS_ID,
            *coordinates,
        ),
        cut,
    )
