"""Blocks packed into tasks; what a worker has to say reaches the user; dead workers change no picture."""

import numpy as np
import pytest
import torch

from bdflow.config import load, parse
from bdflow.errors import InputError
from bdflow.models.painters import painter_kind
from bdflow.models.versatile.unet import VersatileDiffusion
from bdflow.pipeline import Pipeline
from bdflow.stages.reconstruct.stage import Reconstruct
from bdflow.stores import Store
from bdflow.study.painting import packs
from tests.conftest import SUBJECTS
from tests.support import logs


@pytest.mark.parametrize(
    ("sizes", "batch", "expected"),
    [
        ([16, 16, 6, 16, 16, 6], 16, [[0], [1], [3], [4], [2, 5]]),  # remainders of two subjects together
        ([16, 16, 16, 16], 32, [[0, 1], [2, 3]]),
        ([16] * 6, 24, [[0, 1, 2], [3, 4, 5]]),
        ([32, 32], 8, [[0], [1]]),
        ([4, 2, 4, 2], 4, [[0], [2], [1, 3]]),
        ([16] * 9, 7, [[n] for n in range(9)]),  # 32 would be more than four batches
        ([1] * 5, 4, [[0, 1, 2, 3], [4]]),
        ([], 8, []),
    ],
)
def test_packs_fill_batches(sizes, batch, expected):
    assert packs(enumerate(sizes), batch) == [tuple(pack) for pack in expected]


def painting_settings(config) -> dict:
    return painter_kind(config, "brain_diffuser").variant_settings("full")


def test_speed_and_batch_sizes_are_no_part_of_the_record_and_modes_are():
    base = load("demo")
    painter = "painters.brain_diffuser"
    for same in ("networks.speed.compile=max_autotune", "networks.speed.attention=plain",
                 f"{painter}.decode_batch_size=2", f"{painter}.encode_batch_size=3"):  # fmt: skip
        changed = load("demo", [same])
        assert changed.science() == base.science()
        assert painting_settings(changed) == painting_settings(base)
    for mode in ("solver=dpmpp_2m", "guidance_interval=[0.1, 0.9]", "feature_cache=2"):
        changed = load("demo", [f"painters.brain_diffuser.{mode}"])
        assert changed.science() != base.science()
        assert painting_settings(changed) != painting_settings(base)
    with pytest.raises(InputError, match="low below high"):
        load("demo", ["painters.brain_diffuser.guidance_interval=[0.9, 0.1]"])
    with pytest.raises(InputError, match=r"networks\.speed\.compile"):
        load("demo", ["networks.speed.compile=fast"])


@pytest.fixture(scope="module")
def decoded(settings, tmp_path_factory):
    """A study with predictions, and its reconstructions painted serially in batches of 4."""
    root = tmp_path_factory.mktemp("decoded")
    config = parse(settings(root))
    Pipeline(config).run(("ingest", "features", "regress", "reconstruct"))
    return config


def images(config) -> np.ndarray:
    return np.concatenate(
        [Store(config.study, f"reconstructions/brain_diffuser/{s}/full").read("image") for s in SUBJECTS]
    )


def test_remainders_of_subjects_share_a_task(decoded):
    """6 test stimuli a subject in blocks of 4: one task for each block of 4, one for both blocks of 2."""
    context = Pipeline(decoded).context()
    for subject in SUBJECTS:
        for partition in range(2):
            Store(decoded.study, f"reconstructions/brain_diffuser/{subject}/full").forget(partition)
    before = images(decoded)
    (step,) = [step for step in Reconstruct().steps(context) if step.label == "reconstructions"]
    one, two = SUBJECTS
    assert step.start().tasks == [("full", ((one, 0),)), ("full", ((two, 0),)), ("full", ((one, 1), (two, 1)))]
    Pipeline(decoded).run(("reconstruct",))
    np.testing.assert_array_equal(images(decoded), before)


def test_a_batch_out_of_memory_is_told_once_and_changes_no_picture(decoded, monkeypatch, caplog):
    before, whole = images(decoded), VersatileDiffusion.denoise
    for subject in SUBJECTS:
        for partition in range(2):
            Store(decoded.study, f"reconstructions/brain_diffuser/{subject}/full").forget(partition)

    def tight(self, x, *args, **kwargs):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, x, *args, **kwargs)

    monkeypatch.setattr(VersatileDiffusion, "denoise", tight)
    Pipeline(decoded).run(("reconstruct",))
    (line,) = [record.getMessage() for record in logs.records(caplog) if record.levelname == "WARNING"]
    assert "denoising: a batch of 4 did not fit" in line
    assert "from now on 2" in line
    assert np.abs(images(decoded).astype(int) - before).max() <= 1
