"""Rollouts: what is planned (`plan`), what comes next (`machine`), what is known (`gates`, `observer`), who does it."""
