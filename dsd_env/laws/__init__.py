"""The laws of the simulation: what takes how long, what is drawn, what is seen, what a decision means.

Plain functions on objects with attributes. The reference engine passes its entities, the compiled engine
rows of memory with the same field names, and compiles the very same functions; so a law is written once. It
may use no more than numbers, attributes, indices, :mod:`math` and the draws of :mod:`dsd_env.rng`.

Sharing a law takes it out of the comparison of the two engines, so each has a closed form or a case worked
out by hand of its own in the tests. What happens when (the choreography of targets, drafters, requests,
protocols and failures), the event queue, the hash behind the draws and the replay of acceptance stay written
twice.

=============== ======================================================================================
module          laws of
=============== ======================================================================================
``variates``    think times, lengths, durations
``step_times``  iterations of a target and steps of a drafter
``links``       serialisation, loss, jitter, changing bandwidth and delay of one direction of a link
``faults``      when what is down
``arrivals``    open arrival processes, the load that rises and falls, kinds of requests
``drafting``    how far a draft has come, what a round's result teaches
``stopping``    when a draft ends before its longest length
``reports``     what servers report and controllers measure
``view``        what a controller can tell of a place to draft at
``resolve``     how a decision is executed
``constants``   numbers that appear in several of them
=============== ======================================================================================
"""
