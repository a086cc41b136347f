"""How far ahead to draft: the adaptive rules of papers and engines, one class each.

A rule is told how every round went and names the length of the next one. Where to draft and at which target
is decided elsewhere (:mod:`dsd_env.schedulers.adaptive`), so that rules combine with places and routes.

What a rule keeps belongs to the controller that it stands for: one that serves all requests, as in the
sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from dsd_env.control import DecisionView
from dsd_env.control.actions import snap
from dsd_env.rng import Stream, key, uniform_from_key
from dsd_env.schedulers.base import SchedulerError
from dsd_env.schedulers.hf import next_length
from dsd_env.schedulers.rules import pick

EXPLORATION_DRAW = 7
"""Offset of a rule's draws among those of a decision, behind the three of random choices."""
DRAWS = 16
"""Draws that a decision may use."""


class Outcome(NamedTuple):
    """How a request's last round went.

    Attributes:
        gamma: Length asked for; 0 for a chunk of plain decoding.
        seconds: Time from its decision to the next.
        tokens: Tokens that it committed.
    """

    gamma: int
    seconds: float
    tokens: int


class LengthRule(Protocol):
    """Names the length of the next round."""

    def reset(self, seed: int) -> None:
        """Begin an episode: forget everything."""
        ...

    def learn(self, view: DecisionView, outcome: Outcome) -> None:
        """Take in how the last round of the view's request went."""
        ...

    def length(self, view: DecisionView) -> int:
        """Return a length on the view's list."""
        ...


class Stateless:
    """A rule that keeps nothing."""

    def reset(self, seed: int) -> None:
        """Do nothing."""

    def learn(self, view: DecisionView, outcome: Outcome) -> None:
        """Do nothing."""


# ---------------------------------------------------------------------- without memory


@dataclass
class FixedLength(Stateless):
    """The same length always.

    Attributes:
        gamma: It; the largest listed one that is at most this is used.
    """

    gamma: int

    def length(self, view: DecisionView) -> int:
        """Return it."""
        return snap(view.gammas, self.gamma)


@dataclass
class HuggingFace(Stateless):
    """All drafts accepted: k += 2, else k = max(1, k - 1), from the request's last draft round.

    Source: ``AssistedCandidateGenerator.update_candidate_strategy`` of transformers.
    """

    def length(self, view: DecisionView) -> int:
        """Return k."""
        return next_length(view)


@dataclass
class BatchTable(Stateless):
    """A length by the number of requests at the target, as vLLM's ``num_speculative_tokens_per_batch_size``.

    Attributes:
        steps: Smallest number of requests that a length holds for, and the length; increasing from 1.
    """

    steps: tuple[tuple[int, int], ...]

    def length(self, view: DecisionView) -> int:
        """Return the length of the last step that the target's requests reach."""
        reached = [gamma for least, gamma in self.steps if view.target.resident >= least]
        return snap(view.gammas, reached[-1] if reached else self.steps[0][1])


@dataclass
class GlobalTopB(Stateless):
    """Verify a draft if it is worth the time that it takes from everybody in the iteration.

    The j-th draft of a request survives with probability a^j. An iteration of N tokens in T seconds gains
    it, and becomes longer by c, the marginal time of a token, which costs N c / T tokens. So drafts are
    verified as long as a^j > N c / T: those of all requests that are best, as many as make the most tokens
    per second.

    Source: the rule of vLLM's adaptive verification and SGLang's ``schedule_verify_lens_topk``, from
        confidences there. Here a is the request's running acceptance, since a draft's confidence is not
        known before it is made, and what drafting itself takes is not counted, as there.

    Attributes:
        weight: Factor of the price N c / T.
    """

    weight: float = 1.0

    def length(self, view: DecisionView) -> int:
        """Return how many drafts are worth it."""
        a, price = min(max(view.request.acceptance_rate, 1e-3), 0.999), self.weight * token_price(view)
        if price >= 1.0:
            return view.gammas[0]
        if price <= 0.0:
            return view.gammas[-1]
        return snap(view.gammas, math.floor(math.log(price) / math.log(a) + 1e-9))


def token_price(view: DecisionView) -> float:
    """Return how many tokens all at the target lose in the time that one more to verify takes: N c / T."""
    target = view.target
    tokens = max(1, target.resident) * view.request.tokens_per_round
    return tokens * target.token_s / max(target.iteration_s, 1e-9)


# ---------------------------------------------------------------------- one step at a time


@dataclass
class TimeOut:
    """A round that took longer than a limit: k - 1, else k + 1; each request has its own k.

    Source: the time-out of SLED (arXiv 2506.09397), after which the server no longer waits for an edge.

    Attributes:
        limit_s: The limit.
        start: k of the first round.
    """

    limit_s: float = 0.1
    start: int = 4
    _lengths: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def reset(self, seed: int) -> None:
        """Forget all requests."""
        self._lengths.clear()

    def learn(self, view: DecisionView, outcome: Outcome) -> None:
        """Move the request's k by one step of the list."""
        at = view.gammas.index(snap(view.gammas, outcome.gamma))
        step = -1 if outcome.seconds > self.limit_s else 1
        least = min(1, len(view.gammas) - 1)
        remember(self._lengths, view.request_id, view.gammas[_clamp(at + step, least, len(view.gammas) - 1)])

    def length(self, view: DecisionView) -> int:
        """Return the request's k."""
        return snap(view.gammas, self._lengths.get(view.request_id, self.start))


SGLANG_TIERS = ((1, (1, 3, 5, 7)), (8, (0, 1, 3)), (32, (0, 1)), (64, (0,)))
"""Lengths that SGLang's adaptive speculation may choose from, by batch size."""
FIRST_EMA_TOKENS = 1.0
"""Mean of accepted drafts with which an episode begins."""
FIRST_EMA_LENGTH = 3
"""Length with which it begins."""


@dataclass
class EmaTiers:
    """A running mean of accepted drafts moves k within the lengths that the batch size allows.

    Up while the mean is above k - 0.5 + `up`, down while it is at most that of the next smaller one
    - 0.5 + `down`; looked at every `interval` rounds. Rounds of plain decoding teach nothing, so after an
    interval of them the smallest other length is tried for one.

    Source: SGLang's adaptive speculative decoding (``AdaptiveSpeculativeParams``), with its defaults.

    Attributes:
        weight: Of a new round in the mean.
        interval: Rounds between two looks.
        up: Hysteresis upwards, in tokens.
        down: Hysteresis downwards. By both defaults 0 is never asked for where there is another length.
    """

    weight: float = 0.2
    interval: int = 5
    up: float = 0.0
    down: float = -0.25
    _mean: float = field(default=FIRST_EMA_TOKENS, init=False, repr=False)
    _rounds: int = field(default=0, init=False, repr=False)
    _length: int = field(default=FIRST_EMA_LENGTH, init=False, repr=False)

    def reset(self, seed: int) -> None:
        """Begin with a mean of one accepted draft, and k = 3."""
        self._mean, self._rounds, self._length = FIRST_EMA_TOKENS, 0, FIRST_EMA_LENGTH

    def learn(self, view: DecisionView, outcome: Outcome) -> None:
        """Move the mean, and k if it is time to."""
        self._rounds += 1
        if outcome.gamma > 0:
            self._mean += self.weight * (max(0, outcome.tokens - 1) - self._mean)
        if self._rounds % self.interval:
            return
        steps = self._tier(view)
        at = steps.index(snap(steps, self._length))
        if steps[at] == 0 and len(steps) > 1:
            # Plain decoding has taught nothing: try the smallest other length until the next look.
            self._length = steps[1]
            return
        while at > 0 and self._mean <= steps[at - 1] - 0.5 + self.down:
            at -= 1
        while at + 1 < len(steps) and self._mean > steps[at] - 0.5 + self.up:
            at += 1
        self._length = steps[at]

    def length(self, view: DecisionView) -> int:
        """Return k, or the largest below it that the batch size allows."""
        return snap(view.gammas, snap(self._tier(view), self._length))

    @staticmethod
    def _tier(view: DecisionView) -> tuple[int, ...]:
        return [steps for least, steps in SGLANG_TIERS if max(1, view.target.resident) >= least][-1]


# ---------------------------------------------------------------------- bandits


@dataclass
class Arm:
    """What rounds of one length have given.

    Attributes:
        pulls: How many there were.
        seconds: Time that they took in all.
        tokens: Tokens that they committed in all.
    """

    pulls: int = 0
    seconds: float = 0.0
    tokens: float = 0.0


class _Bandit:
    """Arms by context and length."""

    def __init__(self) -> None:
        self._arms: dict[tuple[int, int], Arm] = {}
        self._seconds = 0.0
        self._rounds = 0
        self._seed = 0

    def reset(self, seed: int) -> None:
        """Forget all arms."""
        self._arms.clear()
        self._seconds, self._rounds, self._seed = 0.0, 0, seed

    def learn(self, view: DecisionView, outcome: Outcome) -> None:
        """Book a round with its length's arm."""
        arm = self._arm(self.context(view), outcome.gamma)
        arm.pulls += 1
        arm.seconds += outcome.seconds
        arm.tokens += outcome.tokens
        self._seconds += outcome.seconds
        self._rounds += 1

    def context(self, view: DecisionView) -> int:
        """Return the number of the context that a decision is taken in."""
        return 0

    def _arm(self, context: int, gamma: int) -> Arm:
        return self._arms.setdefault((context, gamma), Arm())

    def _offered(self, view: DecisionView, plain: bool) -> list[tuple[int, Arm]]:
        context = self.context(view)
        lengths = view.gammas if plain or len(view.gammas) == 1 else view.gammas[1:]
        return [(gamma, self._arm(context, gamma)) for gamma in lengths]

    @staticmethod
    def _untried(arms: Sequence[tuple[int, Arm]]) -> int | None:
        """Return the first length that nobody has tried; rounds under way do not count yet."""
        return next((gamma for gamma, arm in arms if arm.tokens <= 0.0), None)


class UcbSpecStop(_Bandit):
    """Least time per token, less a bonus for lengths that were tried little: a ratio of sums.

    argmin over k of S_N / S_A - beta d sqrt(T_k ln t) / S_A, where T_k rounds of length k took S_N seconds
    and gave S_A tokens, of t rounds in all. d, the mean time of a round, makes beta a number.

    Source: UCB-SpecStop (arXiv 2606.20591); with `contexts` its variant by channel state: the round-trip
    time of the device's link, by factors of two.

    Attributes:
        beta: Weight of the bonus.
        contexts: Round-trip times are told apart up to so many factors of two above a millisecond; 1: not
            at all.
    """

    def __init__(self, beta: float = 0.5, contexts: int = 1) -> None:
        """Build the rule."""
        super().__init__()
        self.beta = beta
        self.contexts = contexts

    def context(self, view: DecisionView) -> int:
        """Return the channel's state."""
        octave = int(math.log2(max(1.0, 1e3 * view.link.rtt_s)))
        return min(octave, self.contexts - 1)

    def length(self, view: DecisionView) -> int:
        """Return the length with the least lower bound of time per token."""
        arms = self._offered(view, plain=False)
        untried = self._untried(arms)
        if untried is not None:
            return untried
        scale_s = self._seconds / self._rounds
        log_t = math.log(self._rounds + 1)
        return min(
            arms,
            key=lambda each: (
                (each[1].seconds - self.beta * scale_s * math.sqrt(each[1].pulls * log_t)) / each[1].tokens
            ),
        )[0]


class BanditSpec(_Bandit):
    """UCB over lengths, with tokens per second as the reward and a bonus by each length's own count.

    argmax over k of r_k + scale * max r * sqrt(2 ln t / T_k), where r_k are the tokens per second of T_k
    rounds.

    Source: BanditSpec (arXiv 2505.15141), UCBSpec. (Its published code divides by the sum of all counts, so
        that the bonus never tells lengths apart.)

    Attributes:
        scale: Weight of the bonus.
    """

    def __init__(self, scale: float = 0.3) -> None:
        """Build the rule."""
        super().__init__()
        self.scale = scale

    def length(self, view: DecisionView) -> int:
        """Return the length with the largest upper bound of tokens per second."""
        arms = self._offered(view, plain=False)
        untried = self._untried(arms)
        if untried is not None:
            return untried
        best = max(arm.tokens / arm.seconds for _, arm in arms)
        log_t = math.log(self._rounds + 1)
        return max(
            arms,
            key=lambda each: (
                each[1].tokens / each[1].seconds + self.scale * best * math.sqrt(2.0 * log_t / each[1].pulls)
            ),
        )[0]


class ContextualBandit(_Bandit):
    """The best length for each batch size, plain decoding among them, found by trying others now and then.

    Batch sizes, the target's residents, are told apart by factors of two. In each a random length is taken
    with probability min(1, explore n / sqrt(t)), n being the number of lengths and t the rounds there,
    otherwise the one with the most tokens per second.

    Source: after Nightjar (arXiv 2512.22420), a contextual bandit from batch sizes to lengths with 0;
    its schedule of exploration in blocks and its price of switching are not rebuilt.

    Attributes:
        explore: Weight of exploration.
    """

    def __init__(self, explore: float = 0.1) -> None:
        """Build the rule."""
        super().__init__()
        self.explore = explore

    def context(self, view: DecisionView) -> int:
        """Return which factor of two the target's residents lie in."""
        return int(math.log2(max(1, view.target.resident)))

    def length(self, view: DecisionView) -> int:
        """Return a length to try, or the best."""
        arms = self._offered(view, plain=True)
        untried = self._untried(arms)
        if untried is not None:
            return untried
        rounds = sum(arm.pulls for _, arm in arms)
        stream = key(self._seed, Stream.SCHEDULER, view.request_id)
        first = DRAWS * view.counter + EXPLORATION_DRAW
        if uniform_from_key(stream, first) < self.explore * len(arms) / math.sqrt(rounds):
            return pick(arms, uniform_from_key(stream, first + 1))[0]
        return max(arms, key=lambda each: each[1].tokens / each[1].seconds)[0]


# ---------------------------------------------------------------------- by name

REMEMBERED = 8192
"""Requests whose last round is remembered; a request's end is not told, so the oldest are forgotten."""


def remember(kept: dict[int, Any], request: int, value: Any) -> None:
    """Keep a value for a request, the newest last, and forget the oldest when they are too many."""
    kept.pop(request, None)
    kept[request] = value
    if len(kept) > REMEMBERED:
        del kept[next(iter(kept))]


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


class LengthEntry(NamedTuple):
    """One rule's name.

    Attributes:
        build: The rule, of its parameters.
        parameters: By name: the least and the largest value.
        help: What it does.
    """

    build: Callable[..., LengthRule]
    parameters: dict[str, tuple[float, float]]
    help: str


LENGTHS: dict[str, LengthEntry] = {
    "hf": LengthEntry(HuggingFace, {}, "all accepted: k += 2, else k - 1"),
    "top_b": LengthEntry(GlobalTopB, {"weight": (0.0, 100.0)}, "drafts worth their time to all"),
    "time_out": LengthEntry(
        TimeOut, {"limit_s": (1e-4, 100.0), "start": (1, 64)}, "round above the limit: k - 1, else k + 1"
    ),
    "ema_tiers": LengthEntry(
        EmaTiers,
        {"weight": (1e-3, 1.0), "interval": (1, 1000), "up": (-10.0, 10.0), "down": (-10.0, 10.0)},
        "SGLang's tiers by batch size and a running mean",
    ),
    "ucb_specstop": LengthEntry(
        UcbSpecStop, {"beta": (0.0, 100.0), "contexts": (1, 16)}, "bandit: least time per token"
    ),
    "bandit_spec": LengthEntry(BanditSpec, {"scale": (0.0, 100.0)}, "bandit: most tokens per second"),
    "contextual": LengthEntry(
        ContextualBandit, {"explore": (0.0, 100.0)}, "bandit by batch size, plain decoding included"
    ),
}
"""Rules by name; beside them, a whole number is a fixed length and ``table+N=G+...`` a table."""
WHOLE = ("start", "interval", "contexts", "most")
"""Parameters that are whole numbers."""


def length_rule(text: str, most: int, rules: Mapping[str, LengthEntry] = LENGTHS) -> LengthRule:
    """Return the rule of a specification: ``NAME[+KEY=VALUE...]``, ``table+N=G+...`` or a whole number.

    Args:
        text: The specification.
        most: The largest length allowed.
        rules: The rules that have names.

    Raises:
        SchedulerError: It is wrong; the message says what is known or allowed.
    """
    if text.isdecimal():
        if int(text) > most:
            raise SchedulerError(f"length {text} must be at most {most}")
        return FixedLength(int(text))
    name, *parts = text.split("+")
    pairs = [part.partition("=") for part in parts]
    if name == "table":
        return _table(text, [(left, right) for left, _, right in pairs], most)
    if name not in rules:
        raise SchedulerError(
            f"unknown length rule {name!r}; known are a whole number, table+N=G+..., {', '.join(rules)}"
        )
    entry = rules[name]
    values: dict[str, float] = {}
    for word, equals, number in pairs:
        if word not in entry.parameters or word in values or not equals:
            known = ", ".join(entry.parameters) or "none"
            raise SchedulerError(f"{name}: {word!r} is not a parameter to be set once; there are {known}")
        low, high = entry.parameters[word]
        try:
            values[word] = int(number) if word in WHOLE else float(number)
        except ValueError:
            raise SchedulerError(f"{name}: {word} = {number!r} is not a number") from None
        if not low <= values[word] <= high:
            raise SchedulerError(f"{name}: {word} = {number} must be in {low:g}..{high:g}")
    return entry.build(**values)


def _table(text: str, pairs: Sequence[tuple[str, str]], most: int) -> BatchTable:
    if not pairs or not all(left.isdecimal() and right.isdecimal() for left, right in pairs):
        raise SchedulerError(
            f"{text!r}: write table+N=G+..., requests at the target and the length from there on"
        )
    steps = tuple((int(left), int(right)) for left, right in pairs)
    sizes = [least for least, _ in steps]
    if sizes != sorted(set(sizes)) or sizes[0] != 1 or max(gamma for _, gamma in steps) > most:
        raise SchedulerError(f"{text!r}: numbers of requests must increase from 1, lengths be at most {most}")
    return BatchTable(steps)
