"""The testbed: real speculative decoding across a network, with a draft model here and a target there.

An edge client (:mod:`~dsd_env.testbed.client`) drafts with a real model, a cloud server
(:mod:`~dsd_env.testbed.server`) verifies the drafts of several clients in batched iterations of a real
target, and a shim between them (:mod:`~dsd_env.testbed.link`) makes the network as slow and as bad as one
likes. The protocols are the simulator's: synchronous, pipelined, streaming. See ``docs/testbed.md``.

It needs the extra ``testbed``; nothing is imported here.
"""
