"""`bdflow serve`: pictures over HTTP from a finished study. Ray Serve keeps the replicas; the HTTP front is ours, so
that limits and the token hold before a byte of a body is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ipaddress
import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdflow.cluster.ray_session import NO_METRICS, RaySession, environment_of_ray
from bdflow.cluster.scratch import nobody
from bdflow.config import Config
from bdflow.errors import InputError, counted
from bdflow.regression import ridge
from bdflow.study import keys
from bdflow.study.designs import designs, response_kinds
from bdflow.study.keys import SHARED
from bdflow.study.painting import recorded_kernels, roles_of, spaces_of
from bdflow.study.stage import Context

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from bdflow.serve.requests import Capabilities

log = logging.getLogger(__name__)
MIB = 2**20
LEAST_TOKEN = 16
CLOSING = 10.0  # seconds for requests under way when the service is stopped


@dataclass(frozen=True)
class ServeOptions:
    """Where the service listens, and what it takes.

    Parameters
    ----------
    host, port : address; port 0 takes a free one.
    token : what senders must know; empty: one is made and shown when the service starts. None: whoever reaches the
        host, other users of this machine too, may send; only on loopback.
    items : the most of one request.
    nbytes : the most of one body, as it is sent and unpacked.
    waiting : items accepted and not yet answered; more requests get 503.

    Raises
    ------
    InputError : a host beyond this machine without a token of one's own, a short token, a number below 1.
    """

    host: str = "127.0.0.1"
    port: int = 8750
    token: str | None = ""
    items: int = 64
    nbytes: int = 64 * MIB
    waiting: int = 512

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise InputError(
                "host",
                found=f"{self.host!r} without a token of your own",
                expected="a token where others can reach the service",
                action="set a token (BDFLOW_TOKEN), or stay at 127.0.0.1 and come through a tunnel",
            )
        if self.token and (len(self.token) < LEAST_TOKEN or not self.token.isascii() or not self.token.isprintable()):
            raise InputError(
                "token",
                found=f"{len(self.token)} characters, or some that no header holds",
                expected=f"{LEAST_TOKEN} ASCII characters at least",
                action='make one: python -c "import secrets; print(secrets.token_urlsafe())"',
            )
        for name, value in (("items", self.items), ("body", self.nbytes), ("waiting", self.waiting)):
            if value < 1:
                raise InputError(
                    name, found=f"{value}", expected="at least 1", action=f"give a larger number for `{name}`"
                )
        if self.waiting < self.items:
            raise InputError(
                "waiting",
                found=f"{self.waiting}",
                expected=f"at least the items of one request ({self.items})",
                meaning="Such a request would never be taken.",
                action="raise `waiting`, or lower the items of one request",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Place:
    """Where replicas run: environment of each, GPUs of this machine, its memory; the address of another's Ray."""

    variables: Mapping[str, str]
    gpus: int
    memory: int
    address: str | None


def run(context: Context, options: ServeOptions, place: Place) -> None:
    """Serve until SIGINT or SIGTERM, then stop whatever was started here.

    Raises
    ------
    NotReady : `regress` has not been run. InputError : options, a port in use, replicas that do not start.
    """
    from bdflow.serve.replicas import served
    from bdflow.serve.requests import Capabilities
    from bdflow.study.decoder import responses_of, units_of

    subjects = context.subjects
    config = context.config
    painter = painter_of(config)
    predictions = {s: {p: context.ready(keys.predictions(s, p)) for p in config.decoded_spaces} for s in subjects}
    variants = {v: tuple(roles_of(config, painter, v).values()) for v in served(config, painter)}
    painted = spaces_of(config, painter).values()
    capabilities = Capabilities(
        voxels={s: context.ready(keys.betas(s)).sizes["voxel"] for s in subjects},
        spaces={
            space: tuple(context.ready(keys.targets(space, SHARED)).arrays["latent"].shape[1:])
            for space in config.decoded_spaces
        },
        units={space: units_of(responses_of(context, subjects[0], space)) for space in config.decoded_spaces},
        variants=variants,
        rules={
            s: tuple(
                rule
                for rule, of in ridge.RULES.items()
                if all(set(of) <= set(store.arrays) for store in stores.values())
            )
            for s, stores in predictions.items()
        },
        standardise=config.ridge_of(next(iter(painted))).standardise,
        items=options.items,
        nbytes=options.nbytes,
    )
    for subject in subjects:
        for design in designs(config):
            context.ready(keys.system(subject, design.name))
    listening = _bound(options)
    with contextlib.closing(listening), _ray(context.config, capabilities, options, place) as (names, logs):
        painters = context.config.execution.reconstruct.workers
        log.info("starting %s and a decoder ...", counted(painters, "painter"))
        from ray import serve

        try:
            decoder = serve.run(_decoder(context, options, place), name=names[0], route_prefix=None)
            pictures = serve.run(_pictures(context, options, place), name=names[1], route_prefix=None)
        except RuntimeError as error:
            raise InputError(
                "serve",
                found=f"replicas that did not start ({error})",
                expected="networks loaded, and resources for them",
                action=f"look at the logs below {logs}/serve, and at execution.reconstruct",
            ) from error
        asyncio.run(_listen(context, capabilities, options, (decoder, pictures), names, listening))
        log.info("stopping ...")


def _bound(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except OSError as error:
        listening.close()
        raise InputError(
            f"{options.host}:{options.port}",
            found=f"an address that cannot be taken ({error.strerror or error})",
            expected="a free port of this machine",
            action="choose another port (0: any free one) or host",
        ) from error
    return listening


@contextlib.contextmanager
def _ray(
    config: Config, capabilities: Capabilities, options: ServeOptions, place: Place
) -> Iterator[tuple[tuple[str, str], Path]]:
    """Ray and its Serve, an own instance or at an address; the names of our two applications there, where logs lie."""
    import ray
    from ray import serve

    if ray.is_initialized():
        raise InputError(
            "serve",
            found="Ray already started in this process",
            expected="a process in which Ray is not started",
            action="call ray.shutdown() first",
        )
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    item = 4 * sum(int(np.prod(shape)) for shape in capabilities.spaces.values())
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    session = RaySession(nobody()) if place.address is None else None
    logs, failed = session.logs if session is not None else Path("/tmp/ray/session_latest/logs"), True
    if session is not None:
        settings |= {
            "address": "local",
            **session.options,
            "num_cpus": max(os.cpu_count() or 1, 4),
            "num_gpus": place.gpus,
            "_memory": place.memory,
            "object_store_memory": max(100 * MIB, min(2 * options.waiting * item, place.memory // 4)),
            "include_dashboard": False,
        }
    else:
        settings["address"] = place.address
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with environment_of_ray(own=session is not None, more={"RAY_SERVE_LOG_TO_STDERR": "0", **NO_METRICS}):
            ray.init(**settings)
    except Exception as error:  # a plain one where its node is not up after 30 s, whatever else the machine does
        raise InputError(
            "serve",
            found=f"Ray, which did not start or answer ({type(error).__name__}: {error})",
            expected="an own instance, or one at cluster.address.ray",
            action=f"check the address, and the logs below {logs}; on a busy machine, begin again",
        ) from error
    names = (f"bdflow-{os.getpid()}-decode", f"bdflow-{os.getpid()}-paint")
    try:
        serve.start(proxy_location="Disabled")
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        yield names, logs
        failed = False
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        try:
            # Ray's lament for actors that we stop
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                if place.address is None:
                    serve.shutdown()
                else:
                    for name in names:
                        serve.delete(name)
                ray.shutdown()
            if session is not None:
                session.close(keep=failed)
        finally:
            for number, handler in signals.items():
                signal.signal(number, handler)


def _actor(place: Place, threads: int, gpus: float, memory: int | None) -> dict[str, object]:
    variables = {**place.variables, **({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})}
    return {
        "num_cpus": threads if place.address is not None else 0,
        "num_gpus": gpus,
        "runtime_env": {"env_vars": variables},
        **({"memory": memory} if memory else {}),
    }


def painter_of(config: Config) -> str:
    """The painter that the service paints with: the first. Raises InputError if there is none."""
    if not config.painters:
        raise InputError(
            "painters",
            found="none in the configuration",
            expected="a painter: the service makes pictures",
            action="add a painter to `painters` in the configuration",
        )
    return next(iter(config.painters))


def _decoder(context: Context, options: ServeOptions, place: Place) -> Application:
    from ray import serve

    from bdflow.serve.replicas import PATTERNS_A_WALK, PatternDecoder

    settings = context.config.execution.regress
    config = context.config
    kinds = [keys.responses(s, kind) for s in context.subjects for kind in response_kinds(config)]
    n = max((context.ready(key).read("split") != "test").sum() for key in kinds)
    budget = settings.memory or place.memory // 4
    kept = int(min(len(context.subjects), budget // (4 * int(n) ** 2 * (1 + len(config.decoded_spaces)))))
    deployment: Any = serve.deployment(
        PatternDecoder,
        num_replicas=1,
        max_ongoing_requests=4 * PATTERNS_A_WALK,
        max_queued_requests=-1,
        ray_actor_options=_actor(place, settings.threads, 0, None),
        health_check_period_s=2,
    )
    return deployment.bind(context, kept)


def _pictures(context: Context, options: ServeOptions, place: Place) -> Application:
    from ray import serve

    from bdflow.serve.replicas import PicturePainter

    config, painter = context.config, painter_of(context.config)
    settings = config.execution.reconstruct
    deployment: Any = serve.deployment(
        PicturePainter,
        num_replicas=settings.workers,
        max_ongoing_requests=2 * config.painters[painter].batch_size,
        max_queued_requests=max(options.waiting, 1),
        ray_actor_options=_actor(place, settings.threads, settings.gpus, settings.memory),
        health_check_period_s=2,
    )
    return deployment.bind(config, painter, recorded_kernels(context, painter))


async def _listen(
    context: Context,
    capabilities: Capabilities,
    options: ServeOptions,
    handles: tuple[DeploymentHandle, DeploymentHandle],
    names: tuple[str, str],
    listening: socket.socket,
) -> None:
    import uvicorn

    from bdflow.serve.dispatcher import Capacity, Counts, Dispatcher, Health
    from bdflow.serve.http import app_of

    counts = Counts()
    capacity = Capacity(options.waiting, max(4 * options.nbytes, 1024 * MIB), counts)
    dispatcher = Dispatcher(context, capabilities.variants, handles[0], handles[1], capacity, counts)
    token = "" if options.token is None else options.token or secrets.token_urlsafe(24)
    if token != (options.token or ""):
        log.info("made for this service: the header `Authorization: Bearer %s`", token)
    app = app_of(capabilities, dispatcher, capacity, counts, Health(lambda: _running(names)), token)
    server = _server_class()(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=int(CLOSING),
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    async def log_address() -> None:
        while not server.started:
            await asyncio.sleep(0.02)
        subjects = ", ".join(capabilities.voxels)
        log.info("serving %s at http://%s:%d (docs: /docs); Ctrl-C stops it", subjects, shown, port)

    waiting = asyncio.ensure_future(log_address())
    await server.serve(sockets=[listening])
    waiting.cancel()


def _server_class() -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals to us: whatever was started is stopped after it."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        def stop(self) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

    return Server


def _running(names: tuple[str, str]) -> dict[str, int]:
    """Running replicas of each application."""
    from ray import serve
    from ray.serve.schema import ReplicaState

    found = {}
    applications = serve.status().applications
    for kind, name in zip(("decode", "paint"), names, strict=True):
        deployments = applications[name].deployments.values() if name in applications else ()
        found[kind] = sum(deployment.replica_states.get(ReplicaState.RUNNING, 0) for deployment in deployments)
    return found
