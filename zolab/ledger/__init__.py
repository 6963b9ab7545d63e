"""Who runs a cell, and how far it got: plain files, fit for shared filesystems.

`claim` names the one process that may write; `heartbeat` is its lease; `status.json` is for people
and launchers; `result.json`, written last, means done. Files are the only truth, because databases
with write-ahead logs do not work over network filesystems. Standard library only: a login node
reads a thousand cells without loading torch.
"""

from zolab.ledger.claims import (
    BEAT_SECONDS,
    BEAT_VARIABLE,
    JOB_ID_VARIABLE,
    LEASE_SECONDS,
    RESTART_VARIABLE,
    Busy,
    Claim,
    Fenced,
    Holder,
    acquire,
    find_holder,
)
from zolab.ledger.files import filesystem_time, read_json, write_json
from zolab.ledger.states import (
    LOG_VARIABLE,
    STATES,
    next_attempt,
    read_heartbeat,
    read_status,
    state_of,
    write_status,
)

__all__ = [
    "BEAT_SECONDS",
    "BEAT_VARIABLE",
    "JOB_ID_VARIABLE",
    "LEASE_SECONDS",
    "LOG_VARIABLE",
    "RESTART_VARIABLE",
    "STATES",
    "Busy",
    "Claim",
    "Fenced",
    "Holder",
    "acquire",
    "filesystem_time",
    "find_holder",
    "next_attempt",
    "read_heartbeat",
    "read_json",
    "read_status",
    "state_of",
    "write_json",
    "write_status",
]
