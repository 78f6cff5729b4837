"""The shapes that a list of migrations brings, and what each migration adds to the one before."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...catalog.errors import StoreError
from ...catalog.records import Migration
from ...catalog.store import Entity, Index
from .codec import Shape, keys_of


class Added(msgspec.Struct, frozen=True):
    """What one migration does to one entity: `fresh` makes it; `keys` and `indexes` are what is new."""

    shape: Shape
    fresh: bool
    keys: tuple[str, ...]
    indexes: tuple[Index, ...]


class Step(msgspec.Struct, frozen=True):
    number: int
    added: tuple[Added, ...]


class Schema:
    """`shape(entity)` for each entity of the migrations; `steps` in order.

    A fresh schema is built by the same steps as an old one is brought forward by, so the two cannot differ. An entity
    is declared once, as it is today: an index that a later migration names is left out of the earlier step.
    StoreError when numbers have gaps, an entity comes twice or a migration names an index that is not declared.
    """

    def __init__(self, migrations: Sequence[Migration]) -> None:
        if [migration.number for migration in migrations] != list(range(1, len(migrations) + 1)):
            raise StoreError("Migrations are numbered from 1 without gaps.")
        self.shapes: dict[str, Shape] = {}
        self.newest = len(migrations)
        for migration in migrations:
            for entity in migration.entities:
                if entity.name in self.shapes:
                    raise StoreError(f"Entity {entity.name!r} is created by two migrations.")
                self.shapes[entity.name] = Shape(entity)
        self.steps = self._steps(migrations)

    def shape(self, entity: Entity) -> Shape:
        """StoreError for an entity that is in no migration, or is declared differently there."""
        shape = self.shapes.get(entity.name)
        if shape is None or (shape.entity is not entity and shape.entity != entity):
            raise StoreError(f"Entity {entity.name!r} is not part of this store's migrations.", entity=entity.name)
        return shape

    def _steps(self, migrations: Sequence[Migration]) -> tuple[Step, ...]:
        late = [named for migration in migrations for named in migration.indexes]
        if len(set(late)) != len(late):
            raise StoreError("An index is added by two migrations.")
        built: dict[str, list[Index]] = {}
        steps = []
        for migration in migrations:
            added = []
            for entity in migration.entities:
                shape = self.shapes[entity.name]
                indexes = tuple(index for index in shape.indexes if (entity.name, index.name) not in late)
                built[entity.name] = list(indexes)
                added.append(Added(shape, True, keys_of(indexes), indexes))
            for name, index in migration.indexes:
                added.append(self._later(built, name, index))
            steps.append(Step(migration.number, tuple(added)))
        return tuple(steps)

    def _later(self, built: dict[str, list[Index]], name: str, index_name: str) -> Added:
        found = [index for index in self.shapes[name].indexes if index.name == index_name] if name in built else []
        if not found:
            raise StoreError(f"A migration adds index {index_name!r} to {name!r}, which does not declare it.")
        before = keys_of(built[name])
        built[name].append(found[0])
        keys = tuple(key for key in keys_of(built[name]) if key not in before)
        return Added(self.shapes[name], False, keys, (found[0],))
