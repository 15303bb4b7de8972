"""Alerts: rules over the store, evaluated against a state that survives, and told to receivers."""

from .alert_loop import AlertLoop
from .apprise import Apprise
from .burn_rate import BurnRate, BurnWindows
from .call import Call
from .crashed_runs import CrashedRuns
from .evaluation import Evaluation, Finding, evaluate
from .events_dropped import EventsDropped
from .failure_rate import FailureRate
from .no_runs import NoRuns
from .notice import Notice, sample_notice
from .receiver import NotDelivered, Receiver
from .rule import Measured, Rule
from .rules_file import parse_rules, read_rules
from .run_alerts import AlertRules, AlertRun, run_alerts
from .silence import Silence
from .slower_than import SlowerThan
from .sql_rows import SqlRows
from .state import AlertState
from .trial import check_rules, try_receivers
from .webhook import Webhook

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
    "Measured",
    "NoRuns",
    "NotDelivered",
    "Notice",
    "Receiver",
    "Rule",
    "Silence",
    "SlowerThan",
    "SqlRows",
    "Webhook",
    "check_rules",
    "evaluate",
    "parse_rules",
    "read_rules",
    "run_alerts",
    "sample_notice",
    "try_receivers",
]
