"""Hypothesis tries the same examples in every run, so that a change fails for what it changes. With
`HYPOTHESIS_PROFILE=random` (`make test HYPOTHESIS_PROFILE=random`) every run tries others; a failure prints its blob."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, database=None, print_blob=True, deadline=None)
settings.register_profile("random", derandomize=False, database=None, print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
