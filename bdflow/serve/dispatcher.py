"""From a checked request to pictures: what may wait, the calls of the replicas, what is done when one dies, counts."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bdflow.errors import counted
from bdflow.regression.ridge import restandardise
from bdflow.serve.bodies import Refusal
from bdflow.serve.requests import CheckedRequest
from bdflow.study import decoder, keys
from bdflow.study.designs import response_kinds
from bdflow.study.stage import Context

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from bdflow.serve.replicas import Answer

PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before an item whose replica died is tried again


class Counts:
    """What /metrics shows."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        seconds = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
        self.requests = Counter("bdflow_requests", "Answered requests", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "bdflow_request_seconds", "From a request to its answer", ["path"], buckets=seconds, registry=registry
        )
        self.items = Counter("bdflow_items", "Pictures made", ["path"], registry=registry)
        self.waiting = Gauge("bdflow_waiting_items", "Items accepted and not yet answered", registry=registry)
        self.batches = Counter("bdflow_batches", "Batches worked", ["worker"], registry=registry)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.sizes = Histogram("bdflow_batch_size", "Items in a batch", ["worker"], buckets=sizes, registry=registry)
        self.work = Histogram(
            "bdflow_batch_seconds", "What a batch took", ["worker"], buckets=seconds, registry=registry
        )
        self.errors = Counter("bdflow_errors", "Requests refused or failed", ["status"], registry=registry)
        self.retries = Counter("bdflow_retries", "Items tried again after their replica died", registry=registry)


class Capacity:
    """How much may wait: items accepted, and bytes of bodies that are being read. More is refused with 503."""

    def __init__(self, items: int, nbytes: int, counts: Counts) -> None:
        self.items, self.nbytes, self.counts = items, nbytes, counts
        self.taken_items = self.taken_bytes = 0
        self.seconds_an_item = 0.0
        counts.waiting.set_function(lambda: self.taken_items)

    @property
    def retry_after(self) -> int:
        """Seconds until there is likely to be capacity."""
        return min(600, max(1, math.ceil(self.taken_items * self.seconds_an_item / 2)))

    def check(self) -> None:
        """Raises Refusal (503) if nothing more may wait."""
        if self.taken_items >= self.items or self.taken_bytes >= self.nbytes:
            raise self._full()

    def grow(self, nbytes: int) -> None:
        """Take capacity for bytes of a body; give it back with a negative number."""
        if nbytes > 0 and self.taken_bytes + nbytes > self.nbytes:
            raise self._full()
        self.taken_bytes += nbytes

    @contextmanager
    def held(self, items: int) -> Iterator[None]:
        """Take capacity for items while they are worked on."""
        if self.taken_items + items > self.items:
            raise self._full()
        self.taken_items += items
        try:
            yield
        finally:
            self.taken_items -= items

    def worked(self, batch: int, seconds: float) -> None:
        """Learn from a batch how long an item takes."""
        found = seconds / batch
        self.seconds_an_item = found if not self.seconds_an_item else 0.8 * self.seconds_an_item + 0.2 * found

    def _full(self) -> Refusal:
        return Refusal(
            503,
            "service",
            found=f"{counted(self.taken_items, 'item')} and {self.taken_bytes:,} bytes waiting, no room for this one",
            expected=f"{self.items} items and {self.nbytes:,} bytes at most, with it",
            action=f"send it again in about {self.retry_after} s",
        )


class Dispatcher:
    """Carries checked requests to the replicas. `decoder` and `pictures` are handles of Ray Serve."""

    def __init__(
        self,
        context: Context,
        variants: Mapping[str, tuple[str, ...]],
        decoder: DeploymentHandle,
        pictures: DeploymentHandle,
        capacity: Capacity,
        counts: Counts,
    ) -> None:
        self.variants = variants
        self.context, self.decoder, self.pictures = context, decoder, pictures
        self.capacity, self.counts = capacity, counts
        self.responses = {
            subject: {kind: context.ready(keys.responses(subject, kind)) for kind in response_kinds(context.config)}
            for subject in context.subjects
        }

    async def pictures_of(self, checked: CheckedRequest) -> list[bytes]:
        """One PNG an item, in order.

        Raises
        ------
        Refusal : 422 for patterns that cannot be z-scored, 503 if there is no capacity, 500 for items that failed.
        """
        with self.capacity.held(len(checked.draws)):
            rows = await asyncio.to_thread(self._rows, checked)
            tasks = [asyncio.ensure_future(self._picture(checked, i, row)) for i, row in enumerate(rows)]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    def _rows(self, checked: CheckedRequest) -> list[dict[str, np.ndarray]]:
        """What each item is made from: a z-scored pattern, or latents by space."""
        if isinstance(checked.values, np.ndarray):
            try:
                kinds = self.responses[checked.subject].items()
                found = {kind: decoder.z_scored_patterns(store, checked.values) for kind, store in kinds}
                return [{kind: of[i] for kind, of in found.items()} for i in range(len(checked.draws))]
            except decoder.InputError as error:
                raise Refusal(
                    422, error.where, found=error.found, expected=error.expected, action=error.action
                ) from error
        parts = checked.values
        if checked.rule != "none":
            stores = {space: self.context.ready(keys.predictions(checked.subject, space)) for space in parts}
            with np.errstate(over="ignore", invalid="ignore"):
                parts = {
                    space: np.asarray(
                        restandardise(values, checked.rule, decoder.statistics_of(stores[space], checked.rule)),
                        np.float32,
                    )
                    for space, values in parts.items()
                }
            for space, values in parts.items():
                _refuse_overflow(f"latents.{space}", values)
        return [{space: values[i] for space, values in parts.items()} for i in range(len(checked.draws))]

    async def _picture(self, checked: CheckedRequest, i: int, row: dict[str, np.ndarray]) -> bytes:
        if isinstance(checked.values, np.ndarray):
            asked = (checked.subject, row, checked.rule, self.variants[checked.variant])
            row = await self._call("decode", lambda: self.decoder.latents.remote(*asked))
            for values in row.values():
                _refuse_overflow("pattern", values)
        painted = (row, checked.variant, checked.noise, checked.draws[i])
        return await self._call("paint", lambda: self.pictures.paint.remote(*painted))

    async def _call(self, worker: str, send: Callable[[], Awaitable[Answer]]) -> Any:
        for pause in (*PAUSES, None):
            try:
                answer = await send()
                break
            except lost() as error:
                if pause is None:
                    raise Refusal(
                        500,
                        worker,
                        found=f"replicas that died {len(PAUSES) + 1} times over this item ({type(error).__name__})",
                        expected="an answer",
                        action="tell whoever runs this service; to them: look at its log, and at its memory",
                    ) from error
                self.counts.retries.inc()
                await asyncio.sleep(pause)
        if answer.batch:
            self.counts.batches.labels(worker).inc()
            self.counts.sizes.labels(worker).observe(answer.batch)
            self.counts.work.labels(worker).observe(answer.seconds)
            if worker == "paint":
                self.capacity.worked(answer.batch, answer.seconds)
        if answer.failure:
            raise Refusal(
                500,
                worker,
                found=answer.failure,
                expected="an answer",
                action="tell whoever runs this service; to them: look at its log, at the study and at the bundle",
            )
        return answer.value


def _refuse_overflow(where: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise Refusal(
            422,
            where,
            found="values so large that what is made from them is not finite in float32",
            expected="responses in the unit that /v1/study names, or latents of this study",
            action="check the units of these values",
        )


def lost() -> tuple[type[Exception], ...]:
    """What Ray raises when a replica is gone, not what its work raises."""
    from ray import exceptions
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
        DeploymentUnavailableError,
        ReplicaUnavailableError,
    )


class Health:
    """Whether replicas are up, asked at most once a second."""

    def __init__(self, ask: Callable[[], dict[str, int]]) -> None:
        self.ask, self.at = ask, 0.0
        self.found: dict[str, int] = {}
        self.lock = asyncio.Lock()

    async def replicas(self) -> dict[str, int]:
        """Running replicas by kind."""
        async with self.lock:
            if time.monotonic() - self.at > 1:
                self.found = await asyncio.to_thread(self.ask)
                self.at = time.monotonic()
        return self.found
