"""Kernels of attention that are measured: once a study and painter, in a store of their own, and never again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bdflow.cluster.progress import Progress
from bdflow.config import parse
from bdflow.models.diffusion.img2img import Img2Img
from bdflow.models.diffusion.kernels import BACKENDS, PARTS, TORCH, chosen
from bdflow.pipeline import Pipeline
from bdflow.serve.replicas import PicturePainter
from bdflow.stores import Study
from bdflow.study.painting import recorded_kernels
from tests.conftest import SUBJECTS, painter
from tests.support import logs

KEY = "attention/brain_diffuser"
REFUSED = float("nan")
FIRST = {"unet": (2.0, REFUSED, REFUSED, 1.0), "autoencoder": (2.0, REFUSED, REFUSED, 3.0)}
THEN = {"unet": (1.0, REFUSED, REFUSED, 2.0), "autoencoder": (3.0, REFUSED, REFUSED, 2.0)}


class Stopped(BaseException):
    """The driver is stopped."""


def played(times):
    return {part: dict(zip(BACKENDS, times[part], strict=True)) for part in PARTS}


@pytest.mark.slow(kind="made on another machine")
def test_what_was_measured_is_recorded_and_a_half_painted_study_goes_on_with_it(
    undisturbed: Path, settings, tmp_path, monkeypatch, caplog
):
    study = tmp_path / "study.zarr"
    shutil.copytree(undisturbed, study)
    shutil.rmtree(study / "reconstructions")
    shutil.rmtree(study / "guesses")
    used: list[dict[str, str]] = []
    attend = Img2Img.attend
    monkeypatch.setattr(Img2Img, "attend", lambda self, kernels: (used.append(dict(kernels)), attend(self, kernels))[1])
    config = parse(settings(tmp_path, networks={"bundle": "tiny", "speed": {"attention": "measured"}}))
    counted: list[str] = []
    advance = Progress.advance

    def stop(progress, completed):
        advance(progress, completed)
        counted.append(progress.label)
        if counted.count("reconstructions") == 1:
            raise Stopped

    def run(times, stopped=False):
        with monkeypatch.context() as patch:
            patch.setattr("bdflow.models.diffusion.inputs.measured", lambda *_: played(times))
            if stopped:
                patch.setattr(Progress, "advance", stop)
            Pipeline(config).run(["reconstruct"])

    with pytest.raises(Stopped):
        run(FIRST, stopped=True)
    pictures = Study(study).store(f"reconstructions/brain_diffuser/{SUBJECTS[0]}/full")
    assert len(pictures.missing()) > 0, "the test needs a store that is half painted"
    run(THEN)
    store = Study(study).store(KEY)
    assert store.sealed
    found = dict(zip(PARTS, (dict(zip(BACKENDS, row, strict=True)) for row in store.read("milliseconds")), strict=True))
    assert chosen(found) == chosen(played(FIRST)) == {"unet": "math", "autoencoder": "flash"}
    assert used[-1] == chosen(found), "what was measured first, not what would be measured now"
    assert Study(study).store(pictures.path).missing() == []
    assert Pipeline(config).verify() == []
    # what is served is painted as the study was, by every replica
    served = recorded_kernels(Pipeline(config).context(), "brain_diffuser")
    assert served == chosen(found)
    with monkeypatch.context() as patch:
        patch.setattr("bdflow.models.diffusion.inputs.measured", lambda *_: pytest.fail("measured again"))
        used.clear()
        PicturePainter(config, "brain_diffuser", served)
    assert used == [chosen(found)]
    other = parse(config.model_dump() | {"painters": painter(batch_size=3)})
    assert recorded_kernels(Pipeline(other).context(), "brain_diffuser") == dict.fromkeys(PARTS, TORCH)
    assert "this study has not measured it for these settings; torch chooses the kernels" in logs.text(caplog)
