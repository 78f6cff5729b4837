"""PATCH beside PUT: JSON Merge Patch (RFC 7396) on what a PUT would say now. Made from the PUT's declaration alone."""

from __future__ import annotations

from typing import Any

import msgspec

from ..catalog.errors import PreconditionFailed, Stale, ValidationFailed
from .operation import Context, Operation, Reply, etag


def merge(target: Any, patch: Any) -> Any:
    """`target` with `patch` applied: objects are merged member by member, null removes, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def patched(put: Operation) -> Operation:
    """The PATCH of a PUT that says how its present body is found (`current`)."""
    careful = put.precondition or put.careful
    return msgspec.structs.replace(
        put, name="patch_" + put.name.partition("_")[2], method="PATCH",
        summary=f"Change some of it: {put.summary[0].lower()}{put.summary[1:]}",
        description="A JSON Merge Patch (RFC 7396) of the body that PUT takes: what is left out stays, null takes the "
        f"default. {put.description}".strip(),
        precondition=careful,
        example=msgspec.structs.replace(put.example, headers={"If-Match": "*"} if careful else {}),
    )  # fmt: skip


async def body_of(ctx: Context, operation: Operation, patch: Any) -> Any:
    """The body that a PUT would have, for `convert`. What was read is what is changed, whether the client named a
    version or not. Raises ValidationFailed for a patch that is no object."""
    if not isinstance(patch, dict):
        raise ValidationFailed([("", "type", "A merge patch is an object.")])
    if operation.current is None:
        raise ValueError(f"{operation.name} does not say what it changes")
    present, version = await operation.current(ctx, patch)
    if ctx.if_match is None and not operation.precondition:
        ctx.if_match, ctx.read_here = etag(version), True
    return merge(msgspec.to_builtins(present), patch)


async def run(ctx: Context, operation: Operation, arguments: list[Any]) -> Reply:
    """Run the PUT's handler. Raises Stale where somebody changed it between our own reading and writing."""
    if operation.handler is None:
        raise ValueError(f"{operation.name} has no handler")
    try:
        reply: Reply = await operation.handler(ctx, *arguments)
    except PreconditionFailed:
        if ctx.read_here:
            raise Stale from None
        raise
    return reply
