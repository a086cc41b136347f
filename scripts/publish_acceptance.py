#!/usr/bin/env python3
"""Make the shipped models of large pairs from published figures, and say how they meet them.

    python scripts/publish_acceptance.py                 # all models, and the table of the docs
    python scripts/publish_acceptance.py --name llama-3-70b_published
    python scripts/publish_acceptance.py --check         # compare with what is shipped, write nothing

Reads ``configs/acceptance/published.yaml`` and the fitted models whose shape it names; writes
``dsd_env/acceptance/models/NAME.json`` (``--out`` for elsewhere), the same bytes for the same facts and
shapes. See docs/acceptance_models.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import _checkout  # noqa: F401
import _cli

from dsd_env.acceptance import RunModel, TraceError, load_run_model
from dsd_env.acceptance.runmodel import MODEL_DIR
from dsd_env.calibration.acceptance.published import Facts, Publisher, equivalent_acceptance, load_facts
from dsd_env.calibration.pages import replace_blocks
from dsd_env.files import write_text

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT / "configs" / "acceptance" / "published.yaml"
DOCS = ROOT / "docs" / "acceptance_models.md"
COMMAND = "python scripts/publish_acceptance.py"
BEGIN, END = "<!-- begin: published -->", "<!-- end: published -->"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--facts", type=Path, default=FACTS, help="the figures and rules (%(default)s)")
    parser.add_argument("--name", action="append", metavar="NAME", help="this model (may be repeated)")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="where models are written (%(default)s)")
    parser.add_argument("--check", action="store_true", help="compare with the models there; write nothing")
    return parser.parse_args(argv)


def tables(facts: Facts, models: list[RunModel]) -> Iterator[str]:
    """Yield the lines of the tables of the docs: levels of every pair, and the figures behind them."""
    for model in models:
        yield f"`{model.name}`, {model.card.target}: tokens per round of the pool at γ = 4 (8), shift, rule."
        yield ""
        yield "| kind | " + " | ".join(f"`{drafter}`" for drafter in model.drafters) + " |"
        yield "|---" * (1 + len(model.drafters)) + "|"
        for kind in model.kinds:
            cells = []
            for drafter in model.drafters:
                one = model.card.fits[kind][drafter]
                four, eight = (one["pool"][gamma] for gamma in ("4", "8"))
                cells.append(f"{four:.2f} ({eight:.2f}), {one['shift']:+.2f}, {one['rule']}")
            yield f"| {kind} | " + " | ".join(cells) + " |"
        yield ""
    yield "Figures, as tokens per round at the γ they were published for; α is the acceptance that would give"
    yield "them if drafts were independent. Those of trees serve in ratios only."
    yield ""
    yield "| target | drafter | task | temperature | γ | tokens per round | α | confidence | source |"
    yield "|---|---|---|---:|---:|---:|---:|---|---|"
    for figure in facts.figures.values():
        source = facts.sources[figure.source]
        link = source.url if source.url.startswith("http") else Path(source.url).name
        temperature = "not stated" if figure.temperature is None else f"{figure.temperature:g}"
        yield (
            f"| {figure.target} | `{figure.drafter}` | {figure.task} | {temperature} "
            f"| {'tree' if figure.tree else figure.gamma} | {figure.tokens:.2f} "
            f"| {'' if figure.tree else f'{equivalent_acceptance(figure):.2f}'} | {figure.confidence} "
            f"| [{figure.source}]({link}), {source.date} |"
        )


def write_docs(path: Path, lines: Iterator[str]) -> None:
    """Put lines between the marks of a page."""
    page = path.read_text(encoding="utf-8")
    if END not in page.partition(BEGIN)[2]:
        raise TraceError(f"{path}: lacks {BEGIN} or {END}")
    body = "\n".join(lines)
    write_text(path, replace_blocks(page, {"published": f"\n{body}\n"}))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parse(argv)
    try:
        facts = load_facts(options.facts)
        names = options.name or list(facts.models)
        publisher = Publisher(facts)
        different = []
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            model = publisher.model(name, COMMAND)
            if options.check:
                if load_run_model(options.out / f"{name}.json") != model:
                    different.append(name)
                continue
            print(f"wrote {model.save(options.out)}")
            for kind, group in model.card.fits.items():
                for drafter, one in group.items():
                    met = ""
                    if "gamma" in one:
                        met = f"; asked {one['tokens_per_round']} at γ = {one['gamma']}, found "
                        met += f"{one['tokens_per_round_of_the_pool']}"
                    print(
                        f"  {kind:14} {drafter:13} {one['rule']:10} {one['shift']:+.3f}{met}; {one['pool']}"
                    )
        if different:
            print(f"not what the facts give: {', '.join(different)}", file=sys.stderr)
            return 1
        if not options.check and options.out == MODEL_DIR and options.facts == FACTS and DOCS.is_file():
            models = [load_run_model(name) for name in facts.models]
            write_docs(DOCS, tables(facts, models))
            print(f"wrote {DOCS}")
    except TraceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    _cli.run(main)
