"""How a step from one noise level to the next is taken: DDIM, or DPM-Solver++(2M), on the same tables."""

import math
from typing import Protocol

from torch import Tensor

LONGEST = 2.0  # times the step before, in log-SNR, over which a prediction is drawn out


class Tables(Protocol):
    """Cumulated alphas of the levels that are visited, and of those each step ends at."""

    @property
    def alpha(self) -> Tensor: ...

    @property
    def alpha_previous(self) -> Tensor: ...


class DDIM:
    """J. Song et al. 2021, eta = 0; of first order."""

    def __init__(self, tables: Tables) -> None:
        self.alpha, self.alpha_previous = tables.alpha.tolist(), tables.alpha_previous.tolist()

    def step(self, x: Tensor, eps: Tensor, index: int) -> Tensor:
        """x one level lower, from the noise predicted at level `index`."""
        alpha, previous = self.alpha[index], self.alpha_previous[index]
        z0 = (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        return previous**0.5 * z0 + (1 - previous) ** 0.5 * eps


class DPMpp2M:
    """DPM-Solver++(2M), C. Lu et al. 2022, algorithm 2: data prediction, of second order by the prediction before.

    Its first step is DDIM's, and so is one more than twice as long as that before it (the last but one of few steps):
    drawn out that far, differences of predictions would be mostly error.
    """

    def __init__(self, tables: Tables) -> None:
        self.alpha, self.alpha_previous = tables.alpha.tolist(), tables.alpha_previous.tolist()
        self._before: tuple[Tensor, float] | None = None  # the data predicted, and the step in log-SNR, of last time

    def step(self, x: Tensor, eps: Tensor, index: int) -> Tensor:
        """x one level lower, from the noise predicted at level `index`; levels are visited in their order."""
        alpha, previous = self.alpha[index], self.alpha_previous[index]
        z0 = (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        h = _log_snr(previous) - _log_snr(alpha)
        data = z0
        if self._before is not None and h <= LONGEST * self._before[1]:
            last, h_last = self._before
            data = z0 + (z0 - last) * (h / (2 * h_last))
        self._before = z0, h
        return math.sqrt((1 - previous) / (1 - alpha)) * x - math.sqrt(previous) * math.expm1(-h) * data


def _log_snr(alpha: float) -> float:
    return 0.5 * math.log(alpha / (1 - alpha))


SOLVERS: dict[str, type[DDIM] | type[DPMpp2M]] = {"ddim": DDIM, "dpmpp_2m": DPMpp2M}
