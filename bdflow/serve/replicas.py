"""The two kinds of replicas behind the service: patterns to latents, latents to pictures. Both work in batches."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from bdflow.config import Config
from bdflow.models.encoders import encoder_of
from bdflow.models.painters import painter_kind
from bdflow.regression import ridge
from bdflow.study import decoder, keys
from bdflow.study.designs import design_of
from bdflow.study.painting import Kernels, painting, roles_of
from bdflow.study.stage import Context

PATTERNS_A_WALK = 256
GATHER = 0.005  # seconds that the first item of an idle replica waits for others

K = TypeVar("K")
Item = TypeVar("Item")
Latents = dict[str, np.ndarray]
Wanted = tuple[dict[str, np.ndarray], str, tuple[str, ...]]  # z-scored patterns, rule, spaces


class Answer(NamedTuple):
    """What a replica gives for one item; the first item of a batch says how large that was and how long it took."""

    value: Any = None
    failure: str = ""
    batch: int = 0
    seconds: float = 0.0


class Batcher(Generic[K, Item]):
    """Batches of what waits when the last batch is done, in a thread, so that others may join meanwhile.

    Ray Serve's own batching cuts batches as items arrive, also while one is worked: under load they stay small.

    Parameters
    ----------
    work : called with a kind and items of that kind; one value each.
    most : items in a batch.
    """

    def __init__(self, work: Callable[[K, list[Item]], Iterable[object]], most: int) -> None:
        self.work, self.most = work, most
        self.waiting: list[tuple[K, Item, asyncio.Future[Answer]]] = []
        self.running: asyncio.Task[None] | None = None

    async def __call__(self, kind: K, item: Item) -> Answer:
        """The answer for one item. Batches are of the kind that has waited longest."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
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

    def _work(self, kind: K, batch: list[tuple[K, Item, asyncio.Future[Answer]]]) -> list[Answer]:
        start, failure = time.perf_counter(), ""
        try:
            values: Sequence[object] = list(self.work(kind, [item for _, item, _ in batch]))
            if len(values) != len(batch):
                raise ValueError(f"{len(values)} values for {len(batch)} items")
        except Exception as error:
            values, failure = [None] * len(batch), f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - start
        return [Answer(value, failure, 0 if i else len(batch), 0.0 if i else seconds) for i, value in enumerate(values)]


class PatternDecoder:
    """Decodes all patterns of a subject that wait in one walk through the targets: each is one more row of H.

    The factors of `kept` subjects stay in memory (see `decoder.Decoder`); targets stay where the system caches files.
    """

    def __init__(self, context: Context, kept: int) -> None:
        self.context, self.kept = context, kept
        self.decoders: dict[str, decoder.Decoder] = {}
        self.batches = Batcher(self._latents, PATTERNS_A_WALK)

    async def latents(self, subject: str, z_scored: dict[str, np.ndarray], rule: str, uses: tuple[str, ...]) -> Answer:
        """Latents by space of a pattern (voxels,), z-scored by each kind of rows, re-standardised by a rule, in the
        spaces wanted.
        """
        return await self.batches(subject, (z_scored, rule, uses))

    def _latents(self, subject: str, items: list[Wanted]) -> list[dict[str, np.ndarray]]:
        patterns, rules, uses = zip(*items, strict=True)
        spaces = [space for space in self.context.config.decoded_spaces if any(space in wanted for wanted in uses)]
        by_space = {space: np.stack([self._pattern(of, space) for of in patterns]) for space in spaces}
        raw = self._decoder(subject).latents(by_space, spaces)
        found: list[dict[str, np.ndarray]] = [{} for _ in items]
        for space in spaces:
            for rule in dict.fromkeys(rules):
                rows = [i for i in range(len(items)) if rules[i] == rule and space in uses[i]]
                values = self._restandardised(subject, space, raw[space][rows], rule)
                for row, value in zip(rows, values, strict=True):
                    found[row][space] = value
        return found

    def _pattern(self, pattern: dict[str, np.ndarray], space: str) -> np.ndarray:
        """Z-scored by the rows that the space is decoded from."""
        return pattern[design_of(self.context.config, space).responses]

    def _decoder(self, subject: str) -> decoder.Decoder:
        found = self.decoders.pop(subject, None) or decoder.Decoder(self.context, subject, keep=self.kept > 0)
        while self.decoders and len(self.decoders) >= self.kept:
            del self.decoders[next(iter(self.decoders))]
        if self.kept:
            self.decoders[subject] = found
        return found

    def _restandardised(self, subject: str, space: str, latents: np.ndarray, rule: str) -> np.ndarray:
        if rule == "none":
            return latents
        statistics = decoder.statistics_of(self.context.ready(keys.predictions(subject, space)), rule)
        return np.asarray(ridge.restandardise(latents, rule, statistics), dtype=np.float32)


class PicturePainter:
    """Holds the networks of one painter. Items of one variant and one kind of noise are painted together.

    `kernels` : of attention, by part, as for all replicas; see `bdflow.study.painting.recorded_kernels`.
    """

    def __init__(self, config: Config, painter: str, kernels: Kernels) -> None:
        self.painting = painting(config, painter, kernels)
        kind = painter_kind(config, painter)
        self.roles = {variant: roles_of(config, painter, variant) for variant in served(config, painter)}
        self.enlarges = kind.enlarges
        self.batches = Batcher(self._pictures, config.painters[painter].batch_size)
        first = next(iter(self.roles))
        shapes = {space: encoder_of(config, space).shape for space in self.roles[first].values()}
        nothing = {space: np.zeros(shape, np.float32) for space, shape in shapes.items()}
        self.image_size = kind.image_size
        self._pictures((first, "serve"), [(nothing, 0)])

    async def paint(self, latents: dict[str, np.ndarray], variant: str, noise: str, number: int) -> Answer:
        """A PNG of the latents of one item, by space; `noise` and `number` name its draw."""
        answer = await self.batches((variant, noise), (latents, number))
        if answer.failure:
            return answer
        return answer._replace(value=await asyncio.to_thread(png, answer.value))

    def _pictures(self, kind: tuple[str, str], items: list[tuple[Latents, int]]) -> np.ndarray:
        (variant, noise), (latents, numbers) = kind, zip(*items, strict=True)
        parts = {role: np.stack([of[space] for of in latents]) for role, space in self.roles[variant].items()}
        guesses = None
        if "guess" in parts:
            guesses = self.painting.decode_guesses(self.painting.guess_inputs(parts["guess"], noise, numbers))
            if variant in self.enlarges:
                return self.painting.enlarged(guesses, len(guesses)).numpy()
        inputs = self.painting.paint_inputs(guesses, parts.get("vision"), parts.get("text"), noise, numbers)
        return self.painting.paint_prepared(inputs)


def served(config: Config, painter: str) -> list[str]:
    """The variants that a painter can paint from the spaces that are named for it, those of more roles first."""
    kind, settings = painter_kind(config, painter), config.painters[painter]
    can = [v for v, roles in kind.variants.items() if all(getattr(settings, role) is not None for role in roles)]
    return sorted(can, key=lambda variant: -len(kind.variants[variant]))


def png(image: np.ndarray) -> bytes:
    """(y, x, 3) uint8 as a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()
