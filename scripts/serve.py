"""Serve a policy or a rule over HTTP: the Open Inference Protocol, decisions from telemetry, metrics.

    python scripts/serve.py --policy policies/metro
    python scripts/serve.py --policy hf_heuristic --deployment single_lan --port 8400

It listens on this machine only, unless --host says otherwise; then give a token. SIGHUP reads the bundle's
directory again; a bundle that is damaged or does not fit is refused, and the one before goes on. SIGTERM lets
calls under way finish.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import _cli

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--policy", required=True, help="directory of a bundle, or a rule by name (docs/schedulers.md)"
    )
    parser.add_argument(
        "--deployment", help="scenario that describes what is served; default: that of the bundle's training"
    )
    parser.add_argument("--name", default="scheduler", help="name of the model (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8400, help="port to listen on; 0: any (%(default)s)")
    parser.add_argument(
        "--token-file", type=Path, help="file with the bearer token that calls need (or DSD_SERVE_TOKEN)"
    )
    parser.add_argument("--safe-rule", default="cloud_ar", help="rule that decides in trouble (%(default)s)")
    parser.add_argument(
        "--safe-plan",
        default="plain",
        metavar="G/B/PLACE",
        help="plan in force in trouble, with a policy of the fleet view (%(default)s)",
    )
    parser.add_argument("--max-body-bytes", type=int, default=1 << 20, help="longest body (%(default)s)")
    parser.add_argument("--max-calls-per-s", type=float, default=0.0, help="calls per second; 0: no limit")
    parser.add_argument("--burst", type=int, default=1000, help="calls that may come at once (%(default)s)")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    arguments = parser.parse_args()
    if not 0 <= arguments.port <= 65_535:
        parser.error(f"--port {arguments.port}: must be in 0..65535")

    from dsd_env.extras import needs
    from dsd_env.serving import Controller, GuardConfig
    from dsd_env.serving.service import Limits, Service, ServiceError

    with needs("serve", "the HTTP service"):
        import uvicorn
    from dsd_env.serving.app import create_app

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=arguments.log_level.upper(), handlers=[handler])
    try:
        token = _token(arguments.token_file)
        limits = Limits(arguments.max_body_bytes, arguments.max_calls_per_s, arguments.burst)
        guard = GuardConfig(safe_rule=arguments.safe_rule, safe_plan=arguments.safe_plan)
        controller = Controller(arguments.policy, arguments.deployment, guard=guard)
    except (ValueError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    if token is None and arguments.host not in ("127.0.0.1", "::1", "localhost"):
        print(
            f"serve: --host {arguments.host} lets other machines in: give --token-file too", file=sys.stderr
        )
        return 2
    path = None if controller.policy is None else Path(arguments.policy.removeprefix("policy:"))
    service = Service(controller, name=arguments.name, path=path)

    def reload() -> None:
        try:
            service.reload()
        except ServiceError as error:
            logging.getLogger("dsd_env.serving").warning("not reloaded", extra={"error": str(error)})

    if hasattr(signal, "SIGHUP"):
        # In a thread of its own: the signal may interrupt a call that holds the service's lock.
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=reload).start())
    config = uvicorn.Config(
        create_app(service, limits=limits, token=token),
        host=arguments.host,
        port=arguments.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    logging.getLogger("dsd_env.serving").info(
        "serving", extra={"scheduler": controller.scheduler, "deployment": controller.deployment.source}
    )
    server = uvicorn.Server(config)
    end = server.handle_exit

    def handle_exit(number: int, frame: Any) -> None:
        # Whoever balances load sees it in the readiness; calls under way are answered.
        service.ready = False
        end(number, frame)

    server.handle_exit = handle_exit
    server.run()
    return 0


def _token(file: Path | None) -> str | None:
    text = os.environ.get("DSD_SERVE_TOKEN") if file is None else file.read_text(encoding="utf-8")
    if text is None:
        return None
    token = text.strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token must be at least 16 printable ASCII characters, without spaces")
    return token


if __name__ == "__main__":
    _cli.run(main)
