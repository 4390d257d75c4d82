"""A sandbox for model-written Python: programs run in sealed guests, verdicts are made outside them.

`pool.py` is the door, `guest.py` what runs inside, `server.py` the warm fork server between them, `judge.py` the
comparison, `isolation.py` and its neighbours the layers. Only the standard library is used.
"""

from .asserts import convert
from .pool import Sandbox
from .probe import Probe, probe
from .records import CallError, Job, Limits, Report, SandboxFault, SandboxUnavailable, Test, Verdict
from .tiers import Strength

__all__ = [
    "CallError",
    "Job",
    "Limits",
    "Probe",
    "Report",
    "Sandbox",
    "SandboxFault",
    "SandboxUnavailable",
    "Strength",
    "Test",
    "Verdict",
    "convert",
    "probe",
]
