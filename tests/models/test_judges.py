"""Judging networks: the real architectures with random weights, against the same layers computed step by step."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

from bdflow.config import TAKAGI_METRICS
from bdflow.errors import InputError
from bdflow.models.judges import weights
from bdflow.models.judges.networks import bundle_clip, load_network, load_panel
from bdflow.models.judges.weights import JUDGE_OF, JUDGES, OPENAI_CLIP, Weights, find_weights
from bdflow.models.weights.bundle import open_bundle
from tests.support.plain_torchvision import import_torchvision

VIT_L_14 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
SHALLOW = VIT_L_14 | {"num_hidden_layers": 2}


@pytest.fixture(scope="module", autouse=True)
def torchvision():
    return import_torchvision()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Two pictures larger than what the networks take, smooth enough for resizing to keep something."""
    coarse = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((425, 425))) for image in coarse])


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations of ordinary size, and batch statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            spread = 1.4 / np.sqrt(value[0].numel()) if value.ndim > 1 else 0.1
            offset = 1.0 if value.ndim == 1 and name.endswith(("weight", "running_var")) else 0.0
            value.data = offset + spread * torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.data = value.data.abs() + 0.1
    return module.eval().requires_grad_(False)


def as_the_authors(pictures: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], size: int = 224) -> Tensor:
    """The authors' preprocessing: torchvision's transforms on PIL images."""
    from torchvision.transforms import functional

    rows = [functional.to_tensor(functional.resize(Image.fromarray(image), [size, size])) for image in pictures]
    return torch.stack([functional.normalize(row, list(mean), list(std)) for row in rows])


def alexnet(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    conv = [layer for layer in model.features if isinstance(layer, nn.Conv2d)]
    x = torch.relu(nn.functional.conv2d(x, conv[0].weight, conv[0].bias, stride=4, padding=2))
    x = nn.functional.max_pool2d(x, 3, 2)
    second = torch.relu(nn.functional.conv2d(x, conv[1].weight, conv[1].bias, padding=2))
    x = nn.functional.max_pool2d(second, 3, 2)
    for layer in conv[2:]:
        x = torch.relu(nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    return {"AlexNet(2)": second, "AlexNet(5)": x}


def takagi_alexnet(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Behind the pooling, and the second fully connected layer after its ReLU."""
    seen = alexnet(model, x)
    second, fifth = (nn.functional.max_pool2d(seen[f"AlexNet({layer})"], 3, 2) for layer in (2, 5))
    pooled = nn.functional.adaptive_avg_pool2d(fifth, (6, 6)).flatten(1)
    linear = [layer for layer in model.classifier if isinstance(layer, nn.Linear)]
    fc7 = torch.relu(linear[1](torch.relu(linear[0](pooled))))
    return {"Takagi AlexNet(2)": second, "Takagi AlexNet(5)": fifth, "Takagi AlexNet(fc7)": fc7}


def takagi_inception_v3(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"Takagi Inception": inception_v3(model, x)["Inception"]}


def inception_v3(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """From ImageNet's normalisation back to [0, 1], then to Inception's own [-1, 1]: what `transform_input` means."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in weights.IMAGENET)
    x = ((x * std + mean) - 0.5) / 0.5
    for name, layer in model.named_children():
        if name == "avgpool":
            break
        if name != "AuxLogits":
            x = layer(x)
    return {"Inception": x.mean((2, 3))}


def efficientnet_b1(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"EffNet-B": model.features(x).mean((2, 3))}


def swav(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = model.maxpool(torch.relu(model.bn1(model.conv1(x))))
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
    return {"SwAV": x.mean((2, 3))}


STEPS: dict[str, Callable[[nn.Module, Tensor], dict[str, Tensor]]] = {
    "alexnet": alexnet,
    "inception_v3": inception_v3,
    "efficientnet_b1": efficientnet_b1,
    "swav": swav,
    "takagi_alexnet": takagi_alexnet,
    "takagi_inception_v3": takagi_inception_v3,
}


def published(name: str, folder: Path) -> nn.Module:
    """A network of random weights, and its weights in a file like the published one."""
    from torchvision import models

    network = JUDGES[name].network
    if network == "swav":
        model = randomise(models.resnet50())
        content = {f"module.{key}": value for key, value in model.state_dict().items() if not key.startswith("fc.")}
        content |= {
            "module.projection_head.0.weight": torch.ones(2048, 2048),
            "module.prototypes.weight": torch.ones(9),
        }
    else:
        options = {"init_weights": False, "transform_input": False} if network == "inception_v3" else {}
        model = randomise(getattr(models, network)(**options))
        content = model.state_dict()
    torch.save(content, folder / JUDGES[name].file)
    return model


@pytest.mark.parametrize("name", sorted(STEPS))
def test_layers_and_preprocessing_are_those_of_the_real_architecture(name, pictures, tmp_path):
    model = published(name, tmp_path)
    found = find_weights(name, tmp_path)
    assert found == Weights((tmp_path / JUDGES[name].file,))
    judge = load_network(name, found)
    seen = load_panel({name: found})(pictures)
    x = as_the_authors(pictures, *weights.IMAGENET, JUDGES[name].size)
    with torch.inference_mode():
        expected = STEPS[name](model, x)
    assert set(seen) == set(expected) == set(JUDGES[name].layers)
    for metric, values in expected.items():
        width = JUDGES[name].layers[metric][1]
        assert seen[metric].shape == (2, width)
        values = values.flatten(1)
        assert values.std() > 0.01
        assert not torch.allclose(values[0], values[1], rtol=0.01), "the layer tells pictures apart"
        torch.testing.assert_close(seen[metric], values, rtol=1e-4, atol=1e-5 * float(values.abs().max()))
    assert not judge.module.training


def clip_folder(folder: Path, config: dict, whole: bool = False) -> CLIPVisionModelWithProjection:
    """A directory like a copy of openai/clip-vit-large-patch14."""
    model = randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**config)))
    folder.mkdir(parents=True)
    weights = dict(model.state_dict())
    if whole:
        weights |= {
            "text_model.a": torch.ones(2),
            "text_projection.weight": torch.ones(2),
            "logit_scale": torch.ones(1),
        }
        (folder / "config.json").write_text(json.dumps({"vision_config": config, "projection_dim": 768}))
    else:
        (folder / "config.json").write_text(json.dumps(config))
    torch.save(weights, folder / "pytorch_model.bin")
    return model


def check_clip(model: CLIPVisionModelWithProjection, folder: Path, pictures: np.ndarray) -> None:
    found = find_weights("clip", folder)
    assert [file.name for file in found.files] == ["config.json", "pytorch_model.bin"]
    seen = load_panel({"clip": found})(pictures)["CLIP"]
    x = as_the_authors(pictures, *OPENAI_CLIP)
    with torch.inference_mode():
        tower = model.vision_model
        h = tower.embeddings.patch_embedding(x).flatten(2).transpose(1, 2)
        start = tower.embeddings.class_embedding.expand(len(h), 1, -1)
        h = torch.cat([start, h], dim=1) + tower.embeddings.position_embedding.weight
        h = tower.pre_layrnorm(h)
        for layer in tower.encoder.layers:
            h = h + layer.self_attn(layer.layer_norm1(h))[0]
            z = layer.mlp.fc1(layer.layer_norm2(h))
            h = h + layer.mlp.fc2(z * torch.sigmoid(1.702 * z))
        expected = tower.post_layernorm(h[:, 0]) @ model.visual_projection.weight.T
    assert seen.shape == (2, 768)
    assert not torch.allclose(expected[0], expected[1], rtol=0.01)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("whole", [False, True])
def test_clip_is_the_projected_class_token(whole, pictures, tmp_path):
    """Two of ViT-L/14's 24 layers; the tower alone, and a file that holds the text tower too."""
    model = clip_folder(tmp_path / "clip-vit-large-patch14", SHALLOW, whole)
    check_clip(model, tmp_path, pictures)


@pytest.mark.slow(kind="long checks")
def test_clip_vit_l_14_whole(pictures, tmp_path):
    model = clip_folder(tmp_path / "clip-vit-large-patch14", VIT_L_14)
    assert 303e6 < sum(p.numel() for p in model.parameters()) < 305e6
    check_clip(model, tmp_path, pictures)


def test_clip_of_takagi_and_nishimoto_takes_hidden_states_and_bicubic_pictures(pictures, tmp_path):
    """Against transformers' own list of hidden states, of pictures as CLIP's processor brings them to 224 px."""
    small = VIT_L_14 | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 13, "num_attention_heads": 2}
    model = clip_folder(tmp_path / "clip-vit-large-patch14", small)
    found = find_weights("takagi_clip", tmp_path)
    seen = load_panel({"takagi_clip": found})(pictures)
    assert set(seen) == set(JUDGES["takagi_clip"].layers)
    resized = [Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in pictures]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in OPENAI_CLIP)
    x = torch.stack([(torch.from_numpy(np.array(one)).permute(2, 0, 1) / 255 - mean) / std for one in resized])
    with torch.inference_mode():
        expected = model(pixel_values=x, output_hidden_states=True)
    layers = {"Takagi CLIP(6)": 6, "Takagi CLIP(12)": 12}
    wanted = {"Takagi CLIP": expected.image_embeds, **{m: expected.hidden_states[i] for m, i in layers.items()}}
    for metric, values in wanted.items():
        values = values.flatten(1)
        assert seen[metric].shape == values.shape
        torch.testing.assert_close(seen[metric], values, rtol=1e-4, atol=1e-5 * float(values.abs().max()))
    assert wanted["Takagi CLIP(6)"][0].numel() == 257 * 32
    assert JUDGES["takagi_clip"].layers["Takagi CLIP(6)"][1] == 257 * VIT_L_14["hidden_size"]
    assert not torch.allclose(seen["Takagi CLIP(6)"], seen["Takagi CLIP(12)"])


def test_the_clip_of_a_bundle_is_its_own(pictures):
    judge = bundle_clip("tiny")
    seen = load_panel({}, "tiny")(pictures)["CLIP (bundle)"]
    tower = open_bundle("tiny").clip_vision()
    size = tower.processing.size
    resized = np.stack(
        [np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR)) for i in pictures]
    )
    with torch.inference_mode():
        expected = tower.model(pixel_values=judge.prepare(resized)).image_embeds
    torch.testing.assert_close(seen, expected)
    assert seen.shape == (2, open_bundle("tiny").spaces["clip_vision"][1])


def test_a_panel_gives_what_each_judge_gives_alone(pictures, tmp_path):
    for name in ("alexnet", "swav"):
        published(name, tmp_path)
    weights = {name: find_weights(name, tmp_path) for name in ("alexnet", "swav")}
    together = load_panel(weights, "tiny")(pictures)
    assert list(together) == ["AlexNet(2)", "AlexNet(5)", "SwAV", "CLIP (bundle)"]
    for name, found in weights.items():
        for metric, values in load_panel({name: found})(pictures).items():
            torch.testing.assert_close(together[metric], values)


# --- where weights lie ------------------------------------------------------------------------------------------------


def test_weights_that_are_not_here_are_missing_and_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was tried"))
    for name, judge in JUDGES.items():
        found = find_weights(name)
        assert found.files == ()
        assert found.missing.startswith("no weights")
        assert judge.file in found.missing
        assert str(tmp_path) not in found.missing
    assert not list(tmp_path.iterdir())


def test_the_users_directory_comes_before_the_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "torch/hub/checkpoints" / JUDGES["alexnet"].file
    snapshot = tmp_path / "hub/models--openai--clip-vit-large-patch14/snapshots/abc"
    for place in (cached.parent, snapshot, snapshot.parents[1] / "refs"):
        place.mkdir(parents=True)
    cached.write_bytes(b"")
    (snapshot.parents[1] / "refs/main").write_text("abc")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes(b"")
    assert find_weights("alexnet").files == (cached,)
    assert find_weights("clip").files == (snapshot / "config.json", snapshot / "model.safetensors")
    assert find_weights("alexnet", tmp_path / "mine").files == (cached,)
    (tmp_path / "mine/clip-vit-large-patch14").mkdir(parents=True)
    (tmp_path / "mine" / cached.name).write_bytes(b"")
    assert find_weights("alexnet", tmp_path / "mine").files == (tmp_path / "mine" / cached.name,)
    assert find_weights("clip", tmp_path / "mine").files[0].parent == snapshot, "an incomplete directory is passed over"


def test_without_torchvision_its_judges_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    (tmp_path / JUDGES["swav"].file).write_bytes(b"")
    assert "torchvision is not installed" in find_weights("swav", tmp_path).missing


def test_a_file_of_another_network_is_refused(tmp_path):
    from torchvision import models

    torch.save(models.resnet18().state_dict(), tmp_path / JUDGES["alexnet"].file)
    with pytest.raises(InputError, match=r"differences(.|\n)*docs/weights.md"):
        load_network("alexnet", find_weights("alexnet", tmp_path))


def test_every_published_metric_has_its_judge():
    published = {"AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV"}
    assert set(JUDGE_OF) == published | set(TAKAGI_METRICS) == published | weights.AMONG_RECONSTRUCTIONS
