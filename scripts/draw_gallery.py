"""Draw the animations of the gallery: a second or so of each shipped scenario, by the scheduler of its page.

Times and schedulers are those of `docs/_ext/animations.py` and `docs/_ext/gallery.py`. Draw them anew after a
change of a scenario or of the simulator's results; the files are part of the checkout, since drawing all of
them takes some minutes. Needs matplotlib.

Examples:
    python scripts/draw_gallery.py
    python scripts/draw_gallery.py metro reasoning
"""

from __future__ import annotations

import argparse
import sys

import _checkout
import _cli


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="names (default: all)")
    arguments = parser.parse_args()

    from docs._ext import animations, gallery
    from dsd_env.scenario import list_scenarios, load_scenario

    unknown = [name for name in arguments.scenarios if name not in list_scenarios()]
    if unknown:
        parser.error(f"no shipped scenario {', '.join(unknown)}; there are {', '.join(list_scenarios())}")
    folder = _checkout.ROOT / animations.FOLDER
    folder.mkdir(exist_ok=True)
    known = gallery.scores((_checkout.ROOT / gallery.SCORES).read_text(encoding="utf-8"))
    too_large = []
    for name in arguments.scenarios or list_scenarios():
        rule = gallery.scheduler_of(name, known.get(name))
        span_s = animations.span_of(name)
        images = animations.animate(load_scenario(name), rule, animations.SEED, *span_s)
        size = animations.write(folder / f"{name}.gif", images)
        print(f"{name}.gif: {rule}, {span_s[0]:g} to {span_s[1]:g} s, {1e-3 * size:.0f} kB", flush=True)
        if size > animations.MAX_BYTES:
            too_large.append(name)
    if too_large:
        limit = f"{1e-3 * animations.MAX_BYTES:.0f} kB"
        print(
            f"draw_gallery: larger than {limit}: {', '.join(too_large)}; let SPANS_S of "
            "docs/_ext/animations.py show less of them",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    _cli.run(main)
