"""Adapters that let a controller set the speculation length inside an engine.

Every module here can be imported without its engine; what needs the engine says so when it is used.
``docs/serving.md`` says which of them have been run inside their engine and which have not.
"""

from dsd_env.serving.engines.session import EngineError, EngineSession, Round, controller_from_environment

__all__ = ["EngineError", "EngineSession", "Round", "controller_from_environment"]
