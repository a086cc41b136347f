"""The contract between simulator and schedulers: what a scheduler sees, and what it may decide."""

from dsd_env.control.actions import ActionSpace, Decision, StopKind, StopRule
from dsd_env.control.encoding import Feature, ObservationEncoder
from dsd_env.control.view import (
    CandidateView,
    DecisionView,
    DrafterKind,
    DrafterView,
    LinkView,
    RequestView,
    Site,
    SystemView,
    TargetView,
)

__all__ = [
    "ActionSpace",
    "CandidateView",
    "Decision",
    "DecisionView",
    "DrafterKind",
    "DrafterView",
    "Feature",
    "LinkView",
    "ObservationEncoder",
    "RequestView",
    "Site",
    "StopKind",
    "StopRule",
    "SystemView",
    "TargetView",
]
