r"""Is a remote drafter worth it? Time per token of plain decoding, drafts at the target, and remote drafts.

    python scripts/worth_it.py --rtt-ms 5 --alpha 0.75 --active 32
    python scripts/worth_it.py --target llama-3-70b_h100-sxm_tp4 --drafter llama-3.2-3b-q4_rtx-4090 \
        --node-drafter llama-3.2-3b_h100-sxm_tp2 --rtt-ms 15 --alpha 0.8 --active 64 --simulate

By closed forms and latency profiles, in a second: a target that is always busy, all requests alike, nothing
but decoding. With --simulate the engine runs the best of each way as well, prompts included. Profiles are
those of configs/latency, or paths of your own.
"""

from __future__ import annotations

import argparse

import _checkout  # noqa: F401
import _cli

from dsd_env.cli import worth


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    worth.add_arguments(parser)
    arguments = parser.parse_args()
    try:
        return worth.run(arguments)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    _cli.run(main)
