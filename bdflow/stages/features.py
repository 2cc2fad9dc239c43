"""The latents of every stimulus in every target space (Brain-Diffuser: Methods, feature extraction)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import numpy as np

from bdflow.config import Config, content
from bdflow.errors import InputError, counted, listed
from bdflow.models.encoders import Encoder, Stimuli, encoder_class, encoder_of, encoder_settings
from bdflow.stores import Store, StoreError
from bdflow.study import catalog, keys, parts
from bdflow.study.coordinates import of_space
from bdflow.study.graph import Counts, StoreDecl
from bdflow.study.keys import SHARED
from bdflow.study.stage import Context, Stage, Step, Work, missing_in_any

DTYPES = {"float16": "f2", "float32": "f4"}
Task = tuple[str, int]  # (part, partition)


class Features(Stage):
    """The latents of every space that is decoded, all spaces in one walk through the stimuli."""

    name = "features"
    uses_torch = True

    @staticmethod
    def spaces(config: Config) -> tuple[str, ...]:
        """The spaces whose latents it makes."""
        return tuple(config.decoded_spaces)

    def stores(self, config: Config) -> Iterator[StoreDecl]:
        for space in self.spaces(config):
            settings = {
                "features": content(config.features, "targets"),
                **encoder_settings(config, space),
            }
            inputs, cut = partial(_inputs, config, space), content(config.chunks, "targets")
            rounding = encoder_class(config, space)[0].arithmetic(config.networks, config.features.batch_size)
            for part in (SHARED, *config.subjects):
                key, layout = keys.targets(space, part), partial(_targets, config, space, part)
                yield StoreDecl(key, layout, settings, inputs, (keys.stimuli(part),), cut, rounding)

    def steps(self, context: Context) -> Iterable[Step]:
        of_run = parts.of_run(context)
        spaces, label = self.spaces(context.config), self.name.replace("_", " ")
        fills = tuple(key for space in spaces for key in parts.targets(space, of_run))
        if fills:
            yield Step(label, "blocks of stimuli", parts.stimuli(of_run), fills, partial(_start, context, spaces))


class EncodingFeatures(Features):
    """The latents of spaces that encoding models alone are made from, `decode: false`."""

    name = "encoding_features"
    on_demand = True

    @staticmethod
    def spaces(config: Config) -> tuple[str, ...]:
        return tuple(space for space, settings in config.spaces.items() if not settings.decode)


def _inputs(config: Config, space: str) -> dict[str, str]:
    return dict(encoder_of(config, space).inputs())


def _targets(config: Config, space: str, part: str, counts: Counts) -> catalog.Laid:
    shape, chunks = counts.shape(space), config.chunks
    places = of_space(counts, space)
    spec = catalog.targets(shape, DTYPES[config.features.dtype], chunks.stimuli, chunks.columns, places)
    return spec, {"stimulus_id": counts.stimuli(part), **catalog.space_sizes(shape)}


def _check_captions(config: Config, spaces: tuple[str, ...], stimuli: Mapping[str, Store]) -> None:
    """Raise InputError where a space is made of captions, and a stimulus has none."""
    of_captions = [space for space in spaces if "captions" in encoder_class(config, space)[0].takes]
    if not of_captions:
        return
    without = [
        str(one)
        for store in stimuli.values()
        for one in store.read("stimulus_id")[~(store.read("caption") != "").any(axis=1)]
    ]
    if without:
        raise InputError(
            f"spaces made of captions: {listed(of_captions)}",
            found=f"{counted(len(without), 'stimulus', 'stimuli')} without a caption ({listed(without, 6)})",
            expected="a caption of every stimulus, as `dataset.without_caption: refuse` asks",
            action="add captions; leave these stimuli out of training and test by `dataset.without_caption: "
            "leave_out`; or leave these spaces out of `spaces`",
        )


def _start(context: Context, spaces: tuple[str, ...]) -> Work:
    stimuli, stores = {}, {}
    for part in parts.of_run(context):
        stimuli[part] = context.ready(keys.stimuli(part))
    _check_captions(context.config, spaces, stimuli)
    for part in stimuli:
        given = {name: stimuli[part].read(name) for name in ("stimulus_id", "split")}
        stores[part] = {space: context.declare(keys.targets(space, part), given) for space in spaces}
    tasks = [(part, partition) for part, of in stores.items() for partition in missing_in_any(of.values())]
    return Work(tasks, partial(Extractor, context.config, spaces, stimuli, stores))


class Extractor:
    """Loads encoders when they are first needed; a task is one block of stimuli of a part. Encoders whose latents come
    from one pass through the networks (`Encoder.shared`) are asked together: the first of them is loaded, no other.

    `stimuli` by part, `stores` by part and space.
    """

    def __init__(
        self,
        config: Config,
        spaces: tuple[str, ...],
        stimuli: dict[str, Store],
        stores: dict[str, dict[str, Store]],
    ) -> None:
        self.stimuli, self.stores = stimuli, stores
        self.encoders = {space: encoder_of(config, space) for space in spaces}
        wanted = [space for space in self.encoders if any(of[space].missing() for of in stores.values())]
        self.first = firsts({space: self.encoders[space] for space in wanted})
        for space in dict.fromkeys(self.first.values()):
            self.encoders[space].load()

    def prepare(self, task: Task) -> dict[str, tuple[list[str], object]]:
        """By the space whose encoder is asked: the spaces that are wanted of it, and what it needs."""
        part, partition = task
        wanted = [s for s, store in self.stores[part].items() if not store.marker(partition)]
        stimuli = self._read(task, {what for space in wanted for what in self.encoders[space].takes})
        together: dict[str, list[str]] = {}
        for space in wanted:
            together.setdefault(self.first[space], []).append(space)
        return {first: (spaces, self.encoders[first].prepare(stimuli)) for first, spaces in together.items()}

    def work(self, prepared: dict[str, tuple[list[str], object]]) -> dict[str, np.ndarray]:
        made: dict[str, np.ndarray] = {}
        for first, (spaces, inputs) in prepared.items():
            latents = self.encoders[first].work_together(inputs, [self.encoders[space] for space in spaces])
            made |= zip(spaces, latents, strict=True)
        return made

    def finish(self, task: Task, made: dict[str, np.ndarray]) -> None:
        part, partition = task
        for space, latent in made.items():
            store = self.stores[part][space]
            self._check(store, self.encoders[space], latent, partition)
            stored = latent.astype(store.arrays["latent"].dtype)
            if not np.isfinite(stored).all():
                row = int(np.flatnonzero(~np.isfinite(stored).reshape(len(stored), -1).all(axis=1))[0])
                stimulus_id = self.stimuli[part].read("stimulus_id", _region(store, partition))[row]
                raise StoreError(
                    store.path,
                    found=f"a latent of stimulus_id {stimulus_id} that is not finite in {stored.dtype}",
                    expected="numbers",
                    meaning="The network overflowed, or the latent is too large for the type that it is stored as.",
                    action="set `features.dtype: float32`, and `networks.dtype: float32` if that does not help",
                )
            store.write(partition, {"latent": stored})

    def _check(self, store: Store, encoder: Encoder, latent: np.ndarray, partition: int) -> None:
        rows = _region(store, partition)["stimulus_id"]
        expected = (rows.stop - rows.start, *store.arrays["latent"].shape[1:])
        if latent.shape != expected:
            raise StoreError(
                store.path,
                found=f"latents of shape {latent.shape} from {type(encoder).__name__}",
                expected=f"{expected}, one of the encoder's `shape` for each stimulus",
                action="correct `work` or `shape` of the encoder",
            )

    def _read(self, task: Task, wanted: set[str]) -> Stimuli:
        part, partition = task
        stimuli, region = self.stimuli[part], _region(next(iter(self.stores[part].values())), partition)
        ids = stimuli.read("stimulus_id", region)
        images = stimuli.read("image", region) if "image" in wanted else np.zeros((len(ids), 0, 0, 3), np.uint8)
        captions = stimuli.read("caption", region) if "captions" in wanted else [()] * len(ids)
        return Stimuli(ids, images, [[text for text in row if text] for row in captions])


def firsts(encoders: Mapping[str, Encoder]) -> dict[str, str]:
    """By space, the space whose encoder gives its latents: the first of those that share a pass, or itself."""
    first: dict[object, str] = {}
    found = {}
    for space, encoder in encoders.items():
        shared = (type(encoder), encoder.shared) if encoder.shared is not None else space
        found[space] = first.setdefault(shared, space)
    return found


def _region(store: Store, partition: int) -> dict[str, slice]:
    return store.spec.region(store.sizes, partition)
