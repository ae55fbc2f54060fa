"""Whether a checkpoint is right: `audioldm2 verify`. README.md explains the checks."""

from audioldm2.verification.facts import Facts
from audioldm2.verification.finding import Finding
from audioldm2.verification.subject import Effort, Subject, Unopened, open_subject
from audioldm2.verification.verify import CHECKS, facts_of, verify

__all__ = [
    "CHECKS",
    "Effort",
    "Facts",
    "Finding",
    "Subject",
    "Unopened",
    "facts_of",
    "open_subject",
    "verify",
]
