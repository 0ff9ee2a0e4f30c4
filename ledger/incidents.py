"""Incidents: what the detectors found, told in the record and gathered under one id for each
thing that goes wrong. Called in transactions.
"""

from ledger.batch import Batch
from ledger.watching import Found


def found(batch: Batch, one: Found) -> None:
    """Record a finding, pull the cord that the policy wants pulled, and open or join its
    incident."""
