"""A number and its unit stay on one line: ``+1.8 %`` in a narrow column of a table, say.

Pages are written with ordinary spaces, which git hosts and terminals show as well; the site alone is set in
columns so narrow that it matters.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

_SPACE = re.compile(r"(?<=\d) (?=[%±…])|(?<=[±>…]) (?=[+-]?\d)|(?<=\w) (?=\d+ %)|(?<=,) (?=s\b)")
"""In ``chat 100 %``, ``1.5 ± 0.4 %``, ``(+1 … +2)``, ``> 1.1``, and before a metric's unit: ``time, s``."""
_AS_WRITTEN = (nodes.literal, nodes.literal_block, nodes.raw)


def unbroken(text: str) -> str:
    """Return a text whose spaces between numbers and units do not break."""
    return _SPACE.sub("\N{NO-BREAK SPACE}", text)


class Unbroken(SphinxTransform):
    """Puts no-break spaces into the cells of tables; code is left as it is written."""

    default_priority = 800

    def apply(self, **_: Any) -> None:
        """Change the page."""
        for entry in self.document.findall(nodes.entry):
            for text in list(entry.findall(nodes.Text)):
                if not isinstance(text.parent, _AS_WRITTEN) and (new := unbroken(text)) != text:
                    text.parent.replace(text, nodes.Text(new))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register it with Sphinx."""
    app.add_transform(Unbroken)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
