"""The same predictions by the hat matrix, by the authors' loop and by himalaya."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from bdflow.benchmarks.machine import best
from bdflow.benchmarks.ridge_stores import Scale
from bdflow.regression import ridge


def compare(threads: int, scale: Scale) -> dict[str, float]:
    """Seconds for the same predictions at a common size: hat matrix, the authors' loop, himalaya."""
    from sklearn.linear_model import Ridge

    n, m, p, tokens, width = min(scale.train, 2500), min(scale.test, 300), 4000, 257, 768
    tokens = tokens if scale.train > 1000 else 8
    p = min(p, max(scale.voxels.values()))
    rng = np.random.default_rng(1)
    x, other = (rng.standard_normal((k, p), dtype=np.float32) for k in (n, m))
    y = rng.standard_normal((n, tokens, width), dtype=np.float32)
    with threadpool_limits(threads):

        def hat() -> np.ndarray:
            train, test, _, _ = ridge.z_score(x, other)
            (matrix,) = ridge.hat_matrices(train, test, [60_000.0])
            return ridge.predict(matrix, y.reshape(n, -1))

        ours = best(hat, 3)
        train, test, _, _ = ridge.z_score(x.astype(np.float64), other.astype(np.float64))
        sample = 3

        def loop() -> None:
            for token in range(sample):
                Ridge(alpha=60_000).fit(train, y[:, token].astype(np.float64)).predict(test)

        authors = best(loop, 1) / sample * tokens
        found = {"n": n, "p": p, "m": m, "t": tokens * width, "hat matrix": ours, "authors' loop": authors}
        try:
            from himalaya.kernel_ridge import KernelRidge
        except ImportError:
            return found
        narrow, other_narrow = train.astype(np.float32), test.astype(np.float32)

        def himalaya() -> None:
            KernelRidge(alpha=60_000, kernel="linear", fit_intercept=True).fit(narrow, y.reshape(n, -1)).predict(
                other_narrow
            )

        found["himalaya"] = best(himalaya, 1)
    return found
