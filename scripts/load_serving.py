"""Put load on a served policy (scripts/serve.py) and print calls per second and latencies.

    python scripts/load_serving.py --url http://127.0.0.1:8400 --clients 8 --seconds 10

Every client lets requests arrive, asks for a decision each round, tells its outcome, and finishes them, as an
engine would: one call a round, with the telemetry of the last in it. A call that gets no answer is repeated
with its name, so that none is lost or counted twice while the server restarts. The exit status is 1 if a call
was refused or never answered.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import _checkout  # noqa: F401
import _cli
import numpy as np

from dsd_env.files import write_json

ROUNDS = 20
"""Rounds of a request."""
RUN = uuid.uuid4().hex[:12]
"""Sets this run's calls and requests apart from those of another."""


class Client(threading.Thread):
    """A client with a connection of its own.

    Attributes:
        seconds: Time of each answered call.
        repeats: Calls that had to be repeated.
        refused: Answers with another status than 200, as texts.
        lost: Calls that were given up.
        sources: Decisions by what took them.
    """

    def __init__(self, number: int, url: str, target: str | None, stop: threading.Event, patience_s: float):
        super().__init__(name=f"client {number}")
        self._number, self._target, self._stop_at, self._patience_s = number, target, stop, patience_s
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._connection: http.client.HTTPConnection | None = None
        token = os.environ.get("DSD_SERVE_TOKEN")
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self.seconds: list[float] = []
        self.repeats = self.lost = self._calls = 0
        self.refused: list[str] = []
        self.sources: dict[str, int] = {}

    def run(self) -> None:
        """Serve one request after the other until told to stop."""
        request = 0
        while not self._stop_at.is_set():
            name = f"{RUN}-{self._number}-{request}"
            request += 1
            events: list[dict[str, Any]] = [
                {
                    "type": "RequestArrived",
                    "request": name,
                    "prompt_tokens": 200,
                    "client": f"client {self._number}",
                    "target": self._target,
                }
            ]
            for counter in range(ROUNDS):
                decision = self._decide(events, name, counter)
                if decision is None:
                    break
                source = decision["source"] if decision["reason"] != "unknown_request" else "unknown_request"
                self.sources[source] = self.sources.get(source, 0) + 1
                drafted = decision["gamma"]
                outcome = {"type": "RoundVerified", "drafted": drafted, "accepted": drafted // 2}
                if counter == 0 or drafted == 0:
                    outcome = {"type": "TokensCommitted"}
                events = [{**outcome, "request": name}]
                if self._stop_at.is_set():
                    break
            self._post({"events": [{"type": "RequestFinished", "request": name}]})

    def _decide(self, events: list[dict[str, Any]], name: str, counter: int) -> dict[str, Any] | None:
        answer = self._post({"events": events, "requests": [{"request": name, "counter": counter}]})
        return None if answer is None else answer["decisions"][0]

    def _post(self, data: dict[str, Any]) -> dict[str, Any] | None:
        self._calls += 1
        data["id"] = f"{RUN}/{self._number}/{self._calls}"
        body, give_up_s = json.dumps(data), time.monotonic() + self._patience_s
        while True:
            begin_s = time.perf_counter()
            try:
                if self._connection is None:
                    self._connection = http.client.HTTPConnection(self._host, self._port, timeout=10)
                self._connection.request("POST", "/v1/decide", body, self._headers)
                response = self._connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException):
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                self.repeats += 1
                if time.monotonic() > give_up_s:
                    self.lost += 1
                    return None
                time.sleep(0.05)
                continue
            self.seconds.append(time.perf_counter() - begin_s)
            if response.status != 200:
                self.refused.append(f"{response.status} {content[:200].decode(errors='replace')}")
                return None
            answer: dict[str, Any] = json.loads(content)
            return answer


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--url", default="http://127.0.0.1:8400", help="the server (%(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="calls at the same time (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (%(default)s)")
    parser.add_argument("--target", help="target that requests come to; default: the deployment decides")
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds until an unanswered call is lost (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments = parser.parse_args()
    _cli.at_least_one(parser, arguments, ("clients",))
    stop = threading.Event()
    clients = [
        Client(number, arguments.url, arguments.target, stop, arguments.patience)
        for number in range(arguments.clients)
    ]
    begin_s = time.perf_counter()
    for client in clients:
        client.start()
    time.sleep(arguments.seconds)
    stop.set()
    for client in clients:
        client.join()
    spent_s = time.perf_counter() - begin_s
    seconds = np.array([each for client in clients for each in client.seconds])
    refused = [each for client in clients for each in client.refused]
    sources: dict[str, int] = {}
    for client in clients:
        for source, count in client.sources.items():
            sources[source] = sources.get(source, 0) + count
    figures: dict[str, Any] = {
        "clients": arguments.clients,
        "calls": len(seconds),
        "calls_per_s": round(len(seconds) / spent_s, 1),
        "repeats": sum(client.repeats for client in clients),
        "lost": sum(client.lost for client in clients),
        "refused": len(refused),
        "decisions": sources,
    }
    for share in (50, 99):
        figures[f"p{share}_ms"] = (
            round(1e3 * float(np.percentile(seconds, share)), 3) if len(seconds) else None
        )
    print(json.dumps(figures, indent=1))
    for text in refused[:3]:
        print(text)
    if arguments.json:
        write_json(arguments.json, figures)
    return 1 if refused or figures["lost"] or not len(seconds) else 0


if __name__ == "__main__":
    _cli.run(main)
