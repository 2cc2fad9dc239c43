"""By how much values of a store may differ with what its record does not hold: batch sizes, threads, switches.

The record's `arithmetic` (`bdflow.stores.Provenance`) is the same for all values of a store. What it leaves out adds in
another order, and so moves values by no more than this; the tests compare whole studies by these figures.
"""

LATENT_STEPS = 1
"""Steps of float16, as which latents are stored; below `SMALL_LATENT` that figure."""
SMALL_LATENT = 2e-5
PREDICTION = 1e-4
"""Of the largest prediction of a space."""
PIXEL_LEVELS = 1
PIXEL_SHARE = 1e-3
"""Values of pictures that may move by more than `PIXEL_LEVELS`: a guess draws each from a mixture, which may turn."""

STATEMENT = (
    "Of one store all values were computed on one kind of device and, in half precision or fp8, in batches of one "
    "size. "
    f"Threads and, in float32, batch sizes and switches of speed move a latent by at most {LATENT_STEPS} step of "
    f"float16, a prediction by {PREDICTION:g} of the largest, and a pixel by {PIXEL_LEVELS} level of 255 in all but "
    f"{PIXEL_SHARE:.1%} of values."
)
"""The same in words, as the status shows it."""
