"""A real vLLM on this machine: a pair of real models in it, clients before it, and what they measure.

``checkpoints`` makes the pair's directories, ``runs`` holds what a run is and what came of it, ``engine``
runs vLLM in a process of its own, ``live`` shows it, ``times`` fits step times, ``compare`` holds measured
against simulated. Only what ``engine`` runs in that process needs vLLM.
"""
