"""Spaces that are for encoding models alone, and spaces that are reduced to principal components."""

import re
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from bdflow.api import encode
from bdflow.config import Config, parse
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.stores import NotReady, Store
from tests.conftest import SUBJECTS, spaces
from tests.support.parts import whole

INSIDE = {"encoder": "sd_denoising", "decode": False, "options": {"steps": 4, "strength": 0.5, "step": 1}}
LAYER = {**INSIDE, "options": {**INSIDE["options"], "layer": "mid_block", "pool": 4}}
Z = {"encoder": "sd_vae", "decode": False}
OTHERS = {"z": Z, "z_c": INSIDE, "middle": LAYER}
COMPONENTS = 5


@pytest.fixture(scope="module")
def content(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Brain-Diffuser, decoded and painted; z, z while it is denoised, and a layer, for encoding models alone."""
    root = tmp_path_factory.mktemp("encoding")
    return settings(
        root,
        spaces={**spaces(), **OTHERS},
        encode={
            "spaces": ["z", "middle"],
            "sets": {"z_and_z_c": ["z", "z_c"]},
            "components": {"middle": COMPONENTS},
            "stimuli": 10,
            "share_steps": 2,
            "grid": [0.1, 1, 10],
        },
        evaluate={"metrics": ["PixCorr"]},
    )


@pytest.fixture(scope="module")
def made(content: dict[str, Any]) -> Config:
    config = parse(content)
    Pipeline(config).run()
    return config


@pytest.fixture(scope="module")
def encoded(made: Config) -> tuple[Config, list[str]]:
    """After `bdflow encode`; the lines it logged."""
    import logging

    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("bdflow"), Kept()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        paths = encode(made)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert len(paths) == 3 * len(SUBJECTS)
    return made, lines


def states(config: Config) -> dict[str, str]:
    return {row.path: row.state.kind for row in Pipeline(config).status()}


def test_a_run_decodes_and_paints_without_them(made: Config) -> None:
    found = states(made)
    assert set(found.values()) == {"sealed"}
    assert not [path for path in found if path.split("/")[-1] in ("z", "z_c", "middle")]
    assert not [path for path in found if path.startswith(("targets/z", "targets/middle"))]
    assert Store(made.study, f"decoders/{SUBJECTS[0]}/averaged").read("space").tolist() == list(spaces())
    page = (made.report.path / "index.html").read_text(encoding="utf-8")
    cells = re.findall(r"<t[dh][^>]*>([^<]*)<", page.replace("<wbr>", ""))
    assert "clip_vision" in cells
    assert "z_c" not in cells


def test_encode_makes_their_latents_and_models_and_touches_nothing_else(encoded: tuple[Config, list[str]]) -> None:
    config, _ = encoded
    found = states(config)
    assert set(found.values()) == {"sealed"}
    for part in ("shared", *SUBJECTS):
        assert {f"targets/{space}/{part}" for space in ("z", "z_c", "middle")} < found.keys()
    assert not [path for path in found if path.startswith("predictions") and path.split("/")[-1] not in spaces()]
    assert Store(config.study, "targets/z_c/shared").arrays["latent"].shape[1:] == (4 * 16 * 16,)
    assert Store(config.study, "targets/middle/shared").arrays["latent"].shape[1:] == (64 * 4 * 4,)
    Pipeline(config).run(("encoding_features", "encode"))  # nothing is left to do, and nothing is stale


def test_a_reduced_space_is_scikit_learns_pca_of_the_training_stimuli(encoded: tuple[Config, list[str]]) -> None:
    config, lines = encoded
    subject = SUBJECTS[1]
    store, responses = (Store(config.study, f"{kind}/{subject}/{of}") for kind, of in (
        ("encoding", "middle"), ("responses", "averaged"),
    ))  # fmt: skip
    targets = whole(config.study, "targets/middle")
    latent = targets.read("latent").astype(float)[targets.rows("stimulus_id", responses.read("stimulus_id"))]
    train, response = responses.read("split") != "test", responses.read("response").astype(float)
    latent = (latent - latent[train].mean(axis=0)) / latent[train].std(axis=0, ddof=1) / np.sqrt(latent.shape[1])
    fitted = PCA(COMPONENTS, svd_solver="full").fit(latent[train])
    scores = fitted.transform(latent)
    alpha, r2 = store.read("alpha"), store.read("r2")
    for voxel in np.flatnonzero(np.isfinite(r2))[:: max(1, len(r2) // 8)]:
        ridge = Ridge(alpha=float(alpha[voxel]), solver="cholesky").fit(scores[train], response[train, voxel])
        assert r2[voxel] == pytest.approx(ridge.score(scores[~train], response[~train, voxel]), abs=2e-3)
    kept = f"{100 * fitted.explained_variance_ratio_.sum():.1f}% of the variance"
    assert [line for line in lines if line.startswith(f"{subject}, middle: {COMPONENTS} principal") and kept in line]


def test_other_components_make_their_models_stale_and_nothing_else(
    content: dict[str, Any], encoded: tuple[Config, list[str]]
) -> None:
    for components, models in (({"middle": 4}, {"middle"}), ({}, {"middle"}), ({"middle": 5, "z_c": 3}, {"z_and_z_c"})):
        config = parse(content | {"encode": content["encode"] | {"components": components}})
        stale = {path for path, state in states(config).items() if state == "stale"}
        assert {path.split("/")[-1] for path in stale} == models
        assert all(path.startswith("encoding") for path in stale)


def test_more_components_than_there_are_are_refused(content: dict[str, Any], encoded: tuple[Config, list[str]]) -> None:
    config = parse(content | {"encode": content["encode"] | {"components": {"middle": 26}}})
    with pytest.raises(InputError) as error:
        Pipeline(config).run(("encode",), remake=True)
    for words in (r"encode.components.middle, subj0", "components; expected 26 at least", "ask for "):
        assert words in str(error.value)


def test_encode_alone_says_which_latents_it_lacks(content: dict[str, Any], tmp_path: Any) -> None:
    config = parse(content | {"study": str(tmp_path / "study.zarr")})
    Pipeline(config).run(("ingest", "features"))
    with pytest.raises(NotReady, match="run the stage `encoding_features`"):
        Pipeline(config).run(("encode",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encode": {"spaces": ["z"]}}, "decode: false`, and no encoding model made from middle"),
        ({"spaces": {"z": Z}}, "found none that is decoded"),
        ({"encode": {"components": {"midle": 3}}}, "did you mean `middle`?"),
        (
            {"spaces": {**spaces(), **OTHERS, "vdvae": {"encoder": "vdvae", "decode": False}}},
            "`painters.brain_diffuser.guess` 'vdvae', and `spaces.vdvae.decode: false`",
        ),
        ({"painters": {"p": {"select": "best", "select_by": "z"}}}, "`painters.p.select_by` 'z', and `spaces.z.decode"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(content: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        parse(content | change)
    assert words in str(error.value)
