"""The reference engine, which defines the simulation. It is written as SimPy processes.

Each request is one process that reads like the protocol (:mod:`dsd_env.sim.reference.protocol`): it arrives,
decides and prefills, and then goes through rounds of deciding, drafting, verifying and delivering. To add a
protocol, write a new form of round. A target or a drafter is a queue, with one timed event for the work
under way.

:class:`dsd_env.sim.events.Order` says which of several events at one instant comes first, so that another
engine can reproduce the same event log.

Two terms: *plain decoding* is autoregressive decoding, in which the target generates its tokens without
drafts. An *iteration* is one engine step of a target, that is, one forward pass over its batch.

A simulation is put together of parts, one a file. A part is handed the parts that it calls and knows no
others; all of them share the :class:`~dsd_env.sim.reference.episode.Episode`. Each calls only parts above it:

=============== =====================================================================================
``environment`` SimPy with absolute times and an order of events at one instant
``episode``     what the parts share: clock, entities, totals, log, timeline
``accounts``    totals that grow with time, the measured window, what is occupied
``links``       messages, and what they cost
``drafters``    draft jobs, their queues, crashes of drafters
``shares``      what the sequences of an iteration bring into it and cost others
``targets``     KV admission, iterations, commits
``requests``    a request asks, gives up, completes
``timers``      patience and time-outs
``protocol``    prefill, rounds, moving control
``arrivals``    who asks when, and for what
``failures``    crashes and returns
``simulation``  the parts put together: stepping, answers, results, copies
=============== =====================================================================================

The compiled engine's files of the same names (:mod:`dsd_env.sim.compiled.kernel`) do the same by other means.
"""

from dsd_env.sim.reference.accounts import NOT_YET
from dsd_env.sim.reference.resolution import Resolution
from dsd_env.sim.reference.simulation import ReferenceSimulation

__all__ = ["NOT_YET", "ReferenceSimulation", "Resolution"]
