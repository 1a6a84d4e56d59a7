"""`make long`: some tests in the length that they are meant in; in `make test` a sample of it."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("LONG"))
