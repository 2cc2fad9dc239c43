"""What the service says over HTTP: paths, limits before anything is parsed, the token, errors in one style."""

from __future__ import annotations

import asyncio
import hmac
import html
import io
import logging
import time
import zipfile
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from bdflow.errors import InputError
from bdflow.serve.bodies import JSON, NPY, NPZ, Refusal
from bdflow.serve.dispatcher import Capacity, Counts, Dispatcher, Health
from bdflow.serve.requests import AskedLatents, AskedPatterns, Capabilities, CheckedRequest, latents, patterns
from bdflow.version import __version__

READING = 60.0  # seconds a body may take to arrive
DISCARDED = 4  # times the largest body, read and thrown away so that the refusal reaches the sender
OPEN = "/healthz"
logger = logging.getLogger(__name__)


def app_of(
    capabilities: Capabilities, dispatcher: Dispatcher, capacity: Capacity, counts: Counts, health: Health, token: str
) -> Gate:
    """The ASGI application. With a token, all but /healthz want `Authorization: Bearer <token>`."""
    app = FastAPI(
        title="bdflow",
        version=__version__,
        summary="Pictures from voxels or from predicted latents, by a study's decoders and networks.",
        docs_url=None,
        redoc_url=None,
    )

    @app.get(OPEN, summary="200 while every kind of replica has one running, else 503")
    async def healthz() -> JSONResponse:
        found = await health.replicas()
        return JSONResponse({"replicas": found}, 200 if found and all(found.values()) else 503)

    @app.get("/metrics", summary="Requests, items, batches, seconds, errors, for Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(counts.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    @app.get("/v1/study", summary="What this service can answer: subjects, voxels, units, spaces, limits")
    async def study() -> dict[str, object]:
        return {
            "voxels": dict(capabilities.voxels),
            "units": dict(capabilities.units),
            "spaces": {name: list(shape) for name, shape in capabilities.spaces.items()},
            "standardise": capabilities.standardise,
            "rules": {subject: list(rules) for subject, rules in capabilities.rules.items()},
            "limits": {"items": capabilities.items, "body_bytes": capabilities.nbytes},
        }

    async def answered(request: Request, read: Callable[..., CheckedRequest]) -> Response:
        capacity.check()
        query, kind = request.query_params.multi_items(), request.headers.get("content-type", "")
        body = await _body(request, capabilities.nbytes, capacity)
        try:
            checked = await asyncio.to_thread(read, capabilities, kind, query, body)
        finally:
            capacity.grow(-len(body))
        del body
        pictures = await dispatcher.pictures_of(checked)
        counts.items.labels(request.url.path).inc(len(pictures))
        if len(pictures) == 1:
            return Response(pictures[0], media_type="image/png")
        return Response(zipped(pictures), media_type="application/zip")

    @app.post(
        "/v1/patterns",
        summary="Voxels of a subject to pictures",
        response_class=Response,
        responses=_responses(),
        openapi_extra=_body_schema(AskedPatterns, NPY, "`numpy.save` of (n, voxels); the rest in the query"),
    )
    async def of_patterns(request: Request) -> Response:
        return await answered(request, patterns)

    @app.post(
        "/v1/latents",
        summary="Predicted latents to pictures",
        response_class=Response,
        responses=_responses(),
        openapi_extra=_body_schema(AskedLatents, NPZ, "`numpy.savez` with an array a space; the rest in the query"),
    )
    async def of_latents(request: Request) -> Response:
        return await answered(request, latents)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return refusal(error, capacity.retry_after)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        said = Refusal(
            error.status_code,
            request.url.path,
            found=f"{request.method}: {str(error.detail).lower()}",
            expected=", ".join(
                f"{'/'.join(m.upper() for m in of)} {path}" for path, of in app.openapi()["paths"].items()
            ),
            action="see /docs",
        )
        return refusal(said)

    return Gate(app, counts, token)


class Gate:
    """Around the application: the token, counts, and answers to what nobody expected."""

    def __init__(self, app: FastAPI, counts: Counts, token: str) -> None:
        self.app, self.counts, self.token = app, counts, f"Bearer {token}".encode() if token else b""
        self.paths = {"/v1/patterns", "/v1/latents", "/v1/study", "/metrics", "/docs", "/openapi.json", OPEN}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        status, start = 0, time.perf_counter()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self.token and path != OPEN and not self._known(scope):
                await refusal(_no_token())(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        except Exception:
            logger.exception("unexpected error at %s", path)
            if not status:
                await refusal(_unexpected())(scope, receive, counted)
        finally:
            self.counts.requests.labels(path, str(status)).inc()
            self.counts.seconds.labels(path).observe(time.perf_counter() - start)
            if status >= 400:
                self.counts.errors.labels(str(status)).inc()

    def _known(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self.token)


def _no_token() -> Refusal:
    return Refusal(
        401,
        "Authorization",
        found="no token, or another",
        expected="Bearer and the service's token",
        action="send the header `Authorization: Bearer TOKEN`",
    )


def _unexpected() -> Refusal:
    return Refusal(
        500,
        "service",
        found="an error of its own",
        expected="an answer",
        action="tell whoever runs this service; to them: its log holds the error",
    )


async def _body(request: Request, most: int, capacity: Capacity) -> bytes:
    """The body, never more than `most` bytes of it. Raises Refusal: 400, 408, 413, 503."""
    parts: list[bytes] = []
    held = 0
    try:
        async with asyncio.timeout(READING):
            declared = request.headers.get("content-length", "")
            if declared.isascii() and declared.isdigit() and int(declared) > most:
                await _discard(request, most)
                raise _too_large(f"{int(declared):,} bytes", most)
            async for part in request.stream():
                if held + len(part) > most:
                    await _discard(request, most)
                    raise _too_large(f"more than {most:,} bytes", most)
                capacity.grow(len(part))
                held += len(part)
                parts.append(part)
    except BaseException as error:
        capacity.grow(-held)
        if isinstance(error, TimeoutError):
            raise Refusal(
                408,
                "body",
                found=f"a body that did not end within {READING:g} s",
                expected="the whole body",
                action="send it again",
            ) from error
        raise
    return b"".join(parts)


async def _discard(request: Request, most: int) -> None:
    """Read on and keep nothing: who is still sending reads no answer."""
    seen = 0
    while seen < DISCARDED * most:
        message = await request.receive()
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _too_large(found: str, most: int) -> Refusal:
    return Refusal(
        413,
        "body",
        found=found,
        expected=f"{most:,} bytes at most",
        action="send fewer items at a time, as .npy or .npz, or have the limit of the service raised",
    )


def refusal(error: InputError, retry_after: int = 0) -> JSONResponse:
    """An error as JSON: where, what was found, what was expected, what to do."""
    status = getattr(error, "status", 500)
    headers = {"Retry-After": str(retry_after)} if status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    headers |= {"Connection": "close"} if status in (401, 408, 413) else {}
    said = {"where": error.where, "found": error.found, "expected": error.expected, "what_to_do": error.action}
    encodable = {name: text.encode(errors="backslashreplace").decode() for name, text in said.items()}
    return JSONResponse({"error": encodable}, status, headers)


def zipped(pictures: list[bytes]) -> bytes:
    """A ZIP of 000.png, 001.png, ...; PNGs are packed already."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for i, picture in enumerate(pictures):
            archive.writestr(f"{i:03}.png", picture)
    return out.getvalue()


def _body_schema(model: type[BaseModel], kind: str, text: str) -> dict[str, object]:
    schema = model.model_json_schema()
    query = [
        {
            "name": name,
            "in": "query",
            "schema": of,
            "required": name in schema["required"],
            "description": f"With {kind}.",
        }
        for name, of in schema["properties"].items()
        if name not in ("pattern", "latents")
    ]
    binary = {"schema": {"type": "string", "format": "binary", "description": text}}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}, kind: binary}}, "parameters": query}


def _responses() -> dict[int | str, dict[str, object]]:
    picture = {"schema": {"type": "string", "format": "binary"}}
    error = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("where", "found", "expected", "what_to_do")},
            }
        },
    }
    texts = {
        400: "a body that cannot be read",
        401: "no token",
        404: "an unknown subject",
        408: "a body that did not arrive",
        413: "too many bytes or items",
        415: "another kind of body",
        422: "values that do not fit the study",
        500: "the work failed",
        503: "too much waits; Retry-After says how long",
    }
    refused: dict[int | str, dict[str, object]] = {
        code: {"description": text, "content": {JSON: {"schema": error}}} for code, text in texts.items()
    }
    made = "One picture as PNG; several as a ZIP of 000.png, 001.png, ..."
    return {200: {"description": made, "content": {"image/png": picture, "application/zip": picture}}, **refused}


def page(spec: dict[str, Any]) -> str:
    """OpenAPI's paths as one HTML page that needs neither script nor network."""
    lines = [
        "<!doctype html><meta charset=utf-8><title>bdflow</title>",
        "<style>body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "td,th{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}code{background:#eee}</style>",
        f"<h1>bdflow {html.escape(spec['info']['version'])}</h1><p>{html.escape(spec['info']['summary'])}</p>",
        '<p>The whole description, for machines: <a href="openapi.json">openapi.json</a></p>',
    ]
    for path, methods in spec["paths"].items():
        for method, of in methods.items():
            lines.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(of['summary'])}</p>"
            )
            for kind, content in of.get("requestBody", {}).get("content", {}).items():
                lines.append(f"<h3><code>{html.escape(kind)}</code></h3>")
                lines.append(_table(content["schema"]))
            if "requestBody" in of:
                codes = "".join(
                    f"<tr><td>{code}<td>{html.escape(r['description'])}" for code, r in of["responses"].items()
                )
                lines.append(f"<h3>answers</h3><table>{codes}</table>")
    return "\n".join(lines)


def _table(schema: dict[str, Any]) -> str:
    if "properties" not in schema:
        return f"<p>{html.escape(schema.get('description', ''))}</p>"
    rows = []
    for name, of in schema["properties"].items():
        values = ", ".join(of.get("enum", ()))
        default = "needed" if name in schema.get("required", ()) else f"default {of.get('default')}"
        rows.append(
            f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(default)}"
            f"<td>{html.escape(of.get('description', ''))} {html.escape(values)}"
        )
    return f"<table>{''.join(rows)}</table>"
