"""Which migrations has a store not seen yet? For checks that must change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...catalog.errors import StoreError, StoreUnavailable
from ...catalog.records import MIGRATIONS, Migration
from ...catalog.store import Store
from .programs import refuse_newer


async def pending(store: Store, migrations: Sequence[Migration] = MIGRATIONS) -> list[int]:
    """Their numbers, in order; none for a store that has no schema to migrate.

    Raises StoreUnavailable, and StoreError for a store that a newer version has used.
    """
    driver: Any = getattr(store, "driver", None)
    known = [migration.number for migration in migrations]
    if driver is None:
        return []
    try:
        rows = await driver.fetch("SELECT number FROM _migrations", ())
    except StoreUnavailable:
        raise
    except StoreError:  # the table of migrations comes with the first of them
        return known
    seen = {row[0] for row in rows}
    refuse_newer(max(seen, default=0), len(known))
    return [number for number in known if number not in seen]
