"""The event loop of the compiled engine, by subsystem.

The same simulation as :mod:`dsd_env.sim.reference`, which is the definition. A request waits at one place of
its protocol at a time (``waits_for``); the functions here repeat the reference's effects in the same order,
since the order of messages on a link, of sums of floats and of events at one instant is part of the meaning.

SimPy's own events (a process that begins, an answer that arrives) come before all others of their instant and
are taken at once here: the reference creates at most one chain of them at a time, so their order is the same.

Arguments everywhere: ``k`` the scenario's constants, ``w`` the world; see
:mod:`dsd_env.sim.compiled.records`. Modules import only from those above them:

================ =====================================================================================
``rows``         rows of memory in compiled code
``jit``          how functions are compiled
``draws``        the hash behind the random draws
``events``       the queue of events to come, and the log of those that happened
``acceptance``   how far the drafts of a round are right
``links``        messages, and what they cost
``drafters``     draft jobs, their queues, crashes of drafters
``batching``     which ready jobs take part in an iteration
``targets``      KV admission, iterations, commits
``requests``     a request asks, gives up, completes
``telemetry``    periodic reports
``timers``       patience and time-outs
``arrivals``     who asks when, and for what
``protocol``     prefill and rounds
``failures``     crashes and returns
``observe``      the view of a decision, the observation, the mask
``loop``         the event loop and its entry points
``serve``        the same view, observation and mask for a controller of real systems
================ =====================================================================================
"""
