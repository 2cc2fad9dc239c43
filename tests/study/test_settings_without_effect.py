"""A setting that has no effect beside the others makes nothing stale; where it has one, it does."""

from pathlib import Path
from typing import Any

import pytest

from bdflow.study.keys import kind
from tests.conftest import small_settings
from tests.datasets.test_doors import DATASETS, ROOTS
from tests.study.test_fingerprints import changed, everything, keys_that_differ

PAINTER = "painters.brain_diffuser"
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Any, str]] = {
    "dataset.image_fit": ({"dataset.image_size": None}, {"dataset.image_size": 48}, "pad", "stimuli"),
    "evaluate.ssim": ({"evaluate.metrics": ["PixCorr"]}, {"evaluate.metrics": ["SSIM"]}, "2d", "metrics"),
    "evaluate.distractors": (
        {"evaluate.metrics": ["PixCorr", "SSIM"]},
        {"evaluate.metrics": ["CLIP (bundle)"]},
        "reconstructions",
        "metrics",
    ),
    f"{PAINTER}.select": ({f"{PAINTER}.pictures": 1}, {f"{PAINTER}.pictures": 2}, "first", "metrics"),
    f"{PAINTER}.noise_index": (
        {f"{PAINTER}.strength": 1.0},
        {f"{PAINTER}.strength": 0.75},
        "diffusers",
        "reconstructions",
    ),
}
"""By setting: others beside which it has no effect, and beside which it has; another value; what it shapes."""


@pytest.fixture(scope="module")
def full(nsd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    content = everything(nsd, tmp_path_factory.mktemp("effects"))
    return changed(content, f"{PAINTER}.select", "all")


@pytest.mark.parametrize("key", CASES)
def test_it_counts_only_beside_settings_that_give_it_an_effect(full: dict[str, Any], key: str) -> None:
    without, with_effect, other, shaped = CASES[key]
    for beside, counts in ((without, False), (with_effect, True)):
        base = full
        for name, value in beside.items():
            base = changed(base, name, value)
        stale = {kind(store) for store in keys_that_differ(base, changed(base, key, other))}
        assert (shaped in stale) == bool(stale) == counts


def test_rules_for_values_of_nsd_are_none_of_other_kinds(nsd: Path, tmp_path: Path) -> None:
    """`outliers` and `not_a_number` are asked by NSD's readers alone."""
    laion = {"root": str(ROOTS["laion_fmri"]), **DATASETS["laion_fmri"]}
    core = small_settings(nsd, tmp_path)
    other = {**core, "subjects": ["sub-01"], "dataset": laion, "painters": {}, "roi": {}}
    for key in ("dataset.outliers", "dataset.not_a_number"):
        assert keys_that_differ(other, changed(other, key, "invalid")) == set()
        assert "betas/subj01" in keys_that_differ(core, changed(core, key, "invalid"))
