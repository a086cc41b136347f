"""Windows for Ianvs: calls like those of its drafter's pipeline."""

import pytest

from dsd_env.serving.engines import EngineError
from dsd_env.serving.engines.ianvs import PolicyWindow
from tests.serving.engines.samples import Cycle, Witness, engine


class BaseSpeculativeDrafter:
    """What the mixin meets in Ianvs, of the base class of that name."""

    draft_tokens_per_step = 8

    def __init__(self):
        self.closed = []

    def resolve_draft_window(self, session, max_draft_tokens=None):
        shared = session["_shared_state"]
        remaining = max(int(shared["completion_limit"]) - len(shared["committed_ids"]), 0)
        window = min(self.draft_tokens_per_step, remaining)
        if max_draft_tokens is not None:
            window = min(max(int(max_draft_tokens or 0), 0), remaining)
        return int(window)

    def before_close_session(self, session):
        self.closed.append(session)


class Drafter(PolicyWindow, BaseSpeculativeDrafter):
    pass


def start(limit=30):
    return {"_shared_state": {"completion_limit": limit, "committed_ids": [], "prompt_token_count": 9}}


def test_windows_are_the_decisions_and_rounds_are_reported():
    controller, drafter = Witness(Cycle((4, 0, 2)), engine()), Drafter()
    drafter.use(controller)
    session, rounds = start(), []
    committed = session["_shared_state"]["committed_ids"]
    while len(committed) < 30:
        window = drafter.resolve_draft_window(session)
        accepted = min(len(rounds) % 3, window, 30 - len(committed) - 1)
        rounds.append((window, accepted))
        committed += [0] * (accepted + 1)
    assert drafter.resolve_draft_window(session) == 0
    (answers,) = controller.answers.values()
    left = 30
    for asked, (window, accepted) in zip(answers[1:], rounds, strict=True):
        assert window == min(max(1, asked), left)
        left -= accepted + 1
    assert drafter.plain == answers[1:].count(0) > 0
    request = next(iter(controller.requests.values()))
    assert request.spec.prompt_tokens == 9
    drafter.before_close_session(session)
    assert drafter.closed == [session]
    assert not controller.requests
    assert controller.counts["unknown_request"] == 0
    assert request.committed == 1 + 30
    newest_first = [drafted for drafted, _ in reversed(rounds)]
    assert list(request.recent_gammas) == newest_first[: len(request.recent_gammas)]


def test_the_limits_of_ianvs_hold():
    drafter = Drafter()
    drafter.use(Witness(Cycle((6,)), engine()))
    assert drafter.resolve_draft_window(start(), max_draft_tokens=3) == 3
    assert drafter.resolve_draft_window(start(), max_draft_tokens=0) == 0
    assert drafter.resolve_draft_window(start(2)) == 2
    drafter.before_close_session(start())


def test_without_a_controller_it_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("DSD_POLICY", raising=False)
    with pytest.raises(EngineError, match="DSD_POLICY"):
        Drafter().resolve_draft_window(start())
