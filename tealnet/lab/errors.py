"""What can go wrong with a lab."""

from __future__ import annotations


class LabError(Exception):
    """Something a person can act on: no such lab, a program that is missing, a process that did not start."""
