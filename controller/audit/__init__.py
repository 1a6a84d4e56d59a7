"""The audit log: who wrote what, one JSON line per call, in a file of each replica; asked of all replicas at once."""

from controller.audit.log import AuditLog
from controller.audit.trail import Trail, current_trail, set_trail

__all__ = ["AuditLog", "Trail", "current_trail", "set_trail"]
