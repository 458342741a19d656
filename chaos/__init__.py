"""Faults on purpose: real brokers, stores and workers are killed, frozen, cut off; every record is accounted for.

``python -m chaos`` runs all scenarios, ``python -m chaos NAME --seed 1 --mode exactly_once`` runs one.
"""
