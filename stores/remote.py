"""Object stores: one bucket behind bounded retries, and the same as a store of Zarr.

Nothing here takes an answer that did not come for an object that is not there: only "not found" means absent; what
may pass (5xx, resets, timeouts, answers cut short) is asked again, and where that does not help the run ends.
"""

from __future__ import annotations

import asyncio
import configparser
import math
import os
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, stop_after_attempt, wait_exponential
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.config import config

from bdflow.errors import counted
from bdflow.stores.errors import StoreError

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, MemoryStore, ObjectStore, RetryConfig

SCHEMES = ("s3", "gs", "memory")
PUBLIC: dict[str, str] = {}
"""Regions of the buckets that anyone may read, without credentials; `register_public` adds one."""
Answer = TypeVar("Answer")


def _obstore() -> Any:
    """The library, which studies in folders need not have."""
    import obstore.exceptions

    return obstore


def answers() -> tuple[type[Exception], ...]:
    """Errors that are answers: no such object, or another one than was said to be there."""
    exceptions = _obstore().exceptions
    return (FileNotFoundError, exceptions.AlreadyExistsError, exceptions.PreconditionError)


def register_public(bucket: str, region: str) -> None:
    """Have a bucket that anyone may read opened without credentials, in its region."""
    PUBLIC[bucket] = region


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket, and the key without slashes around it."""
    scheme, _, rest = url.partition("://")
    bucket, _, inside = rest.partition("/")
    return scheme, bucket, "/".join(part for part in inside.split("/") if part)


class Unreachable(StoreError):
    """An object store did not answer as it should, though asked as often as is allowed."""


@dataclass(frozen=True)
class Patience:
    """How long an object store is waited for: `attempts` of one request, `timeout` seconds each, pauses between that
    double from `first` up to `longest` seconds. The pauses of the default add up to a minute and a half.
    """

    attempts: int = 10
    timeout: float = 60.0
    first: float = 0.25
    longest: float = 30.0

    @classmethod
    def usual(cls) -> Patience:
        """The default, or what BDFLOW_STORE_ATTEMPTS and BDFLOW_STORE_TIMEOUT say. Raises StoreError for no numbers."""
        try:
            attempts = int(os.environ.get("BDFLOW_STORE_ATTEMPTS", cls.attempts))
            timeout = float(os.environ.get("BDFLOW_STORE_TIMEOUT", cls.timeout))
        except ValueError as error:
            raise _refused(
                "BDFLOW_STORE_ATTEMPTS, BDFLOW_STORE_TIMEOUT",
                f"environment variables that are not both numbers ({error})",
                "a whole number of attempts, and seconds",
                "correct these environment variables, or unset them",
            ) from error
        if not 0 < timeout < math.inf:
            raise _refused(
                "BDFLOW_STORE_TIMEOUT",
                f"{timeout:g} in this environment variable",
                "seconds, above 0",
                "correct the environment variable, or unset it",
            )
        return cls(max(1, attempts), timeout)

    def pause(self, state: RetryCallState) -> float:
        """Seconds to wait after an attempt, up to a fifth more or less so that workers spread."""
        return wait_exponential(multiplier=self.first, max=self.longest)(state) * random.uniform(0.8, 1.2)


def _may_pass(where: str, state: RetryCallState) -> bool:
    """Whether a request is repeated. Raises StoreError for what stays so until someone acts."""
    error, exceptions = state.outcome.exception() if state.outcome else None, _obstore().exceptions
    if not isinstance(error, (exceptions.BaseError, OSError)):
        return False
    if _says(error, "NoSuchBucket"):
        raise _refused(
            where, "no such bucket", "a bucket that exists", "make the bucket, or correct the URL"
        ) from error
    if isinstance(error, answers()):
        return False
    if state.attempt_number >= 3 and _says(error, "169.254.", "metadata.google.internal"):
        action = "set the environment's variables, or a profile, as docs/places.md says"
        found = "no credentials, and no machine's role to take them from"
        raise _refused(where, found, "credentials for this object store", action) from error
    status = _status(error)
    denied = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
    if denied or (status in (*range(400, 500), 501) and status not in (408, 429)):
        action = "correct the credentials, the region or the rights of this user (see docs/places.md)"
        raise _refused(
            where, f"a refusal of the object store ({_brief(error)})", "that this user may do it", action
        ) from error
    return True


def _give_up(where: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    raise Unreachable(
        where,
        found=f"no proper answer in {counted(state.attempt_number, 'attempt')} and "
        f"{state.seconds_since_start:.0f} s, the last: {_brief(error)}",
        expected="that the object store answers",
        meaning="It is away, overloaded, or the network is down. Nothing that is marked as written is lost.",
        action="run the same again when it answers: it goes on where it stopped",
    ) from error


class Bucket:
    """The objects below `url` (`s3://bucket/prefix`), by key. Every request is repeated within `Patience`.

    Raises
    ------
    Unreachable : no proper answer within it.
    StoreError : access is refused, or there is no such bucket.
    """

    def __init__(self, url: str) -> None:
        self.url, self.patience = url, Patience.usual()
        scheme, name, inside = split_url(url)
        self.prefix = inside + "/" if inside else ""
        self.store = _connect(scheme, name, self.patience.timeout)

    def key(self, name: str) -> str:
        return (self.prefix + name).strip("/")

    def again(self, name: str, ask: Callable[[], Answer]) -> Answer:
        """What `ask` returns, asked until it does or patience ends."""
        return Retrying(**self._policy(name))(ask)

    async def again_async(self, name: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """As `again`."""

        async def once() -> Answer:
            return await ask()

        return await AsyncRetrying(**self._policy(name))(once)

    def _policy(self, name: str) -> dict[str, Any]:
        where = f"{self.url}/{name}".rstrip("/")
        return {
            "stop": stop_after_attempt(self.patience.attempts),
            "wait": self.patience.pause,
            "retry": partial(_may_pass, where),
            "retry_error_callback": partial(_give_up, where),
        }

    def require(self) -> None:
        """Raises StoreError if there is no such bucket: of a single object that is not there, no answer says so."""
        self.again("", lambda: _obstore().list_with_delimiter(self.store, self.prefix or None))

    def read(self, name: str) -> bytes | None:
        """The content of an object, or None if there is none."""
        try:
            return self.again(name, partial(self._whole, self.key(name)))
        except FileNotFoundError:
            return None

    def _whole(self, key: str) -> bytes:
        answer = _obstore().get(self.store, key)
        content = answer.bytes().to_bytes()
        return _complete(content, answer.meta["size"])

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`. Raises FileNotFoundError if there is no such object."""

        def ask() -> bytes:
            content = _obstore().get_range(self.store, self.key(name), start=start, end=stop).to_bytes()
            return _complete(content, stop - start)

        return self.again(name, ask)

    def head(self, name: str) -> ObjectMeta | None:
        """`size`, `e_tag`, `last_modified` of an object, or None if there is none."""
        try:
            found: ObjectMeta = self.again(name, lambda: _obstore().head(self.store, self.key(name)))
            return found
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes, mode: str | Mapping[str, object] | None = "overwrite") -> Any:
        """Write an object at once, whole; returns its `e_tag` and `version`. `mode` is obstore's: "create", or the
        version that must still be there; AlreadyExistsError and PreconditionError say that this is not so.
        """
        if isinstance(mode, dict):
            mode = {what: value for what, value in mode.items() if value is not None}
        return self.again(
            name, lambda: _obstore().put(self.store, self.key(name), content, mode=mode, use_multipart=False)
        )

    def delete(self, name: str) -> None:
        """Delete an object, if there is one."""
        with suppress(FileNotFoundError):
            self.again(name, lambda: _obstore().delete(self.store, self.key(name)))

    def sizes(self, under: str = "") -> dict[str, int]:
        """Sizes of all objects below a folder, by key."""
        prefix = self.key(under) + "/" if self.key(under) else None
        found = self.again(under, lambda: _obstore().list(self.store, prefix).collect())
        return {meta["path"][len(self.prefix) :]: meta["size"] for meta in found}

    def children(self, under: str = "") -> tuple[list[str], list[str]]:
        """Names of the folders and of the objects in a folder."""
        prefix = self.key(under) + "/" if self.key(under) else None
        found = self.again(under, lambda: _obstore().list_with_delimiter(self.store, prefix))
        folders = [path.rstrip("/").rsplit("/", 1)[-1] for path in found["common_prefixes"]]
        return sorted(folders), sorted(meta["path"].rsplit("/", 1)[-1] for meta in found["objects"])

    def files(self, under: str = "") -> dict[str, tuple[int, str]]:
        """Size and ETag of the objects in a folder itself, by name."""
        prefix = self.key(under) + "/" if self.key(under) else None
        found = self.again(under, lambda: _obstore().list_with_delimiter(self.store, prefix))
        return {meta["path"].rsplit("/", 1)[-1]: (meta["size"], meta["e_tag"] or "") for meta in found["objects"]}

    def delete_below(self, under: str) -> None:
        """Delete all objects below a folder."""
        keys = [self.key(name) for name in self.sizes(under)]
        for start in range(0, len(keys), 1000):
            self.again(under, partial(_obstore().delete, self.store, keys[start : start + 1000]))


class RemoteStore(Store):
    """A bucket as Zarr sees it. An object is written by one request, so it is there whole or not at all."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, bucket: Bucket, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.bucket = bucket

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and other.bucket.url == self.bucket.url

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self.bucket.url

    def __repr__(self) -> str:
        return f"RemoteStore({self.bucket.url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _reopened, (self.bucket.url, self.read_only)

    def with_read_only(self, read_only: bool = False) -> RemoteStore:
        return RemoteStore(self.bucket, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        options = _range(byte_range)

        async def ask() -> bytes:
            answer = await _obstore().get_async(self.bucket.store, self.bucket.key(key), options=options)
            start, stop = answer.range
            return _complete((await answer.bytes_async()).to_bytes(), stop - start)

        try:
            content = await self.bucket.again_async(key, ask)
        except FileNotFoundError:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        wanted = [(key, prototype, byte_range) for key, byte_range in key_ranges]
        return await concurrent_map(wanted, self.get, limit=config.get("async.concurrency"))

    async def exists(self, key: str) -> bool:
        try:
            await self.bucket.again_async(key, lambda: _obstore().head_async(self.bucket.store, self.bucket.key(key)))
        except FileNotFoundError:
            return False
        return True

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        content, place = value.to_bytes(), self.bucket.key(key)
        await self.bucket.again_async(
            key, lambda: _obstore().put_async(self.bucket.store, place, content, use_multipart=False)
        )

    async def delete(self, key: str) -> None:
        self._check_writable()
        with suppress(FileNotFoundError):
            await self.bucket.again_async(key, lambda: _obstore().delete_async(self.bucket.store, self.bucket.key(key)))

    async def list(self) -> AsyncIterator[str]:
        for key in await asyncio.to_thread(self.bucket.sizes):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        folder = prefix.rpartition("/")[0]
        for key in await asyncio.to_thread(self.bucket.sizes, folder):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folders, objects = await asyncio.to_thread(self.bucket.children, prefix.strip("/"))
        for name in [*folders, *objects]:
            yield name


def _reopened(url: str, read_only: bool) -> RemoteStore:
    return RemoteStore(Bucket(url), read_only=read_only)


def _range(asked: ByteRequest | None) -> GetOptions:
    if asked is None:
        return {}
    if isinstance(asked, RangeByteRequest):
        return {"range": (asked.start, asked.end)}
    if isinstance(asked, OffsetByteRequest):
        return {"range": {"offset": asked.offset}}
    return {"range": {"suffix": asked.suffix}}


def _complete(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise ConnectionError(f"an answer cut short: {len(content)} of {size} bytes")
    return content


def _says(error: BaseException, *words: str) -> bool:
    return any(word in str(error) for word in words)


def _status(error: BaseException) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _brief(error: BaseException | None) -> str:
    first = str(error).split("\n\nDebug source")[0].split(": <?xml")[0].splitlines()
    return (first[0] if first else type(error).__name__)[:300]


def _refused(where: str, found: str, expected: str, action: str) -> StoreError:
    return StoreError(where, found=found, expected=expected, action=action)


# --- connecting -----------------------------------------------------------------------------------------------


@cache
def _memory(name: str) -> MemoryStore:
    from obstore.store import MemoryStore

    return MemoryStore()


def _connect(scheme: str, bucket: str, timeout: float) -> ObjectStore:
    if scheme == "memory":
        return _memory(bucket)
    given: Mapping[str, str | bool] = {}
    if scheme == "s3":
        given = {"region": PUBLIC[bucket], "skip_signature": True} if bucket in PUBLIC else credentials()
    return _opened(scheme, bucket, timeout, tuple(sorted(given.items())))


@cache
def _opened(scheme: str, bucket: str, timeout: float, given: tuple[tuple[str, str | bool], ...]) -> ObjectStore:
    """One client, with its connections, for each bucket and process."""
    options: ClientConfig = {"timeout": f"{timeout:g}s", "connect_timeout": f"{min(timeout, 10):g}s"}
    if str(dict(given).get("endpoint", "")).startswith("http://"):
        options["allow_http"] = True
    once: RetryConfig = {"max_retries": 0}
    from obstore.store import GCSStore, S3Store

    kind: Callable[..., ObjectStore] = GCSStore if scheme == "gs" else S3Store
    try:
        return kind(bucket, client_options=options, retry_config=once, **dict(given))
    except Exception as error:
        action = "correct the credentials (see docs/places.md)"
        raise _refused(f"{scheme}://{bucket}", _brief(error), "settings that it can be opened with", action) from error


def credentials() -> dict[str, str]:
    """What ~/.aws (profile AWS_PROFILE) and AWS_ENDPOINT_URL say beyond the variables that obstore itself reads."""
    found: dict[str, str] = {}
    profile = os.environ.get("AWS_PROFILE", "default")
    places = {
        "AWS_CONFIG_FILE": ("config", profile if profile == "default" else f"profile {profile}"),
        "AWS_SHARED_CREDENTIALS_FILE": ("credentials", profile),
    }
    section: dict[str, str] = {}
    for variable, (name, title) in places.items():
        parser = configparser.ConfigParser(interpolation=None)
        file = Path(os.environ.get(variable, "~/.aws/" + name)).expanduser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise _refused(
                str(file),
                f"a file that cannot be read ({error})",
                "profiles as AWS's own tools write them",
                "correct this file, or write it anew with `aws configure`",
            ) from error
        section |= dict(parser[title]) if title in parser else {}
    if "AWS_ACCESS_KEY_ID" not in os.environ and "aws_access_key_id" in section:
        found["access_key_id"] = section["aws_access_key_id"]
        found["secret_access_key"] = section.get("aws_secret_access_key", "")
        if "aws_session_token" in section:
            found["session_token"] = section["aws_session_token"]
    if not {"AWS_REGION", "AWS_DEFAULT_REGION"} & set(os.environ):
        found["region"] = section.get("region", "us-east-1")
    endpoint = next((os.environ[n] for n in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if n in os.environ), None)
    endpoint = endpoint or section.get("endpoint_url")
    if endpoint:
        found["endpoint"] = endpoint
    return found
