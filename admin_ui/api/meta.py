"""`/api/openapi.json`: the API about itself. The document is made of the table of operations."""

from __future__ import annotations

from typing import Final

from ..operation import Example, Operation

OPENAPI: Final = Operation(
    name="get_openapi", method="GET", path="/api/openapi.json", tag="meta", public=True, scope="", role="viewer",
    summary="This document, as OpenAPI 3.1.", description="It needs no key. Its ETag changes with its content.",
    returns=None, handler=None, served_by="document", example=Example(),
)  # fmt: skip
