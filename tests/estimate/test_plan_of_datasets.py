"""A plan of every kind of dataset: the counts of its files, or plain words about what it needs."""

import math
from pathlib import Path
from typing import Any

import pytest

from bdflow.config import Config, parse
from bdflow.datasets.reader import open_dataset
from bdflow.errors import InputError
from bdflow.estimate.sizes import PUBLISHED, sizes_of
from bdflow.estimate.stores import PlannedCounts, bytes_by_stage
from bdflow.pipeline import STAGES, Pipeline
from bdflow.stores import Store
from bdflow.study.graph import Graph
from tests.datasets.test_doors import DATASETS, EXPECTED, ROOTS, arrays_of

IMAGERY = {"kind": "nsd_imagery", "split": "dataset:conditions", "options": {"train_condition": "perception"}}
CASES: dict[str, tuple[Path | None, list[str], dict[str, Any]]] = {
    **{name: (ROOTS[name], list(EXPECTED[name]["subjects"]), DATASETS[name]) for name in DATASETS},
    "nsd_imagery": (ROOTS["nsd_imagery"], ["subj01", "subj05"], IMAGERY | {"image_size": [20, 32]}),
    "nsd_synthetic": (ROOTS["nsd_imagery"], ["subj01", "subj05"], {"kind": "nsd_synthetic"}),
    "arrays": (None, ["anna", "ben"], {"kind": "arrays", "split": "dataset:own"}),
}


QUICK = ("nsd_imagery",)


def _quick_or_slow(name: str) -> Any:
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.slow(kind="datasets"))


def configuration(name: str, root: Path, at: Path | None = None) -> Config:
    files, subjects, dataset = CASES[name]
    if files is None:
        files = root / "own.zarr"
        if not files.exists():
            arrays_of(files, True, 3)
    return parse(
        {
            "study": str(root / "study.zarr"),
            "subjects": subjects,
            "dataset": {"root": str(at or files), **dataset},
            "spaces": {"vdvae": {"encoder": "vdvae"}},
            "report": {"path": str(root / "report")},
        }
    )


@pytest.mark.parametrize("name", [_quick_or_slow(name) for name in CASES])
def test_a_plan_counts_what_ingest_makes(name: str, tmp_path: Path) -> None:
    """Bytes of every store of ingest, and training and test stimuli of every subject."""
    config = configuration(name, tmp_path)
    found, data = sizes_of(config), open_dataset(config)
    Pipeline(config).run(("ingest",))
    for subject, of in found.subjects.items():
        rows = Store(config.study, f"responses/{subject}/averaged")
        split = rows.read("split")
        assert (of.train, of.test) == ((split == "train").sum(), (split == "test").sum())
        assert of.train_trials == rows.read("repeats")[split == "train"].sum()
        betas = Store(config.study, f"betas/{subject}")
        assert (of.trials, of.voxels) == (betas.sizes["trial"], betas.sizes["voxel"])
        assert betas.arrays["beta"].dtype.itemsize == found.beta_bytes
    for part, stimuli in found.parts.items():
        store = Store(config.study, f"stimuli/{part}")
        assert (store.sizes["stimulus_id"], store.sizes["y"], store.sizes["x"]) == (stimuli, *found.photo)
    assert found.pixels == math.prod(data.photo_shape())
    ingest = Graph(config, [STAGES["ingest"]])
    assert bytes_by_stage(ingest, PlannedCounts(config, found, PUBLISHED))["ingest"] > 0


@pytest.mark.parametrize("name", [name for name, of in CASES.items() if of[2].get("kind")])
def test_without_files_it_says_what_it_needs(name: str, tmp_path: Path) -> None:
    config = configuration(name, tmp_path, at=tmp_path / "nothing")
    with pytest.raises(InputError) as error:
        sizes_of(config)
    said = str(error.value)
    assert f"Sizes are known beforehand of NSD alone; of {CASES[name][2]['kind']} a plan needs" in said
    assert str(tmp_path / "nothing") in said
