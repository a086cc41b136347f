"""Randomness: :mod:`dsd_env.rng`, bit for bit. Laws that draw are compiled to these."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
from numba.extending import overload, register_jitable

from dsd_env import rng
from dsd_env.sim.compiled.kernel.jit import jit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_TO_UNIT = 2.0**-53


@jit
def _mix(z):
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@jit
def key(seed, stream, entity):
    """Return the key of (seed, stream, entity)."""
    h = _mix(np.uint64(seed) + _GOLDEN)
    h = _mix(h ^ (np.uint64(stream) * _GOLDEN))
    return _mix(h ^ (np.uint64(entity + 1) * _GOLDEN))


@jit
def uniform_from_key(stream_key, counter):
    """Return the uniform draw of a key, in (0, 1]."""
    h = _mix(stream_key ^ (np.uint64(counter + 1) * _GOLDEN))
    return (np.float64(h >> _S11) + 0.5) * _TO_UNIT


@jit
def uniform(seed, stream, entity, counter):
    """Return the uniform draw at (seed, stream, entity, counter)."""
    return uniform_from_key(key(seed, stream, entity), counter)


@overload(rng.key)
def _key(seed, stream, entity):
    return lambda seed, stream, entity: key(np.int64(seed), np.int64(stream), np.int64(entity))


@overload(rng.uniform_from_key)
def _uniform_from_key(stream_key, counter):
    return lambda stream_key, counter: uniform_from_key(stream_key, np.int64(counter))


@overload(rng.uniform)
def _uniform(seed, stream, entity, counter):
    return lambda seed, stream, entity, counter: uniform(
        np.int64(seed), np.int64(stream), np.int64(entity), np.int64(counter)
    )


normal = register_jitable(error_model="numpy")(rng.normal)
number_below = register_jitable(error_model="numpy")(rng.number_below)
exponential = register_jitable(error_model="numpy")(rng.exponential)
