"""Ids that the examples of the API speak of. A test gives them to records of its own and sends every example."""

from __future__ import annotations

from typing import Final

AGENT_ID: Final = "agt_019aa0c37b2c7f3e8d1b5a6c7e8f9012"
KEY_ID: Final = "key_019aa0c37b2c7f3e8d1b5a6c7e8f9013"
UPSTREAM_ID: Final = "ups_019aa0c37b2c7f3e8d1b5a6c7e8f9014"
TOOL_ID: Final = "tol_019aa0c37b2c7f3e8d1b5a6c7e8f9015"
CALL_ID: Final = "dec_019aa0c37b2c7f3e8d1b5a6c7e8f9016"
APPROVAL_ID: Final = "apr_019aa0c37b2c7f3e8d1b5a6c7e8f9017"
APPROVAL_POLICY_ID: Final = "apl_019aa0c37b2c7f3e8d1b5a6c7e8f9018"
GRANT_ID: Final = "gra_019aa0c37b2c7f3e8d1b5a6c7e8f9019"
CHANNEL_ID: Final = "chn_019aa0c37b2c7f3e8d1b5a6c7e8f901a"
