"""A mailbox of its own for each story."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenticmail_enterprise.gateway.demo.mailbox import Mailbox
from agenticmail_enterprise.gateway.demo.mailserver import MailServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "mail"


@pytest.fixture
def server(folder: Path) -> MailServer:
    return MailServer(Mailbox(folder))
