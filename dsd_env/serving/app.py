"""The HTTP service: the Open Inference Protocol (v2), decisions from telemetry, metrics, reloading.

============================================ ============================================================
``GET /v2/health/live``, ``/v2/health/ready`` whether it runs, whether it takes calls (never need a token)
``GET /v2``, ``/v2/models/NAME[/ready]``      what the server and the model are
``POST /v2/models/NAME/infer``                observation in, decision out, without estimators
``POST /v1/decide``                           telemetry in, decisions out
``GET /v1/plan``                              the plan in force, with a policy of the fleet view
``POST /v1/reload``, ``/v1/rollback``         read the bundle again; return to the one before
``GET /metrics``                              figures in Prometheus' text format
============================================ ============================================================
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from dsd_env.extras import needs
from dsd_env.serving import tensors
from dsd_env.serving.service import Bucket, Limits, Service, ServiceError, loads

with needs("serve", "the HTTP service"):
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool

logger = logging.getLogger("dsd_env.serving.http")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_BINARY = "inference-header-content-length"
_PATHS = frozenset(
    {
        "/v2/health/live",
        "/v2/health/ready",
        "/v2",
        "/v1/decide",
        "/v1/plan",
        "/v1/reload",
        "/v1/rollback",
        "/metrics",
    }
)
_OPEN = ("/v2/health/live", "/v2/health/ready")


class TooLongError(Exception):
    """A body is longer than allowed."""


class Gate:
    """Lets calls in: checks token, rate and length of the body; counts and logs what became of each."""

    def __init__(self, app: Any, service: Service, limits: Limits, token: str | None) -> None:
        """Stand before an application."""
        self._app, self._service, self._limits = app, service, limits
        self._token = None if token is None else f"Bearer {token}".encode()
        self._bucket = Bucket(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin_s, sent, left = time.perf_counter(), 0, self._limits.body_bytes
        too_long = f"the body is longer than {left} bytes"

        async def limited() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise TooLongError(too_long)
            return message

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                sent = message["status"]
            await send(message)

        try:
            refused = self._refusal(scope)
            if refused is None:
                await self._app(scope, limited, counted)
            else:
                await _error(*refused, counted)
        except Exception as error:
            logger.exception("call failed", extra={"path": scope["path"]})
            if not sent:
                await _error(500, f"internal error: {type(error).__name__}", {}, counted)
        seconds = time.perf_counter() - begin_s
        self._service.count(self._label(scope["path"]), sent, seconds)
        logger.info("call", extra={"path": scope["path"][:200], "status": sent, "seconds": round(seconds, 6)})

    def _label(self, path: str) -> str:
        """Return the path under which a call is counted; those that callers make up are all one."""
        if path in _PATHS:
            return path
        model = f"/v2/models/{self._service.name}"
        return "/v2/models" if path == model or path.startswith(f"{model}/") else "other"

    def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        if scope["path"] in _OPEN:
            return None
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self._token is not None and not hmac.compare_digest(given, self._token):
            return 401, "a bearer token is needed", {"www-authenticate": "Bearer"}
        wait_s = self._bucket.take()
        if wait_s > 0.0:
            return 429, "too many calls", {"retry-after": str(max(1, round(wait_s)))}
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            return 413, f"the body is longer than {self._limits.body_bytes} bytes", {}
        return None


async def _error(status: int, message: str, headers: dict[str, str], send: Send) -> None:
    body = json.dumps({"error": message}).encode()
    told = {**headers, "content-type": "application/json", "content-length": str(len(body))}
    pairs = [(key.encode(), value.encode()) for key, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def create_app(service: Service, *, limits: Limits | None = None, token: str | None = None) -> Any:
    """Return the service as an ASGI application.

    Args:
        service: What answers.
        limits: What it takes.
        token: Bearer token that calls need, except for those about health; None: none.
    """
    # No pages of documentation: they load scripts from elsewhere.
    app = FastAPI(title="dsd_env", docs_url=None, redoc_url=None, openapi_url=None)

    def answer(data: Any, status: int = 200) -> Response:
        return Response(json.dumps(data), status, media_type="application/json")

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return answer({"error": str(error)}, error.status)

    async def too_long(_: Request, error: Exception) -> Response:
        return answer({"error": str(error)}, 413)

    async def unknown(request: Request, _: Exception) -> Response:
        return answer({"error": f"there is no {request.url.path[:200]}"}, 404)

    async def not_so(request: Request, error: Exception) -> Response:
        allowed = (getattr(error, "headers", None) or {}).get("Allow", "")
        told = {"Allow": allowed} if allowed else {}
        text = json.dumps({"error": f"{request.url.path[:200]} takes {allowed or 'another method'}"})
        return Response(text, 405, told, media_type="application/json")

    async def live(_: Request) -> Response:
        return answer({"live": True})

    def ready_now() -> Response:
        return answer({"ready": service.ready}, 200 if service.ready else 503)

    async def ready(_: Request) -> Response:
        return ready_now()

    async def server(_: Request) -> Response:
        from dsd_env import __version__

        return answer({"name": "dsd_env", "version": __version__, "extensions": ["binary_tensor_data"]})

    def check_model(request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version")
        known = tensors.version_of(service.digest)
        if name != service.name or version not in (None, known):
            raise ServiceError(
                f"there is no model {name!r:.80} {version or ''}; there is {service.name!r} {known}", 404
            )

    async def model(request: Request) -> Response:
        check_model(request)
        controller = service.controller
        return answer(tensors.metadata(service.name, controller.policy, service.digest, controller.scheduler))

    async def model_ready(request: Request) -> Response:
        check_model(request)
        return ready_now()

    async def infer(request: Request) -> Response:
        check_model(request)
        length = request.headers.get(_BINARY)
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 12):
            raise ServiceError(f"{_BINARY} = {length!r:.80} must be a whole number")
        body, head = tensors.infer(
            service.tensors,
            service.name,
            tensors.version_of(service.digest),
            await request.body(),
            None if length is None else int(length),
            service.mask,
        )
        if head is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={_BINARY: str(head)})

    app.add_exception_handler(ServiceError, refused)
    app.add_exception_handler(TooLongError, too_long)
    app.add_exception_handler(404, unknown)
    app.add_exception_handler(405, not_so)
    app.add_route("/v2/health/live", live, methods=["GET"])
    app.add_route("/v2/health/ready", ready, methods=["GET"])
    app.add_route("/v2", server, methods=["GET"])
    for root in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.add_route(root, model, methods=["GET"])
        app.add_route(f"{root}/ready", model_ready, methods=["GET"])
        app.add_route(f"{root}/infer", infer, methods=["POST"])

    async def decide(request: Request) -> Response:
        return answer(service.decide(loads(await request.body())))

    async def plan(_: Request) -> Response:
        return answer(service.plan())

    async def reload(request: Request) -> Response:
        body = await request.body()
        wanted = loads(body) if body else {}
        digest = wanted.get("sha256")
        if set(wanted) - {"sha256"} or not isinstance(digest, str | None):
            raise ServiceError("reload takes nothing but sha256, the digest that the manifest must have")
        return answer({"sha256": await run_in_threadpool(service.reload, digest)})

    async def rollback(request: Request) -> Response:
        return answer({"sha256": await run_in_threadpool(service.roll_back)})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics(), media_type="text/plain; version=0.0.4")

    app.add_route("/v1/decide", decide, methods=["POST"])
    app.add_route("/v1/plan", plan, methods=["GET"])
    app.add_route("/v1/reload", reload, methods=["POST"])
    app.add_route("/v1/rollback", rollback, methods=["POST"])
    app.add_route("/metrics", metrics, methods=["GET"])
    return Gate(app, service, limits or Limits(), token)
