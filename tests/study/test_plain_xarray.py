"""A study as users of plain xarray meet it: found by id, drawn upright, labelled, written elsewhere. Its stores are
declared and filled as the pipeline's are, with random values.
"""

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray
from matplotlib import pyplot

import bdflow
from bdflow.config import parse
from bdflow.models.weights.bundle import open_bundle
from bdflow.stores import Study
from bdflow.study.keys import kind
from bdflow.study.target_reader import layers_of
from tests.conftest import spaces
from tests.support.declared import TEST, study_of
from tests.support.plain_xarray import drawn, opened, plain, record, written_again

ROOT = Path(__file__).parents[2]
Made = tuple[Study, dict[str, dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory) -> Made:
    """Every kind of store: two painters, controls, the best of two, chosen penalties, weights, regions, encoding."""
    vdvae, vision, text = spaces().items()
    trials = {"alpha": 300, "rows": "trials", "regions": "V1"}
    sections = {
        "spaces": dict([vdvae, vision, text])
        | {"z": {"encoder": "sd_vae", "ridge": trials}, "c": {"encoder": "sd_text", "ridge": trials}},
        "painters": {
            "brain_diffuser": {"steps": 4, "controls": ["prior", "retrieval"], "variants": ["full", "no_vdvae"]},
            "other": {"kind": "stable_diffusion", "guess": "z", "vision": None, "text": "c", "steps": 4},
        },
        "evaluate": {"metrics": ["PixCorr", "CLIP (bundle)"]},
        "reconstruct": {"subject_mean": True, "upper_bound": True},
        "ridge": {"weights": True},
        "roi": {"sets": {"areas": ["V1", "faces"]}},
    }
    return study_of(parse(settings(tmp_path_factory.mktemp("looked at"), **sections)))


def test_every_kind_of_store_is_there(made):
    expected = {"stimuli", "betas", "responses", "targets", "systems", "decoders", "predictions", "weights"}
    expected |= {"importance", "guesses", "reconstructions", "judges", "similarities", "metrics", "neighbours", "rois"}
    assert {path.split("/")[0] for path in made[1]} >= expected


def test_stimuli_are_found_by_id_in_every_store(made):
    study, filled = made
    found = set()
    for path, content in filled.items():
        ids = content.get("stimulus_id")
        store = opened(study.path, path)
        for name in (name for name in store.dims if str(name).endswith("stimulus_id")):
            assert name in store.indexes, f"{path}: {name}"
            found.add(str(name))
        if ids is not None and store.sizes.get("stimulus_id"):
            array = next(str(name) for name, of in store.variables.items() if "stimulus_id" in of.dims[:3])
            last = store[array].sel(stimulus_id=str(ids[-1]))
            expected = content[array].take(-1, store[array].dims.index("stimulus_id"))
            np.testing.assert_array_equal(last.values, expected, err_msg=path)
    assert found == {"stimulus_id", "train_stimulus_id", "photo_stimulus_id"}


def test_every_picture_is_drawn_upright(made):
    study, filled = made
    paths = [path for path, content in filled.items() if "image" in content]
    assert {kind(path) for path in paths} == {"stimuli", "guesses", "reconstructions", "rois"}
    for path in {(kind(path), filled[path]["image"].shape[-3:]): path for path in paths}.values():
        expected = filled[path]["image"].reshape(-1, *filled[path]["image"].shape[-3:])[0]
        image = opened(study.path, path).image
        first = image.isel(dict.fromkeys(image.dims[:-3], 0))
        np.testing.assert_array_equal(drawn(first, expected.shape[:2]), expected, err_msg=path)


def test_codes_say_what_they_mean_and_units_are_units(made):
    study, filled = made
    coded = set()
    for path in filled:
        store = opened(study.path, path)
        for name, of in store.variables.items():
            assert of.attrs.get("units") in (None, "percent signal change", "mm"), f"{path}/{name}"
            if "flag_meanings" in of.attrs:
                coded.add(str(name))
                assert len(of.attrs["flag_values"]) == len(of.attrs["flag_meanings"].split())
            elif of.dtype == np.uint8:
                assert name == "image", f"{path}/{name}: codes without meanings"
    assert coded == {"valid", "roi", "run", "affine_form", "used"}


def test_latents_say_which_layer_or_token_they_are_of(made):
    study, _ = made
    arrays = {"targets/vdvae/shared": "latent", "predictions/subj01/vdvae": "latent", "weights/subj01/vdvae": "weight"}
    for path, name in arrays.items():
        store = opened(study.path, path)
        shape, before = open_bundle("tiny").layers[3], sum(np.prod(of) for of in open_bundle("tiny").layers[:3])
        flat = store[name][0]
        here = flat.compute().where(store.layer.compute() == 4, drop=True)
        np.testing.assert_array_equal(here, flat[before : before + np.prod(shape)], err_msg=path)
        at = np.ravel_multi_index(tuple(here[axis].values for axis in ("channel", "layer_y", "layer_x")), shape)
        np.testing.assert_array_equal(at, np.arange(np.prod(shape)))
    assert layers_of(study.store("targets/vdvae/shared")) == list(open_bundle("tiny").layers)
    vision, text = (opened(study.path, f"predictions/subj01/{space}") for space in ("clip_vision", "clip_text"))
    assert vision.token_kind.values.tolist() == ["class"] + ["patch"] * (vision.sizes["token"] - 1)
    assert text.token_kind.values.tolist() == ["start"] + ["word, end or padding"] * (text.sizes["token"] - 1)
    assert layers_of(study.store("targets/clip_text/shared")) == []
    assert layers_of(study.store("targets/z/shared")) == [open_bundle("tiny").z_shape]


@pytest.mark.slow(kind="whole studies from outside")
def test_every_store_is_written_as_netcdf_and_as_zarr(made, tmp_path):
    study, filled = made
    written_again(study.path, _one_of_each(filled), tmp_path)


@pytest.mark.slow(kind="whole studies from outside")
def test_a_whole_study_is_written_as_netcdf(made, tmp_path):
    """All stores, one by one and as a tree."""
    study, filled = made
    written_again(study.path, filled, tmp_path)
    tree = xarray.open_datatree(study.path, engine="zarr", chunks={})
    tree.to_netcdf(tmp_path / "study.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "study.nc", engine="h5netcdf") as again:
        assert set(again.groups) == set(tree.groups)
        assert plain(again.attrs) == tree.attrs


def _one_of_each(filled: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """A store of each kind and set of arrays."""
    return list({(kind(path), tuple(content)): path for path, content in filled.items()}.values())


def test_bookkeeping_is_one_attribute(made):
    study, filled = made
    for path in _one_of_each(filled):
        store = opened(study.path, path)
        assert set(store.attrs) == {"title", "sealed", "bdflow"}
        assert store.attrs["sealed"] == 1
        kept = record(store)
        assert set(kept) == {"partition", "data", "given", "provenance"}
        assert kept["provenance"]["fingerprint"] == study.store(path).provenance["fingerprint"]


def test_arrays_of_two_stores_are_not_taken_for_one_another(made):
    """Xarray once gave Dask arrays of one name in several groups one key: the difference of two subjects was 0."""
    study, filled = made
    paths = ("responses/subj01/averaged", "responses/subj02/averaged")
    expected = abs(filled[paths[0]]["response"] - filled[paths[1]]["response"])
    for tree in (bdflow.open_study(study.path), xarray.open_datatree(study.path, engine="zarr", chunks={})):
        first, second = (tree[path].response for path in paths)
        np.testing.assert_array_equal(abs(first - second.data), expected)


def test_the_lines_of_the_readme_do_what_they_say(made):
    """With this study's place and an id of its own."""
    study, filled = made
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = next(block for block in blocks if "open_datatree" in block)
    one = str(filled["stimuli/shared"]["stimulus_id"][1])
    known = str(filled["metrics/other/mean"]["metric"][0])
    variant = str(filled["metrics/other/mean"]["variant"][0])
    for there, here in {"demo/study.zarr": str(study.path), "02050": one, "PixCorr": known, "full": variant}.items():
        assert f'"{there}"' in code
        code = code.replace(f'"{there}"', repr(here))
    matplotlib.use("agg")
    names: dict[str, object] = {}
    exec(code, names)
    expected = bdflow.open_study(study.path)["scores"].value
    xarray.testing.assert_equal(names["scores"].reindex_like(expected).transpose(*expected.dims), expected)
    pyplot.close("all")


def test_scores_of_all_subjects_are_one_array(made):
    study, filled = made
    value = bdflow.open_study(study.path)["scores"].value
    assert value.dims == ("painter", "subject", "variant", "metric", "stimulus_id")
    assert value.chunks is not None
    assert value.painter.values.tolist() == ["brain_diffuser", "other"]
    stores = {path: content for path, content in filled.items() if kind(path) == "metrics"}
    assert set(value.subject.values) == {path.split("/")[2] for path in stores} == {"subj01", "subj02", "mean", "true"}
    known = 0
    for path, content in stores.items():
        _, painter, subject = path.split("/")
        labels = {name: content[name].tolist() for name in ("variant", "metric", "stimulus_id")}
        here = value.sel(painter=painter, subject=subject, **labels)
        np.testing.assert_array_equal(here, content["value"], err_msg=path)
        known += int(np.isfinite(content["value"]).sum())
    assert int(np.isfinite(value).sum()) == known, "what no store holds is not a number"
    mean = value.sel(painter="other", subject="mean")
    assert np.isnan(mean.isel(stimulus_id=TEST - 1)).all(), "not painted from the mean of subjects"
