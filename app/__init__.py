"""The scoring service: the hot path from record batches to answers, models, settings, web views."""
