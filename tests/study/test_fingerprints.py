"""Every field of the configuration is changed in turn: which kinds of stores become stale stands in stale.yaml.

A new field without a row there fails. To write the table anew after a change that is meant: `python -m
tests.study.test_fingerprints TABLE_FILE NSD_FOLDER`, and read the difference.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

from bdflow.config import Config, parse
from bdflow.models.weights.manifest import SAME
from bdflow.pipeline import STAGES
from bdflow.study.graph import Graph
from bdflow.study.keys import kind
from tests.conftest import painter, small_settings, spaces

TABLE = Path(__file__).with_name("stale.yaml")
TINY = Path(__file__).parents[2] / "bdflow/models/tiny"


def everything(nsd: Path, root: Path) -> dict[str, Any]:
    """A configuration in which every kind of store is made, and every optional section is filled."""
    np.save(root / "mask.npy", np.ones(3))
    return small_settings(
        nsd,
        root,
        ridge={"choose": "per_space", "standardise": "held_out", "weights": True, "validation": {"method": "k_fold"}},
        spaces=spaces(vdvae={"choose": "fixed"}, clip_text={"choose": "fixed", "alpha": None}),
        painters=painter(
            variants=["full", "only_vdvae", "no_clip_vision"],
            guess="vdvae",
            vision="clip_vision",
            text="clip_text",
            pictures=2,
            select="best",
            select_by="clip_vision",
            controls=["prior", "retrieval", "mean_image"],
        ),
        reconstruct={"subject_mean": True, "upper_bound": True},
        evaluate={"metrics": ["PixCorr", "SSIM", "CLIP (bundle)"]},
        roi={"sets": {"areas": ["V1", "mine"]}, "masks": {"mine": {"subj01": str(root / "mask.npy")}}},
        encode={"sets": {"both": ["vdvae", "clip_text"]}},
    )


def others(nsd: Path, root: Path) -> dict[str, Any]:
    """Another value of each field for which none follows from its type."""
    if not (root / "nsd").exists():
        shutil.copytree(nsd, root / "nsd")
        shutil.copy(nsd / "COCO_73k_annots_curated.npy", root / "captions.npy")
        shutil.copytree(TINY, root / "bundle")
        (root / "split.txt").write_text("\n".join(map(str, range(3))))
        shutil.copy(root / "mask.npy", root / "same.npy")
    return {
        "study": str(root / "elsewhere.zarr"),
        "subjects": ["subj01"],
        "dataset.kind": "bdflow.datasets.nsd:NSDDataset",
        "dataset.root": str(root / "nsd"),
        "dataset.captions": str(root / "captions.npy"),
        "dataset.sessions": 2,
        "dataset.preparation": None,
        "dataset.space": None,
        "dataset.mask": "prf-visualrois",
        "dataset.split": str(root / "split.txt"),
        "dataset.options": {"atlases": ["streams"]},
        "networks.bundle": str(root / "bundle"),
        "networks.device": "cuda",
        "spaces.vdvae.encoder": "bdflow.models.encoders:VDVAEEncoder",
        "spaces.vdvae.options": {"latent": "mean"},
        "spaces.vdvae.ridge.choose": "per_target",
        "spaces.vdvae.ridge.standardise": "none",
        "spaces.vdvae.ridge.rows": "trials",
        "spaces.vdvae.ridge.intercept": False,
        "spaces.vdvae.ridge.regions": "V1",
        "ridge.regions": "V1 | V2",
        "ridge.validation.method": "leave_one_out",
        "painters.brain_diffuser.select_by": "vdvae",
        "painters.brain_diffuser.controls": ["prior"],
        "painters.brain_diffuser.retrieve_by": "clip_text",
        "painters.brain_diffuser.kind": "bdflow.models.painters:VersatileDiffusionKind",
        "painters.brain_diffuser.guess": "clip_text",
        "painters.brain_diffuser.vision": "clip_text",
        "painters.brain_diffuser.text": "clip_vision",
        "painters.brain_diffuser.variants": ["full"],
        "painters.brain_diffuser.guidance_interval": [0.1, 0.9],
        "evaluate.metrics": ["PixCorr", "CLIP (bundle)"],
        "evaluate.weights": str(root),
        "roi.sets": {"areas": ["V2", "mine"]},
        "roi.masks": {"mine": {"subj01": str(root / "same.npy")}},
        "encode.spaces": ["vdvae"],
        "encode.sets": {"both": ["vdvae", "clip_vision"]},
        "encode.grid": [1.0],
        "encode.components": {"vdvae": 3},
        "ridge.grid": [1.0, 2.0],
        "spaces.vdvae.ridge.grid": [1.0, 2.0],
        "roi.strengths": [2.0],
        "report.path": str(root / "other"),
        "execution": {"features": {"executor": "ray", "workers": 3, "threads": 2, "gpus": 1, "memory": "4 GiB"}},
        "cluster": {"kind": "slurm", "dashboard": True},
    }


WITHOUT = {"spaces.vdvae.decode": ("painters", "spaces.vdvae.ridge")}
"""Fields that are changed without sections that need them as they are."""
REFUSED = {"painters.brain_diffuser.options": "of a painter of one's own: others refuse it"}
NOT_PLAIN = {
    "networks.bundle",
    *(f"painters.brain_diffuser.{name}" for name in ("kind", "guess", "vision", "text", "variants", "options")),
    "painters.brain_diffuser.guidance_interval",
    *(f"painters.brain_diffuser.{name}" for name in ("select_by", "controls", "retrieve_by")),
}
"""What has no other value of its type, and of which it is known that it shapes content."""


def fields(model: type[BaseModel], content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field, with its annotation; of sections by name, those of the first; `execution` and `cluster` whole."""
    for name, field in model.model_fields.items():
        key = prefix + name
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_section(kind)]
        if not inner or key in ("execution", "cluster"):
            yield key, field.annotation
        elif inner[0] is field.annotation:
            yield from fields(inner[0], content.get(name) or {}, f"{key}.")
        else:
            first = next(iter(content[name]))
            yield from fields(inner[0], content[name][first], f"{key}.{first}.")


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def value_at(config: BaseModel, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


def another(annotation: Any, value: Any) -> Any:
    """Another value of a field, from its type."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if get_origin(kind) is Literal]
    if kinds:
        return next(choice for choice in get_args(kinds[0]) if choice != value)
    if isinstance(value, bool) or (value is None and bool in _leaves(annotation)):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.9
    if value is None and float in _leaves(annotation):
        return 700.0
    if value is None and int in _leaves(annotation):
        return 3
    raise AssertionError(f"no other value of {annotation} is known for {value!r}: add one to `others`")


def _leaves(annotation: Any) -> list[Any]:
    found = [annotation]
    for inner in get_args(annotation):
        found += _leaves(inner)
    return found


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one value replaced."""
    name, _, rest = key.partition(".")
    return content | {name: changed(content.get(name) or {}, rest, value) if rest else value}


def stale(nsd: Path, root: Path) -> dict[str, list[str]]:
    """By field, the kinds of stores whose fingerprint another value changes, or that appear or go."""
    content, special = everything(nsd, root), others(nsd, root)
    base = parse(content)
    before = {key: made.fingerprint for key, made in Graph(base, STAGES.values()).provenances().items()}
    found = {}
    for key, annotation in fields(Config, content):
        if key in REFUSED or (key in special and special[key] is None):
            found[key] = [REFUSED.get(key, "another folder of files: their content counts")]
            continue
        value = special[key] if key in special else another(annotation, value_at(base, key))
        kept = content
        for section in WITHOUT.get(key, ()):
            kept = changed(kept, section, {})
        config = parse(changed(kept, key, value))
        after = {name: made.fingerprint for name, made in Graph(config, STAGES.values()).provenances().items()}
        found[key] = sorted({kind(name) for name in before if name in after and before[name] != after[name]})
    return found


@pytest.fixture(scope="module")
def found(nsd, tmp_path_factory) -> dict[str, list[str]]:
    return stale(nsd, tmp_path_factory.mktemp("fingerprints"))


def test_every_field_makes_stale_what_the_table_says(found):
    assert found == yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def test_paths_and_places_are_no_part_of_content(found):
    paths = (
        "dataset.root",
        "dataset.captions",
        "networks.bundle",
        "roi.masks",
        "study",
        "report.path",
        "evaluate.weights",
    )
    assert {key: found[key] for key in paths} == {key: [] for key in paths}
    assert found["execution"] == found["cluster"] == []


def keys_that_differ(content: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Stores of both configurations that another one makes stale."""
    before, after = (
        {key: made.fingerprint for key, made in Graph(parse(of), STAGES.values()).provenances().items()}
        for of in (content, other)
    )
    return {key for key in before if key in after and before[key] != after[key]}


@pytest.fixture(scope="module")
def full(nsd, tmp_path_factory) -> dict[str, Any]:
    return everything(nsd, tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize("penalty", [{"alpha": 301}, {"choose": "fixed", "alpha": 7}, {"grid": [1.0, 2.0]}])
def test_a_penalty_of_one_space_leaves_the_predictions_of_the_others(full, penalty):
    space = "clip_vision" if "grid" in penalty or "choose" in penalty else "vdvae"
    ridge = full["spaces"][space]["ridge"] | penalty
    changed_spaces = full["spaces"] | {space: full["spaces"][space] | {"ridge": ridge}}
    stale = keys_that_differ(full, full | {"spaces": changed_spaces})
    of_spaces = {key.split("/")[-1] for key in stale if kind(key) in ("predictions", "weights", "importance")}
    assert of_spaces == {space}
    assert not [key for key in stale if kind(key) == "selection" and not key.endswith(space)]


def test_the_order_of_subjects_is_no_part_of_content(full):
    assert keys_that_differ(full, full | {"subjects": full["subjects"][::-1]}) == set()


def test_how_a_store_is_cut_leaves_those_made_from_it(full):
    for name, own in (
        ("stimuli", {"stimuli", "targets"}),
        ("columns", {"targets", "selection", "predictions", "weights"}),
    ):
        stale = keys_that_differ(full, full | {"chunks": full["chunks"] | {name: 3}})
        assert {kind(key) for key in stale} == own


def test_a_mixing_that_a_variant_does_not_use_leaves_its_pictures(full):
    painter_settings = full["painters"]["brain_diffuser"]
    stale = keys_that_differ(full, full | {"painters": {"brain_diffuser": painter_settings | {"mixing": 0.9}}})
    pictures = {key.split("/")[-1] for key in stale if kind(key) == "reconstructions"}
    assert pictures == {"full", "prior"}, "the prior takes the pictures of full"


@pytest.fixture(scope="module")
def both(full) -> dict[str, Any]:
    """Of both systems."""
    spaces = {"z": {"encoder": "sd_vae"}, "c": {"encoder": "sd_text"}}
    spaces["z_c"] = {"encoder": "sd_denoising", "decode": False}
    painter = {"kind": "stable_diffusion", "guess": "z", "vision": None, "text": "c", "variants": ["full", "only_c"]}
    return full | {"spaces": full["spaces"] | spaces, "painters": full["painters"] | {"takagi": painter}}


READERS = {
    "vdvae": {"targets/vdvae", "guesses/brain_diffuser", "rois/guesses/brain_diffuser"},
    "clip_vision": {
        "targets/clip_vision",
        "judges/clip_bundle",
        "reconstructions/brain_diffuser",
        "selected/brain_diffuser",
    },
    "clip_text": {"targets/clip_text", "reconstructions/brain_diffuser"},
    "unet": {"reconstructions/brain_diffuser"},
    "vae": {"reconstructions/brain_diffuser"},
    "sd_unet": {"targets/z_c", "reconstructions/takagi"},
    "sd_vae": {"targets/z", "targets/z_c", "guesses/takagi", "rois/guesses/takagi", "reconstructions/takagi"},
    "sd_text": {"targets/c", "targets/z_c", "reconstructions/takagi"},
    "scheduler": {"targets/z_c", "reconstructions/brain_diffuser", "reconstructions/takagi"},
}
"""The stores that a network of the bundle is read for, without parts, subjects and variants; pictures of regions as
reconstructions."""


def readers(content: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The stores, as in READERS, of which an input differs."""
    before, after = (
        {key: made.inputs for key, made in Graph(parse(of), STAGES.values()).provenances().items()}
        for of in (content, other)
    )
    found = set()
    for key in (key for key in before if before[key] != after[key]):
        first, *rest = key.split("/")
        if first == "rois":
            painted = {"images": "reconstructions", "guesses": "rois/guesses"}[rest[-2]]
            found.add(f"{painted}/{rest[-1]}")
        else:
            found.add(f"{first}/{rest[0]}")
        assert not key.endswith("only_vdvae"), "a guess at the size of pictures is no network's"
    return found


@pytest.fixture
def apart(tmp_path) -> Path:
    """The tiny bundle with weights of its own for each network."""
    root = Path(shutil.copytree(TINY, tmp_path / "bundle"))
    manifest = json.loads((root / "manifest.json").read_text())
    networks = manifest["networks"]
    for name, of in SAME.items():
        networks[name] = json.loads(json.dumps(networks[of]))
        weights = networks[name]["files"]["weights"]
        shutil.copy(root / weights["path"], root / f"{name}.safetensors")
        weights["path"] = f"{name}.safetensors"
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.mark.parametrize("network", READERS)
def test_a_network_is_an_input_of_the_stores_that_it_is_read_for_alone(both, apart, network):
    other = changed(both, "networks.bundle", str(apart))
    assert keys_that_differ(both, other) == set()
    files = json.loads((apart / "manifest.json").read_text())["networks"][network]["files"]
    path = next(file["path"] for role, file in files.items() if role.endswith("weights") or len(files) == 1)
    (apart / path).write_bytes((apart / path).read_bytes() + b" ")
    assert readers(both, other) == READERS[network]


def test_what_else_a_bundle_holds_makes_nothing_stale(full, tmp_path):
    """Nor its name, licence and the names of its files."""
    root = Path(shutil.copytree(TINY, tmp_path / "bundle"))
    manifest = json.loads((root / "manifest.json").read_text())
    manifest |= {"name": "another", "source": "elsewhere"}
    (root / "vdvae/model.safetensors").rename(root / "renamed.safetensors")
    manifest["networks"]["vdvae"]["files"]["weights"]["path"] = "renamed.safetensors"
    manifest["networks"]["vdvae"]["licence"] = "MIT"
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert keys_that_differ(full, changed(full, "networks.bundle", str(root))) == set()
    manifest["networks"]["vdvae"]["config"]["num_mixtures"] = 4
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert readers(full, changed(full, "networks.bundle", str(root))) == READERS["vdvae"]


ROUNDS = {
    "features.batch_size": {"targets", "selected"},
    "networks.device": {"targets", "guesses", "reconstructions", "selected", "rois", "judges", "similarities"},
    "networks.speed.joint_guidance": {"reconstructions", "rois"},
    "networks.speed.cached_conditions": {"reconstructions", "rois"},
    "networks.speed.channels_last": {"reconstructions", "rois"},
    "networks.speed.attention": {"reconstructions", "rois"},
    "networks.speed.compile": {"reconstructions", "rois"},
    "painters.brain_diffuser.batch_size": {"guesses", "reconstructions", "rois"},
    "painters.brain_diffuser.encode_batch_size": {"reconstructions", "rois"},
    "painters.brain_diffuser.decode_batch_size": {"reconstructions", "rois"},
    "execution.regress.gpus": {"validation", "selection", "decoders", "predictions", "weights"},
    "execution.encode.gpus": {"encoding", "encoding_sets"},
}
"""Settings that are no part of content and decide how values round in half precision, and of which kinds of stores."""

COARSE = {"painters.brain_diffuser.linear": {"reconstructions", "rois"}}
"""What makes float32 as coarse as half precision, so that more is recorded."""


def arithmetic(content: dict[str, Any]) -> dict[str, Any]:
    return {key: decl.arithmetic for key, decl in Graph(parse(content), STAGES.values()).decls.items()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_decides_how_values_round_is_recorded(full, dtype):
    """In half precision all of it; in float32 the device alone, since the rest moves values by rounding (0026)."""
    full = changed(full, "networks.vdvae_dtype", dtype)
    content, base = changed(full, "networks.dtype", dtype), parse(changed(full, "networks.dtype", dtype))
    content = changed(content, "painters.brain_diffuser.encode_batch_size", 4)
    before, found = arithmetic(content), {}
    annotations = {key: of for key, of in fields(Config, content) if key not in ("execution", "cluster")}
    for stage in STAGES:
        annotations |= {f"execution.{stage}.{name}": None for name in ("gpus", "workers", "threads")}
    special = {"networks.device": "cuda", **{key: 2 for key in annotations if key.startswith("execution.")}}
    for key, annotation in annotations.items():
        if key.split(".")[0] not in ("networks", "features", "painters", "execution") or key.endswith("dtype"):
            continue
        if key in NOT_PLAIN:
            continue
        value = special[key] if key in special else another(annotation, value_at(base, key))
        stage, _, name = key.rpartition(".")
        beside = changed(content, f"{stage}.executor", "dask") if name == "workers" else content
        after = arithmetic(changed(beside, key, value))
        kinds = {kind(name) for name in before if name in after and before[name] != after[name]}
        if kinds:
            found[key] = kinds
    always = ("networks.device", "execution.regress.gpus", "execution.encode.gpus")
    expected = ROUNDS if dtype != "float32" else {key: ROUNDS[key] for key in always} | COARSE
    assert found == expected


if __name__ == "__main__":
    import tempfile

    table, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as where:
        table.write_text(yaml.safe_dump(stale(folder, Path(where)), sort_keys=False), encoding="utf-8")
