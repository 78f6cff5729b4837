"""What the executor and the grants need of the engine, so that neither imports it."""

from __future__ import annotations

from typing import Protocol

from ...catalog.approvals import Approval
from ...catalog.store import Store
from ..settings import ApprovalSettings
from ..vault import Vault
from .book import Book
from .form import Form


class Desk(Protocol):
    """`ApprovalEngine`, as its parts see it."""

    store: Store
    vault: Vault
    settings: ApprovalSettings
    book: Book

    def now(self) -> int: ...

    async def get(self, org: str, approval_id: str) -> Approval: ...

    async def find_twin(self, org: str, twin: str) -> Approval | None: ...

    def form(self, approval: Approval, *, asked: bool = False) -> Form: ...

    async def commit(self, approval: Approval, event: str = "", *, insert: bool = False) -> Approval: ...
