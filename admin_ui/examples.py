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
USER_ID: Final = "usr_019aa0c37b2c7f3e8d1b5a6c7e8f9017"
SESSION_ID: Final = "ses_019aa0c37b2c7f3e8d1b5a6c7e8f9018"
EMAIL: Final = "owner@acme.test"
PASSWORD: Final = "correct horse battery"  # noqa: S105 - of an example
CODE: Final = "287082"
REFRESH_TOKEN: Final = "rt_Ho2fV6mXq1sT9aLkR3bNw7yZc5dPe8gU0iJ4tQv.Xy7kLp3nQw9rTz1vBs5dFg8hJc2mNa6uEi0oYt"  # noqa: S105
LINK_TOKEN: Final = "lk_Zx8cVb3nMa5sDf7gHj2kLq9wEr4tYu6iOp1aSd0fGhJ"  # noqa: S105
SIGN_IN_TOKEN: Final = "lk_Qw3eRt5yUi7oPa9sDf1gHj4kLz6xCv8bNm0qWeRtYuI"  # noqa: S105
CHALLENGE: Final = "eyJhbGciOiJIUzI1NiIsInR5cCI6ImNoYWxsZW5nZStqd3QifQ.eyJzdWIiOiJ1c3JfMDE5YSJ9.example"
AUDIT_ID: Final = "aud_019aa0c37b2c7f3e8d1b5a6c7e8f9019"
