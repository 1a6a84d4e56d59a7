"""Counters and gauges of the controller, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sessions = Gauge("tealnet_sessions", "Hosts served by this replica", registry=self.registry)
        self.revision = Gauge("tealnet_revision", "Revision of the tables", registry=self.registry)
        self.stale = Gauge("tealnet_stale_seconds", "Time since the store was heard of", registry=self.registry)
        self.low_water = Gauge("tealnet_low_water", "Lowest synced revision of the sessions", registry=self.registry)
        self.units = Counter("tealnet_units", "Units sent to hosts", registry=self.registry)
        self.sent = Counter("tealnet_sent_bytes", "Bytes of units sent to hosts", registry=self.registry)
        self.mismatches = Counter(
            "tealnet_digest_mismatches",
            "Scopes sent whole because digests differed; must stay 0",
            registry=self.registry,
        )
        self.refused = Counter("tealnet_refused_sessions", "Sessions refused", ["reason"], registry=self.registry)
        self.unaccounted = Gauge(
            "tealnet_unaccounted_ports", "Ports on hosts that the store does not know", registry=self.registry
        )
        self.broken = Gauge("tealnet_broken_values", "Values in the store that do not parse", registry=self.registry)
        self.audit_lost = Gauge(
            "tealnet_audit_lost_entries", "Entries that are not in the audit file; must stay 0", registry=self.registry
        )
        self.errors = Gauge("tealnet_derive_errors", "Rows that could not be derived", registry=self.registry)
        self.settle = Histogram(
            "tealnet_settle_seconds",
            "Time to follow one batch of changes",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2),
            registry=self.registry,
        )
