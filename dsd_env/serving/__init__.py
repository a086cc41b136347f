"""Exported policies and rules in real serving systems.

:class:`Controller` takes telemetry in engine terms, keeps the estimators, and decides per request; it imports
neither torch nor a web framework. The HTTP service around it is :mod:`dsd_env.serving.app` (extra ``serve``).
"""

from dsd_env.serving.answers import ServedDecision
from dsd_env.serving.controller import Controller, NoPlanError
from dsd_env.serving.deployment import Deployment, DeploymentError
from dsd_env.serving.guard import GuardConfig
from dsd_env.serving.planner import GroupPlan, ServedPlan
from dsd_env.serving.telemetry import (
    BackhaulState,
    ClientJoined,
    ControlMoved,
    DecisionDropped,
    DrafterState,
    DraftKv,
    DraftState,
    Event,
    IterationDone,
    LinkState,
    RequestArrived,
    RequestFinished,
    RequestInterrupted,
    RequestQueued,
    RoundVerified,
    RttSample,
    StreamResult,
    TargetState,
    TelemetryError,
    TokensCommitted,
)

__all__ = [
    "BackhaulState",
    "ClientJoined",
    "ControlMoved",
    "Controller",
    "DecisionDropped",
    "Deployment",
    "DeploymentError",
    "DraftKv",
    "DraftState",
    "DrafterState",
    "Event",
    "GroupPlan",
    "GuardConfig",
    "IterationDone",
    "LinkState",
    "NoPlanError",
    "RequestArrived",
    "RequestFinished",
    "RequestInterrupted",
    "RequestQueued",
    "RoundVerified",
    "RttSample",
    "ServedDecision",
    "ServedPlan",
    "StreamResult",
    "TargetState",
    "TelemetryError",
    "TokensCommitted",
]
