"""The benchmark: scenarios × schedulers × held-out seeds in the steady state, and what they come to.

``config`` says what is compared; ``cells`` makes single simulations of it, each with a digest of all that
its result depends on (``identity``); ``running`` and ``cluster`` simulate them; ``records`` keeps them;
``statistics`` and ``scoring`` compare; ``pages`` writes tables; ``submissions`` replays those of others.
"""
