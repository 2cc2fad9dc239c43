"""The demo as a newcomer runs it: how long, how much memory, and what is there at its end."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray

from bdflow.benchmarks.machine import PeakMemory
from tests.support.browser import opened

BDFLOW = Path(sys.executable).with_name("bdflow")
GIB = 2**30


def check_report(page: Path, tree: xarray.DataTree) -> None:
    """In a browser: every stimulus with both systems' pictures of all subjects, the mean and the bound."""
    names = ["subj01", "subj02", "subj05", "subj07", "mean of predictions", "true latents"]
    first = ["brain_diffuser/guess", "brain_diffuser/full", "stable_diffusion/guess", "stable_diffusion/full"]
    others = [f"brain_diffuser/{name}" for name in ("only_vdvae", "no_vdvae", "no_clip_text", "no_clip_vision")]
    others += ["stable_diffusion/only_z", "stable_diffusion/only_c"]
    with opened(page) as browser:
        assert [div.text for div in browser.all("#heads div") if div.text] == ["shown", *names]
        assert browser.pressed("#variants") == first
        for variant in others:
            browser.press("#variants button", variant)
        assert browser.pressed("#variants") == [*first[:2], *others[:4], *first[2:], *others[4:]]
        browser.find("building")
        found, total = [int(word) for word in browser.one("#count").text.split() if word.isdigit()][:2]
        assert 0 < found < total
        browser.find("")
        browser.press("#order button", "worst first")
        order, pictures = [], 0
        while True:  # page after page
            order += browser.order()
            count, broken = browser.pictures()
            assert broken == []
            pictures += count
            further = browser.one("#below .on")
            if not further.is_enabled():
                break
            further.click()
        value = np.mean([tree[f"metrics/brain_diffuser/{name}"].value.values[0, 0] for name in names[:4]], axis=0)
        score = dict(
            zip(tree["metrics/brain_diffuser/subj01"].stimulus_id.values.tolist(), value.tolist(), strict=True)
        )
        assert sorted(order) == sorted(score)
        steps = np.diff([score[stimulus_id] for stimulus_id in order])
        assert steps.min() > -2e-4, "worst first; the page knows four digits"
        assert pictures == total * (1 + len(names) * (len(first) + len(others)))
        assert browser.loaded_from() == {"file:"}
        assert browser.complaints() == []


@pytest.mark.slow(kind="long checks")
@pytest.mark.timeout(900)
def test_the_demo_ends_with_a_report_in_bounded_memory(tmp_path):
    process = psutil.Popen(
        [str(BDFLOW), "demo"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with PeakMemory(process) as memory:
        out, err = process.communicate(timeout=800)
    print(f"demo: peak {memory.peak / GIB:.2f} GiB")
    assert process.returncode == 0, err[-3000:]
    assert "demo/report/index.html" in out
    tree = xarray.open_datatree(tmp_path / "demo/study.zarr", engine="zarr", chunks={})
    for painter in ("brain_diffuser", "stable_diffusion"):
        assert tree[f"reconstructions/{painter}/subj07/full"].image.sizes["stimulus_id"] >= 60
    check_report(tmp_path / "demo/report/index.html", tree)
    assert memory.peak < 6 * GIB
    again = subprocess.run([str(BDFLOW), "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert "reconstructions:" not in again.stderr, "a second demo computes nothing"
