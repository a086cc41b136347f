"""A small decision tree that decides as a scheduler does: scikit-learn's, with rules that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.understanding.decisions import Difference, Reading
from agents.understanding.features import raw_values
from agents.understanding.visits import Visits
from dsd_env.extras import needs

if TYPE_CHECKING:
    from agents.rollouts import Stage

_LEAF = -1
"""What scikit-learn's trees have as the child of a leaf."""


class Tree:
    """A fitted tree.

    Its classes are whole decisions in the form of :meth:`Reading.executed`. In a leaf the commonest one that
    the mask allows is taken.

    Attributes:
        leaves: Number of leaves.
        depth: Depth.
        features: Names of the features that it asks for.
    """

    def __init__(
        self,
        reading: Reading,
        visits: Visits,
        *,
        leaves: int,
        depth: int,
        columns: NDArray[np.int64] | None = None,
    ) -> None:
        """Fit a tree.

        Args:
            reading: Reads decisions.
            visits: States, and what the scheduler decides there.
            leaves: Most leaves.
            depth: Most depth.
            columns: Features that it may use; None: all.

        Raises:
            ModuleNotFoundError: scikit-learn is missing.
        """
        with needs("explain", "distilling a tree"):
            from sklearn.tree import DecisionTreeClassifier

        self._reading = reading
        self._columns = np.arange(len(reading.features)) if columns is None else columns
        executed = reading.executed(visits.observations, visits.actions)
        self._decisions, labels = np.unique(executed, axis=0, return_inverse=True)
        labels = labels.reshape(-1)
        model = DecisionTreeClassifier(max_leaf_nodes=leaves, max_depth=depth, random_state=0)
        model.fit(visits.observations[:, self._columns], labels)
        fitted: Any = model.tree_
        self._nodes = fitted
        reached = fitted.apply(self._inputs(visits.observations))
        counts = np.zeros((fitted.node_count, len(self._decisions)))
        np.add.at(counts, (reached, labels), 1.0)
        for node in range(fitted.node_count - 1, -1, -1):  # children have higher numbers than their parents
            if fitted.children_left[node] != _LEAF:
                below = [fitted.children_left[node], fitted.children_right[node]]
                counts[node] = counts[below].sum(axis=0)
        self._counts = counts
        # Decisions never seen in a leaf come after all that were, by how common they are anywhere.
        self._ranking = counts + counts[0] / (2.0 * counts[0].sum())
        self.leaves, self.depth = int(model.get_n_leaves()), int(model.get_depth())
        asked = sorted({int(each) for each in fitted.feature if each >= 0})
        self.features = [reading.features[self._columns[each]].name for each in asked]

    def decisions(self, observations: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return actions in the form of :meth:`Reading.executed`: int64, shape (n, 3)."""
        allowed = self._reading.allowed(masks, self._decisions)
        scores = np.where(allowed, self._ranking[self._nodes.apply(self._inputs(observations))], -1.0)
        chosen: NDArray[np.int64] = self._decisions[scores.argmax(axis=1)]
        chosen[~allowed.any(axis=1)] = 0  # plain decoding where the request is can always be done
        return chosen

    def __call__(self, stage: Stage, which: Sequence[int]) -> NDArray[np.int64]:
        """Return the tree's actions in some environments."""
        return self.decisions(stage.observations[list(which)], stage.masks[list(which)])

    def difference(self, visits: Visits) -> Difference:
        """Return how far it differs from the scheduler."""
        wanted = self._reading.executed(visits.observations, visits.actions)
        return self._reading.difference(wanted, self.decisions(visits.observations, visits.masks))

    def rules(self) -> str:
        """Return the tree as text; thresholds have the units of their features."""
        lines: list[str] = []
        self._write(0, 0, lines)
        return "\n".join(lines) + "\n"

    def json(self) -> list[dict[str, Any]]:
        """Return the nodes: a feature, its threshold and two children, or a decision."""
        found: list[dict[str, Any]] = []
        for node in range(self._nodes.node_count):
            seen: dict[str, Any] = {"states": int(self._counts[node].sum())}
            if self._nodes.children_left[node] == _LEAF:
                gamma, batch, placement = self._decisions[self._counts[node].argmax()].tolist()
                actions = self._reading.actions
                seen |= {
                    "gamma": actions.windows[gamma],
                    "batch_size": actions.batch_sizes[batch],
                    "placement": placement,
                    "words": self._reading.words(self._decisions[self._counts[node].argmax()]),
                    "right": float(self._counts[node].max() / self._counts[node].sum()),
                }
            else:
                feature, raw = self._split(node)
                seen |= {
                    "feature": feature.name,
                    "unit": feature.unit,
                    "at_most": raw,
                    "then": int(self._nodes.children_left[node]),
                    "else": int(self._nodes.children_right[node]),
                }
            found.append(seen)
        return found

    def _inputs(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(observations[:, self._columns], dtype=np.float32)

    def _split(self, node: int) -> tuple[Any, float]:
        feature = self._reading.features[self._columns[self._nodes.feature[node]]]
        scaled = np.array([[self._nodes.threshold[node]]])
        return feature, float(raw_values([feature], scaled)[0, 0])

    def _write(self, node: int, level: int, lines: list[str]) -> None:
        indent = "  " * level
        counts = self._counts[node]
        if self._nodes.children_left[node] == _LEAF:
            share, right = counts.sum() / self._counts[0].sum(), counts.max() / counts.sum()
            words = self._reading.words(self._decisions[counts.argmax()])
            lines.append(f"{indent}{words}   [{100 * share:.1f} % of states, right in {100 * right:.0f} %]")
            return
        feature, raw = self._split(node)
        if feature.unit == "0/1":
            then, otherwise = f"not {feature.name}", feature.name
        else:
            unit = "" if feature.unit == "1" else f" {feature.unit}"
            then, otherwise = f"{feature.name} <= {raw:.4g}{unit}", f"{feature.name} > {raw:.4g}{unit}"
        for words, child in (
            (then, self._nodes.children_left[node]),
            (otherwise, self._nodes.children_right[node]),
        ):
            lines.append(f"{indent}if {words}:")
            self._write(int(child), level + 1, lines)
