"""The workshop: what fits, imports, measures, records, catalogues and plots the inputs of a simulation.

A simulation needs nothing of it: no module outside imports it, and its extras (scipy, matplotlib, torch,
transformers) are needed here alone. It writes what :mod:`dsd_env.latency`, :mod:`dsd_env.acceptance`,
:mod:`dsd_env.network` and :mod:`dsd_env.workload` read.
"""
