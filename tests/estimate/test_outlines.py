"""What networks need, counted without weights and without computing anything."""

import pytest
import torch

from bdflow.estimate.outlines import PUBLISHED_VDVAE, counted_vdvae, flop_of, held
from bdflow.estimate.sizes import PUBLISHED
from bdflow.models.config import VDVAEConfig
from bdflow.models.weights.bundle import describe_bundle, open_bundle


def test_most_bytes_at_once() -> None:
    def work() -> torch.Tensor:
        first = torch.zeros(100, device="meta")
        second = first + 1  # 800 bytes
        del first
        third = second * 2
        del second
        return third.view(10, 10).T  # no memory of its own

    assert held(work) == 800
    assert held(lambda: [torch.zeros(10, device="meta") for _ in range(3)]) == 120
    assert flop_of(lambda: torch.zeros(3, 4, device="meta") @ torch.zeros(4, 5, device="meta")) == 2 * 3 * 4 * 5


@pytest.mark.slow(kind="networks counted")
def test_the_published_vdvae_is_what_its_architecture_is() -> None:
    found = counted_vdvae(VDVAEConfig())
    assert found.parameters == PUBLISHED_VDVAE.parameters
    assert found.values == PUBLISHED_VDVAE.values
    assert found.encoding == pytest.approx(PUBLISHED_VDVAE.encoding, rel=1e-4)
    assert found.decoding == pytest.approx(PUBLISHED_VDVAE.decoding, rel=1e-3)
    assert found.decoding == pytest.approx(PUBLISHED.guessing, rel=1e-3)
    assert found.values > 7 * 512 * 64 * 64, "seven maps as wide and as large as its last layers"


@pytest.mark.slow(kind="networks counted")
def test_of_a_bundle_it_is_what_its_files_hold() -> None:
    described = {network.name: network.parameters for network in describe_bundle("tiny").networks}
    found = counted_vdvae(open_bundle("tiny").vdvae_config)
    assert found.parameters == described["vdvae"]
    assert 0 < found.encoding < found.decoding
