"""Alerts: rules evaluated against the store, with a persistent state and notifications to receivers."""

from ._evaluation import Evaluation, Finding, evaluate
from ._history import alert_history
from ._loop import AlertLoop
from ._notice import Notice, sample_notice
from ._receivers import Apprise, Call, NotDelivered, Receiver, Webhook

# For other packages of stageflow.
from ._rule import (
    SILENCES_FILE as SILENCES_FILE,
    Measurement,
    Rule,
    Silence,
    add_silence as add_silence,
    read_silences as read_silences,
    silences_path as silences_path,
)
from ._rules import (
    BurnRate,
    BurnWindows,
    CrashedRuns,
    EventsDropped,
    FailureRate,
    NewError,
    NoRuns,
    SlowerThan,
    SqlRows,
)
from ._rules_file import parse_rules, read_rules
from ._run import (
    AlertRules,
    AlertRun,
    alert_status as alert_status,
    check_rules,
    present as present,
    run_alerts,
    try_receivers,
)
from ._state import (
    STATE_FILE as STATE_FILE,
    AlertState,
    IncidentRecord,
    ReceiverState as ReceiverState,
    read_state as read_state,
    state_path as state_path,
)

__all__ = [
    "AlertLoop",
    "AlertRules",
    "AlertRun",
    "AlertState",
    "Apprise",
    "BurnRate",
    "BurnWindows",
    "Call",
    "CrashedRuns",
    "Evaluation",
    "EventsDropped",
    "FailureRate",
    "Finding",
    "IncidentRecord",
    "Measurement",
    "NewError",
    "NoRuns",
    "NotDelivered",
    "Notice",
    "Receiver",
    "Rule",
    "Silence",
    "SlowerThan",
    "SqlRows",
    "Webhook",
    "alert_history",
    "check_rules",
    "evaluate",
    "parse_rules",
    "read_rules",
    "run_alerts",
    "sample_notice",
    "try_receivers",
]
