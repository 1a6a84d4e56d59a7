"""What each room wants on a host. Rooms never import each other; they meet in tables and in agent/pipeline.py."""

from agent.features import colors, l2, router, security, spares

FEATURES = (l2, router, colors, security, spares)
