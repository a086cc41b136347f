"""Whole episodes under schedulers that the compiled engine can follow by itself, in its own loop.

A static choice, the goodput rule, a rule for the length and a plan need not be asked in Python at every
decision. The results are those of :func:`dsd_env.simulate`, bit for bit, some thirty times sooner.
"""

from dsd_env.whole_runs.runs import Run, fast_runs

__all__ = ["Run", "fast_runs"]
