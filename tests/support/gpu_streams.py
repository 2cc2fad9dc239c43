"""Streams and events of a GPU that is played, and what memory was used by whom: races are found by vector clocks.

Whoever reads memory must come after what wrote it, whoever writes it after all that read it, by events or because the
host waited; else `Race`. Arithmetic is done at once. Memory of the host that a copy reads must be as it was when the
host learns that the copy is done; memory that a copy writes is filled only then.
"""

from __future__ import annotations

import threading

import numpy as np

lock = threading.RLock()
_here = threading.local()


class Race(AssertionError):
    """Memory that is used without having waited for who used it before."""


class Machine:
    """What the host knows: how far each stream has come; copies that it does not know to be done; faults."""

    def __init__(self) -> None:
        self.known: dict[Stream, int] = {}
        self.copies: list[Copy] = []
        self.faults: list[str] = []
        self.reads_of_host: int = 0
        self.default = Stream(non_blocking=True)
        self.linalg = "ignore"
        self.total, self.held, self.peak = 80 * 2**30, 0, 0  # bytes: of the device, in use, most in use at once

    def learn(self, clock: dict[Stream, int]) -> None:
        """The host waited until streams had come so far."""
        _merge(self.known, clock)
        done = [copy for copy in self.copies if self.known.get(copy.stream, 0) >= copy.time]
        self.copies = [copy for copy in self.copies if copy not in done]
        for copy in done:
            copy.finish(self)

    def end(self) -> None:
        """All is done. Raises Race for what went wrong and could not be raised where it did."""
        with lock:
            self.learn({copy.stream: copy.time for copy in self.copies})
            if self.faults:
                raise Race("; ".join(self.faults))


class Copy:
    """A copy on a stream: from memory of the host as it was, or into it, at the end."""

    def __init__(self, stream: Stream, host: np.ndarray, incoming: np.ndarray | None = None) -> None:
        self.stream, self.time, self.host, self.incoming = stream, stream.clock[stream], host, incoming
        self.before = host.copy() if incoming is None else None

    def finish(self, machine: Machine) -> None:
        if self.incoming is not None:
            self.host[...] = self.incoming
        elif not np.array_equal(self.host.view("u1"), self.before.view("u1")):
            machine.faults.append(f"host memory of {self.host.shape} was written while a copy read it")


def _merge(into: dict[Stream, int], other: dict[Stream, int]) -> None:
    for stream, time in other.items():
        into[stream] = max(into.get(stream, 0), time)


class Stream:
    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        assert non_blocking, "streams that wait for the default one are not played"
        self.clock: dict[Stream, int] = {self: 0}

    def step(self) -> None:
        """One more operation, after all that the host knows to be done."""
        _merge(self.clock, machine().known)
        self.clock[self] += 1

    def wait_event(self, event: Event) -> None:
        with lock:
            _merge(self.clock, event.clock)

    def synchronize(self) -> None:
        with lock:
            machine().learn(self.clock)

    def __enter__(self) -> Stream:
        _streams().append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _streams().pop()


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.clock: dict[Stream, int] = {}

    def record(self, stream: Stream | None = None) -> None:
        with lock:
            self.clock = dict((stream or current()).clock)

    def synchronize(self) -> None:
        with lock:
            machine().learn(self.clock)


class Device:
    def __init__(self, device: object = None) -> None:
        assert device in (None, 0)

    mem_info = property(lambda self: (_machine.total - _machine.held, _machine.total))

    def synchronize(self) -> None:
        current().synchronize()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _streams() -> list[Stream]:
    if not hasattr(_here, "streams"):
        _here.streams = []
    return _here.streams


def current() -> Stream:
    """The stream of this thread."""
    streams = _streams()
    return streams[-1] if streams else machine().default


class Memory:
    """Memory of the device: who wrote it last, and who read it since. It is given back to the stream it is from."""

    def __init__(self, owner: Stream, nbytes: int = 0) -> None:
        self.owner, self.nbytes, self.of = owner, nbytes, _machine
        with lock:
            self.of.held += nbytes
            self.of.peak = max(self.of.peak, self.of.held)
        self.written = (owner, owner.clock[owner])
        self.read: dict[Stream, int] = {}

    def used(self, stream: Stream, writing: bool) -> None:
        before = dict([self.written])
        if writing:
            _merge(before, self.read)
        for other, time in before.items():
            if stream.clock.get(other, 0) < time:
                raise Race(f"memory is {'written' if writing else 'read'} before another stream is done with it")
        if writing:
            self.written, self.read = (stream, stream.clock[stream]), {}
        else:
            self.read[stream] = stream.clock[stream]

    def __del__(self) -> None:
        with lock:
            self.of.held -= self.nbytes
            used = dict(self.read)
            _merge(used, dict([self.written]))
            for other, time in used.items():
                here = max(self.owner.clock.get(other, 0), _machine.known.get(other, 0))
                if here < time:
                    _machine.faults.append("memory is given back before another stream is done with it")


def machine() -> Machine:
    """The device that is played."""
    return _machine


def begun() -> Machine:
    """A new one in its place."""
    global _machine
    _machine = Machine()
    return _machine


_machine: Machine
begun()
