"""Principal components by the kernel, against scikit-learn's PCA of the features."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from bdflow.errors import InputError
from bdflow.regression import principal

N, M, P = 40, 11, 90


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    """Of unequal variance, centred over the training items."""
    draw = np.random.default_rng(2)
    scale = np.geomspace(5, 0.1, P)
    train, test = draw.standard_normal((N, P)) * scale, draw.standard_normal((M, P)) * scale
    return train - train.mean(axis=0), test - train.mean(axis=0)


@pytest.mark.parametrize("k", [1, 7, N - 1])
def test_scores_have_the_inner_products_of_scikit_learns(features: tuple[np.ndarray, np.ndarray], k: int) -> None:
    train, test = features
    found = principal.components(train @ train.T, test @ train.T, k)
    fitted = PCA(k, svd_solver="full").fit(train)
    scores, others = fitted.transform(train), fitted.transform(test)
    np.testing.assert_allclose(found.kernel, scores @ scores.T, atol=1e-9)
    np.testing.assert_allclose(found.cross, others @ scores.T, atol=1e-9)
    assert found.kept == pytest.approx(fitted.explained_variance_ratio_.sum())


def test_all_components_change_nothing(features: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = features
    kernel, cross = train @ train.T, test @ train.T
    found = principal.components(kernel, cross, N - 1)
    np.testing.assert_allclose(found.kernel, kernel, atol=1e-9)
    np.testing.assert_allclose(found.cross, cross, atol=1e-9)
    assert found.kept == pytest.approx(1)


def test_float32_stays_float32_and_near(features: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = (of.astype(np.float32) for of in features)
    found = principal.components(train @ train.T, test @ train.T, 7)
    exact = principal.components(features[0] @ features[0].T, features[1] @ features[0].T, 7)
    assert (found.kernel.dtype, found.cross.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(found.kernel, exact.kernel, atol=1e-4 * np.abs(exact.kernel).max())


@pytest.mark.parametrize(
    ("latents", "rank"), [(P, N - 1), (5, 5)], ids=["as many as items, less the mean", "as many as features"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_more_than_there_are_is_refused(
    features: tuple[np.ndarray, np.ndarray], latents: int, rank: int, dtype: type
) -> None:
    """What rounding of the kernel leaves of the others is no component."""
    train, test = (of[:, :latents].astype(dtype) for of in features)
    principal.components(train @ train.T, test @ train.T, rank)
    with pytest.raises(InputError, match=f"found {rank} components; expected {rank + 1} at least"):
        principal.components(train @ train.T, test @ train.T, rank + 1)
