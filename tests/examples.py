"""How hypothesis tries examples that are slow."""

from __future__ import annotations

from typing import Final

from hypothesis import Phase

UNSHRUNK: Final = (Phase.explicit, Phase.reuse, Phase.generate)
"""For properties whose failing examples may take as long as a time-out: the first one found is reported as it is."""
