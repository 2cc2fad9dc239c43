"""The two kinds of replicas behind the service: patterns to latents, latents to pictures. Both work in batches."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdflow import decode, ridge
from bdflow.config import SPACES, Config, Variant
from bdflow.painting import painter
from bdflow.reconstruct import USES
from bdflow.stage import Context

PATTERNS_A_WALK = 256
GATHER = 0.005  # seconds that the first item of an idle replica waits for others


class Answer(NamedTuple):
    """What a replica gives for one item; the first item of a batch says how large that was and how long it took."""

    value: Any = None
    failure: str = ""
    batch: int = 0
    seconds: float = 0.0


class Batcher:
    """Batches of what waits when the last batch is done, in a thread, so that others may join meanwhile.

    Ray Serve's own batching cuts batches as items arrive, also while one is worked: under load they stay small.

    Parameters
    ----------
    work : called with a kind and items of that kind; one value each.
    most : items in a batch.
    """

    def __init__(self, work: Callable[[Any, list[Any]], Any], most: int) -> None:
        self.work, self.most = work, most
        self.waiting: list[tuple[Any, Any, asyncio.Future]] = []
        self.running: asyncio.Task | None = None

    async def __call__(self, kind: Any, item: Any) -> Answer:
        """The answer for one item. Batches are of the kind that has waited longest."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((kind, item, future))
        if self.running is None:
            self.running = asyncio.ensure_future(self._run())
        return await future

    async def _run(self) -> None:
        await asyncio.sleep(GATHER)
        while self.waiting:
            self.waiting = [entry for entry in self.waiting if not entry[2].done()]
            if not self.waiting:
                break
            kind = self.waiting[0][0]
            batch = [entry for entry in self.waiting if entry[0] == kind][: self.most]
            taken = {id(entry) for entry in batch}
            self.waiting = [entry for entry in self.waiting if id(entry) not in taken]
            for (_, _, future), answer in zip(batch, await asyncio.to_thread(self._work, kind, batch), strict=True):
                if not future.done():
                    future.set_result(answer)
        self.running = None

    def _work(self, kind: Any, batch: list[Any]) -> list[Answer]:
        start, failure = time.perf_counter(), ""
        try:
            values: Sequence[Any] = list(self.work(kind, [item for _, item, _ in batch]))
            if len(values) != len(batch):
                raise ValueError(f"{len(values)} values for {len(batch)} items")
        except Exception as error:
            values, failure = [None] * len(batch), f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - start
        return [Answer(value, failure, 0 if i else len(batch), 0.0 if i else seconds) for i, value in enumerate(values)]


class PatternDecoder:
    """Decodes all patterns of a subject that wait in one walk through the targets: each is one more row of H.

    The factors of `kept` subjects stay in memory (see `decode.Decoder`); targets stay where the system caches files.
    """

    def __init__(self, context: Context, kept: int) -> None:
        self.context, self.kept = context, kept
        self.decoders: dict[str, decode.Decoder] = {}
        self.batches = Batcher(self._latents, PATTERNS_A_WALK)

    async def latents(self, subject: str, z_scored: np.ndarray, rule: str, uses: tuple[str, ...]) -> Answer:
        """Latents by space of a z-scored pattern (voxels,), re-standardised by a rule, in the spaces wanted."""
        return await self.batches(subject, (z_scored, rule, uses))

    def _latents(self, subject: str, items: list[Any]) -> list[dict[str, np.ndarray]]:
        patterns, rules, uses = zip(*items, strict=True)
        spaces = [space for space in SPACES if any(space in wanted for wanted in uses)]
        raw = self._decoder(subject).latents(np.stack(patterns), spaces)
        found: list[dict[str, np.ndarray]] = [{} for _ in items]
        for space in spaces:
            for rule in dict.fromkeys(rules):
                rows = [i for i in range(len(items)) if rules[i] == rule and space in uses[i]]
                values = self._restandardised(subject, space, raw[space][rows], rule)
                for row, value in zip(rows, values, strict=True):
                    found[row][space] = value
        return found

    def _decoder(self, subject: str) -> decode.Decoder:
        decoder = self.decoders.pop(subject, None) or decode.Decoder(self.context, subject, keep=self.kept > 0)
        while self.decoders and len(self.decoders) >= self.kept:
            del self.decoders[next(iter(self.decoders))]
        if self.kept:
            self.decoders[subject] = decoder
        return decoder

    def _restandardised(self, subject: str, space: str, latents: np.ndarray, rule: str) -> np.ndarray:
        if rule == "none":
            return latents
        statistics = decode.statistics_of(self.context.ready(f"predictions/{subject}/{space}"), rule)
        return np.asarray(ridge.restandardise(latents, rule, statistics), dtype=np.float32)


class PicturePainter:
    """Holds the networks that paint. Items of one variant and one kind of noise are painted together."""

    def __init__(self, config: Config) -> None:
        self.painter = painter(config)
        self.batches = Batcher(self._pictures, config.reconstruct.batch_size)
        nothing = {space: np.zeros(shape, np.float32) for space, shape in self.painter.spaces.items()}
        self._pictures(("full", "serve"), [(nothing, 0)])

    async def paint(self, latents: dict[str, np.ndarray], variant: Variant, noise: str, number: int) -> Answer:
        """A PNG of the latents of one item, by space; `noise` and `number` name its draw."""
        answer = await self.batches((variant, noise), (latents, number))
        if answer.failure:
            return answer
        return answer._replace(value=await asyncio.to_thread(png, answer.value))

    def _pictures(self, kind: tuple[Variant, str], items: list[Any]) -> np.ndarray:
        from bdflow.models.latents import BICUBIC, resize

        (variant, noise), (latents, numbers) = kind, zip(*items, strict=True)
        parts = {space: np.stack([of[space] for of in latents]) for space in USES[variant]}
        guesses = self.painter.guess(parts["vdvae"], noise, numbers) if "vdvae" in parts else None
        if variant == "only_vdvae":
            assert guesses is not None
            return resize(guesses, self.painter.image_size, BICUBIC)
        return self.painter.paint(guesses, parts.get("clip_vision"), parts.get("clip_text"), noise, numbers)


def png(image: np.ndarray) -> bytes:
    """(y, x, 3) uint8 as a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()
