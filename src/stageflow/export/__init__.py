"""Export: delivers the events of a journal to other systems, at least once and in batches."""

# For other packages of stageflow.
from ._background import BackgroundExport as BackgroundExport
from ._batch import Batch, ExportEvent
from ._dead_letters import DeadLetter, DeadLetters
from ._exporter import Exporter, NotSent, Rejected, Sent
from ._http import HttpExporter
from ._kafka import KafkaExporter
from ._nats import NatsExporter
from ._otlp import OtlpExporter
from ._postgres import PostgresExporter
from ._postgres_schema import tables_sql as postgres_tables
from ._resend import Resent, resend
from ._retries import ExportSettings
from ._runner import ExportRunner
from ._sampled import sampler_of as sampler_of
from ._state import ExportCounters, ExportState, state_files as state_files
from ._status import ExportStatus, export_status
from ._target import exporter_for, exporters_of as exporters_of

__all__ = [
    "Batch",
    "DeadLetter",
    "DeadLetters",
    "ExportCounters",
    "ExportEvent",
    "ExportRunner",
    "ExportSettings",
    "ExportState",
    "ExportStatus",
    "Exporter",
    "HttpExporter",
    "KafkaExporter",
    "NatsExporter",
    "NotSent",
    "OtlpExporter",
    "PostgresExporter",
    "Rejected",
    "Resent",
    "Sent",
    "export_status",
    "exporter_for",
    "postgres_tables",
    "resend",
]
