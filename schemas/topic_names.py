"""Names of the topics of the contract; part of the wire format, so they are not settings."""

from __future__ import annotations

REQUESTS = "score-requests"
SCORES = "scores"
PREDICTIONS = "predictions-log"
OUTCOMES = "outcomes"
LABELLED = "labelled-predictions"
MONITOR_EVENTS = "monitor-events"
REQUESTS_DLQ = "score-requests.dlq"
OUTCOMES_DLQ = "outcomes.dlq"
ROLLOUTS = "rollouts"
MODEL_CONTROL = "model-control"
WORKER_STATS = "worker-stats"
