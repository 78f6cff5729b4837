"""Hypothesis tries the same examples in every run, so that a change fails for what it changes. With
`HYPOTHESIS_PROFILE=random` (`make test HYPOTHESIS_PROFILE=random`) every run tries others; a failure prints its blob.

A failure is reported soon: it is made smaller for half a minute at most, and not at all (`tests.examples.UNSHRUNK`) where one
example talks to a server, so that a failing one may take as long as its time-out."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis.internal.conjecture import engine

settings.register_profile("fixed", derandomize=True, database=None, print_blob=True, deadline=None)
settings.register_profile("random", derandomize=False, database=None, print_blob=True, deadline=None)
engine.MAX_SHRINKING_SECONDS = 30
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
