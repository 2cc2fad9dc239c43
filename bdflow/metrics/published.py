"""Scores as published: Ozcelik & VanRullen 2023, Scientific Reports 13:15666, Tables 1 and 2.

Table 1 is the mean over subj01, subj02, subj05 and subj07; Table 2 is subj01. Both are over 982 test stimuli.
Two-way scores are fractions.
"""

from __future__ import annotations

from collections.abc import Mapping

SOURCE = "Ozcelik & VanRullen 2023, Scientific Reports 13:15666, doi 10.1038/s41598-023-42891-8"
TEST_STIMULI = 982
METRICS = ("PixCorr", "SSIM", "AlexNet(2)", "AlexNet(5)", "Inception", "CLIP", "EffNet-B", "SwAV")
LOWER_IS_BETTER = frozenset({"EffNet-B", "SwAV"})
PROTOCOL = "paper"
TABLE_2_SUBJECT = "subj01"

Scores = tuple[float | None, ...]
TABLE_1: Mapping[str, Scores] = {
    "Lin et al. 2022": (None, None, None, None, 0.782, None, None, None),
    "Takagi & Nishimoto 2022": (None, None, 0.830, 0.830, 0.760, 0.770, None, None),
    "Gu et al. 2022": (0.150, 0.325, None, None, None, None, 0.862, 0.465),
    "Brain-Diffuser": (0.254, 0.356, 0.942, 0.962, 0.872, 0.915, 0.775, 0.423),
}
TABLE_2: Mapping[str, Scores] = {
    "only_vdvae": (0.358, 0.437, 0.977, 0.976, 0.770, 0.711, 0.906, 0.581),
    "no_vdvae": (0.143, 0.302, 0.856, 0.930, 0.873, 0.926, 0.775, 0.414),
    "no_clip_text": (0.279, 0.333, 0.956, 0.970, 0.879, 0.912, 0.796, 0.436),
    "no_clip_vision": (0.327, 0.433, 0.939, 0.941, 0.847, 0.845, 0.821, 0.509),
    "full": (0.305, 0.367, 0.967, 0.974, 0.878, 0.925, 0.768, 0.415),
}


def base(metric: str) -> str:
    """A metric's name without its protocol: `SSIM (paper)` is `SSIM`."""
    return metric.partition(" (")[0]


def score(scores: Scores, metric: str) -> float | None:
    """The published score of a metric, if there is one by the same protocol."""
    if metric not in (base(metric), f"{base(metric)} ({PROTOCOL})") or base(metric) not in METRICS:
        return None
    return scores[METRICS.index(base(metric))]
