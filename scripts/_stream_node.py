"""What is compared on the scenario stream_node: ways to serve the same requests, each with its choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsd_env.scenario import Scenario, load_scenario

NODE_GAMMAS = (1, 2, 3, 4, 6, 8)
WINDOWS = (2, 3, 4, 6, 8, 12, 16)
DRAFTER = "llama-3.2-3b"
WINDOW_S = {1: 60.0, 8: 20.0, 32: 12.0, 64: 10.0, 128: 8.0}
"""Time measured, by number of requests: about 1 % of standard error."""
WARMUP_S = 10.0


@dataclass(frozen=True, eq=False)
class Way:
    """One way to serve the requests.

    Attributes:
        name: Its name in tables.
        drafters: The node's own drafters.
        place: Where drafts are made, as static choices name it.
        gammas: Speculation lengths or windows to choose from.
        gpus: GPUs that it occupies beside those of the target.
    """

    name: str
    drafters: tuple[dict[str, Any], ...]
    place: str
    gammas: tuple[int, ...]
    gpus: float = 0.0

    @property
    def schedulers(self) -> list[str]:
        """The static choices."""
        return [f"static:{gamma}:1:{self.place}" for gamma in self.gammas]


def _shared(parallelism: int) -> dict[str, Any]:
    return {"model": DRAFTER, "profile": f"{DRAFTER}_h100-sxm_tp{parallelism}"}


OWN_GPU = {
    **_shared(1),
    "mode": "dedicated",
    "concurrency": 128,
    "gpus": 1,
    "power": {"idle_w": 75.0, "busy_w": 700.0},
}
PLAIN = Way("plain", (), "plain", (0,))
NODE_TP1 = Way("node, drafter on 1 GPU", (_shared(1),), "colocated", NODE_GAMMAS)
NODE_TP2 = Way("node, drafter on 2 GPUs", (_shared(2),), "colocated", NODE_GAMMAS)
DEDICATED = Way("drafter on a GPU of its own", (OWN_GPU,), "colocated", WINDOWS, 1.0)
EDGE = Way("edge", (), "own", WINDOWS)
BRANCHES = ((1, 4), (2, 2), (2, 4), (4, 4))
"""Fan-outs and depths of branches that are tried."""
HITS = (0.5, 0.7, 0.75, 0.8)
"""Where a draft is wrong: how often the right token is among the 1, 2, 3, 4 likeliest beside it (assumed)."""
STEP_S, TOKEN_S = 0.003, 58.6e-6
"""A client's draft step with one token, and what each further one adds: the slope of the profile
llama-3.2-3b-q4_rtx-4090, 3.0 ms for one token and 3.4 for eight."""


def branching(
    fanout: int,
    depth: int,
    hits: Sequence[float] = HITS,
    step_s: float = STEP_S,
    token_s: float = TOKEN_S,
) -> dict[str, Any]:
    """Return the changes to a scenario whose clients' streams have branches.

    Args:
        fanout: Branches that open at each draft.
        depth: Tokens of a branch.
        hits: How often the right token for a wrong draft opens one of them, by fan-out.
        step_s: Time of a draft step with one token.
        token_s: What each further token of the step adds.
    """
    return {
        "protocol__branches": {"fanout": fanout, "depth": depth},
        f"acceptance__{DRAFTER}": {"source": "iid", "alpha": 0.75, "hits": list(hits)},
        "devices__client__drafter__profile": {"t0_s": step_s - token_s, "c_s_per_token": token_s},
    }


def node(requests: int, way: Way, rtt_s: float = 0.005, **changes: Any) -> Scenario:
    """Return the scenario of one way, saturated by so many requests.

    The episode ends with the window: what is measured is throughput, not whole requests.

    Args:
        requests: Requests in the system at a time, one per client.
        way: How they are served.
        rtt_s: Round trip between clients and node.
        **changes: Further changes to the scenario.
    """
    window_s = changes.pop("episode__window_s", WINDOW_S.get(requests, 12.0))
    warmup_s = changes.pop("episode__warmup_s", WARMUP_S)
    return load_scenario(
        "stream_node",
        **{
            "devices__client__count": requests,
            "targets__node__colocated_drafters": list(way.drafters),
            "links__link__one_way_s": rtt_s / 2.0,
            "episode__requests": None,
            "episode__warmup_requests": 0,
            "episode__warmup_s": warmup_s,
            "episode__window_s": window_s,
            "episode__horizon_s": warmup_s + window_s,
            **changes,
        },
    )


def ms_per_token(rows: Sequence[dict[str, float]], requests: int) -> float:
    """Return the mean time between a request's tokens, in milliseconds."""
    return sum(1e3 * requests / row["throughput_tokens_per_s"] for row in rows) / len(rows)


def relative_se(rows: Sequence[dict[str, float]]) -> float:
    """Return the relative standard error of the mean throughput, by batch means within each seed."""
    shares = [row["throughput_tokens_per_s_se"] / row["throughput_tokens_per_s"] for row in rows]
    return float(sum(share * share for share in shares) ** 0.5 / len(shares))
