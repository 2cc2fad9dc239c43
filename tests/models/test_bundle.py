"""Bundles: the shipped one, both published layouts, and everything that can be wrong with one."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bdflow.config import PaintOptions
from bdflow.errors import InputError
from bdflow.models.latents import FeatureExtractor
from bdflow.models.versatile.painter import Painter
from bdflow.models.weights.bundle import TINY, check_bundle, describe_bundle, open_bundle
from bdflow.models.weights.manifest import FAMILIES, MANIFEST, STABLE, write_manifest
from bdflow.training import bundle

from .conftest import edit_manifest


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "bundle"))


def test_what_is_known_without_loading() -> None:
    code = (
        "import sys; from bdflow.models.weights.bundle import open_bundle; b = open_bundle('tiny');"
        "print(b.spaces, b.guess_size, b.image_size, b.layers[0], len(b.fingerprint));"
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spaces = "{'vdvae': (1988,), 'clip_vision': (65, 48), 'clip_text': (24, 48), 'sd_vae': (400,), 'sd_text': (24, 96)}"
    assert f"{spaces} 32 64 (4, 1, 1) 16" in done.stdout


def test_tiny_is_whole_and_small() -> None:
    assert check_bundle("tiny").problems == ()
    assert sum(p.stat().st_size for p in TINY.rglob("*") if p.is_file()) <= 10e6
    weights = [p.read_bytes() for p in TINY.rglob("*.safetensors")]
    assert len({hashlib.sha256(content).digest() for content in weights}) == len(weights), "no copies"


def test_description() -> None:
    found = describe_bundle("tiny")
    assert (found.name, found.licence, found.image_size) == ("tiny", "Apache-2.0", 64)
    networks = {network.name: network for network in found.networks}
    assert set(networks) == {"vdvae", "clip_vision", "clip_text", "unet", "vae", "scheduler", *FAMILIES[STABLE]}
    module = open_bundle("tiny").build("unet")
    assert networks["unet"].parameters == sum(value.numel() for value in module.parameters())
    assert networks["unet"].dtypes == ("float16",)
    assert all(size > 0 for network in found.networks for _, size in network.files)


def test_check_lists_everything_at_once(copy: Path) -> None:
    (copy / "image_encoder" / "model.safetensors").unlink()
    with (copy / "text_encoder" / "model.safetensors").open("ab") as file:
        file.write(b"more")
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_in.bias"]
    weights["decoder.conv_out.bias"] = torch.zeros(5)
    weights["stranger"] = torch.zeros(1)
    save_file(weights, path)
    vdvae = copy / "vdvae" / "model.safetensors"
    content = bytearray(vdvae.read_bytes())
    content[-1] ^= 1
    vdvae.write_bytes(content)

    def accept_vae(networks: dict[str, Any]) -> None:
        networks["vae"]["files"]["weights"] = {
            "path": path.relative_to(copy).as_posix(),
            "bytes": path.stat().st_size,
        }

    edit_manifest(copy, accept_vae)
    report = check_bundle(copy)
    assert not report.ok
    text = "\n".join(report.problems)
    for part in (
        "image_encoder/model.safetensors: missing file",
        "text_encoder/model.safetensors: found",
        "missing tensor decoder.conv_in.bias",
        "misshapen tensor decoder.conv_out.bias: found [5], expected [3]",
        "extra tensor stranger",
        "vdvae/model.safetensors: found SHA-256",
    ):
        assert part in text
    assert len(report.problems) == 6


def test_a_network_of_another_size_is_refused(copy: Path) -> None:
    edit_manifest(copy, lambda networks: networks["vdvae"]["config"].update(width=32))
    with pytest.raises(InputError, match=r"misshapen tensor encoder.in_conv.weight"):
        open_bundle(copy).vdvae()
    assert any("misshapen" in line for line in check_bundle(copy).problems)


def test_swapped_networks_are_refused(copy: Path) -> None:
    shutil.copy(copy / "vae" / "diffusion_pytorch_model.safetensors", copy / "vdvae" / "model.safetensors")
    with pytest.raises(InputError, match="missing tensor encoder"):
        open_bundle(copy).vdvae()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda n: n.pop("vae"), "network vae is missing"),
        (lambda n: n["vae"].update(layout="odd"), "layout 'odd'"),
        (lambda n: n["vae"]["files"].pop("weights"), "no file in the role weights"),
        (lambda n: n["vae"]["files"].update(more={"path": "x", "bytes": 1}), "unknown role more"),
        (lambda n: n["vae"]["files"]["weights"].update(path="../x"), "outside the bundle"),
        (lambda n: n["vae"]["files"]["weights"].pop("bytes"), "needs `path` and `bytes`"),
        (lambda n: n.update(vqgan={}), "network 'vqgan'"),
        (lambda n: n.update(sd_vae={"same_as": "clip_text"}), "sd_vae: same_as 'clip_text', where only vae may stand"),
        (lambda n: n.update(vae={"same_as": "sd_vae"}), "vae: same_as 'sd_vae', where no network may stand"),
        (lambda n: n.update(sd_vae={"same_as": "vae", "files": {}}), "sd_vae: files beside same_as"),
        (lambda n: (n.update(sd_vae={"same_as": "vae"}), n.pop("vae")), "sd_vae: same_as vae, which is missing"),
    ],
)
def test_a_wrong_manifest_is_refused(copy: Path, change: Any, found: str) -> None:
    edit_manifest(copy, change)
    with pytest.raises(InputError, match=found):
        open_bundle(copy)
    assert found.split("'")[0] in check_bundle(copy).problems[0]


def test_wrong_settings_are_refused(copy: Path) -> None:
    edit_manifest(copy, lambda networks: networks["vdvae"]["config"].update(wdith=32))
    with pytest.raises(InputError, match="wdith"):
        open_bundle(copy).layers
    with pytest.raises(InputError, match="float8"):
        open_bundle("tiny").vdvae(dtype="float8")


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        open_bundle(tmp_path / "none")
    with pytest.raises(InputError, match=r"no manifest\.json"):
        open_bundle(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        open_bundle(tmp_path)


def test_fingerprint_follows_the_content(copy: Path) -> None:
    before = open_bundle("tiny").fingerprint
    assert open_bundle(copy).fingerprint == before
    path = copy / "vdvae" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    assert open_bundle(copy).fingerprint != before


def pictures(bundle: Path | str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    images = np.random.default_rng(1).integers(0, 256, (2, 425, 425, 3), dtype=np.uint8)
    latents = FeatureExtractor(bundle)(images, [["a red ball"], ["two birds above the sea"]], [3, 4])
    painter = Painter(bundle, options=PaintOptions(steps=4))
    guesses = painter.guess(latents["vdvae"], "subj01", [3, 4])
    return latents, painter.paint(guesses, latents["clip_vision"], latents["clip_text"], "subj01", [3, 4])


def test_the_authors_files_give_the_same_pictures(authors_bundle: Path) -> None:
    assert check_bundle(authors_bundle).problems == ()
    theirs, ours = pictures(authors_bundle), pictures("tiny")
    for space, latent in ours[0].items():
        np.testing.assert_array_equal(theirs[0][space], latent if space != "vdvae" else theirs[0][space])
        np.testing.assert_allclose(theirs[0][space], latent, atol=1e-5)
    np.testing.assert_array_equal(theirs[1], ours[1])


def test_the_diffusers_directory_is_recognised(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    (copy / "vdvae" / "model.safetensors").unlink()
    weights = load_file(TINY / "vdvae" / "model.safetensors")
    torch.save(weights, copy / "imagenet64-iter-1600000-model-ema.th")
    for folder in ("vae", "text_unet"):
        path = copy / folder / "diffusion_pytorch_model.safetensors"
        state = load_file(path)
        if folder == "vae":  # attention names before diffusers 0.18
            old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
            for new, name in old.items():
                state = {key.replace(new, name): value for key, value in state.items()}
        else:
            state["down_blocks.0.resnets.0.conv1.weight"] = torch.zeros(3)
        torch.save(state, path.with_suffix(".bin"))
        path.unlink()
    write_manifest(copy, "real")
    edit_manifest(copy, lambda networks: networks["vdvae"].update(config=bundle.VDVAE))
    assert check_bundle(copy).problems == ()
    assert open_bundle(copy).name == "real"
    np.testing.assert_array_equal(pictures(copy)[1], pictures("tiny")[1])


def test_what_is_missing_for_a_manifest_is_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        write_manifest(tmp_path)
    for name in ("imagenet64-iter-1600000-model-ema.th", "vd-four-flow", "kl-f8.pth", "vocab.json"):
        assert name in str(error.value)


def test_a_pickled_payload_in_a_bundle_is_refused(authors_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(authors_bundle, tmp_path / "bundle"))
    torch.save({"run": json.JSONDecoder}, root / "kl-f8.pth")
    size = (root / "kl-f8.pth").stat().st_size
    edit_manifest(root, lambda networks: networks["vae"]["files"]["weights"].update(bytes=size))
    (problem,) = check_bundle(root).problems
    assert "kl-f8.pth" in problem
    assert "nothing was run" in problem
