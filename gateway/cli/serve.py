"""`serve`: one worker in this process, or several under a parent that only watches."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from ..settings import Settings, url_of
from ..settings_load import Loaded
from ..stores import database_file
from .common import Common, settings_options
from .output import emit_json

T = TypeVar("T")


@click.command()
@click.option("--host", metavar="HOST", help="Address to serve on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one. [default: 3000]")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that share the port. [default: 1]")
@settings_options
def serve(common: Common, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve agents and the API until stopped.

    SIGTERM or Ctrl-C stops it: calls in flight finish (server.stop_grace seconds at most), each is recorded. With
    --json one object with the URL is printed when it is ready. Logs go to standard error.
    """
    from ..logs import configure

    loaded = common.load(server__host=host, server__port=port, server__workers=workers)
    settings = loaded.settings
    configure(settings.log)
    require_setup(settings)
    from ..workers import reserve

    with reserve(settings.server.host, settings.server.port) as held:
        bound = int(held.getsockname()[1])
        url = url_of(settings.server.host, bound)
        announce = _announcement(common, loaded, url)
        if settings.server.workers == 1:
            loop_run(serve_one(settings, 0, bound, announce))
            return
        code = _serve_many(settings, bound, announce)
    if code:
        raise SystemExit(code)


def _announcement(common: Common, loaded: Loaded, url: str) -> Callable[[], None]:
    def announce() -> None:
        settings = loaded.settings
        structlog.get_logger().info(
            "serving", url=url, workers=settings.server.workers, database=settings.database,
            settings=str(loaded.file) if loaded.file else "defaults",
        )  # fmt: skip
        if common.json:
            emit_json({"url": url, "workers": settings.server.workers})

    return announce


def require_setup(settings: Settings) -> None:
    """SettingsError when there is nothing to serve: no database file where one is named. `init` makes one."""
    from ...catalog.errors import SettingsError

    file = database_file(settings.database)
    if file is not None and not file.exists():
        raise SettingsError(
            f"There is no database {file}, so nothing to serve.",
            hint="agenticmail-enterprise init sets a gateway up; demo shows one; --config or --database name another.",
        )  # fmt: skip


async def serve_one(
    settings: Settings, worker: int, port: int, ready: Callable[[], None], shared: Path | None = None
) -> None:  # fmt: skip
    """Be one worker until a signal. `ready` is called when requests are answered; `shared`: see `Runtime.open`."""
    from ..runtime import Runtime
    from ..server import listen
    from ..server import serve as serve_until_signal

    runtime = await Runtime.open(settings, worker=worker, shared=shared)
    gc.enable()
    gc.collect()
    gc.freeze()  # what is here now stays: later collections need not look at it
    await serve_until_signal(runtime, listen(settings.server.host, port), ready=lambda _: ready())


def loop_run(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop, or on asyncio's own loop where there is none."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        from uvloop import new_event_loop

        factory = new_event_loop
    except ImportError:
        structlog.get_logger().debug("without_uvloop")
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def _serve_many(settings: Settings, port: int, announce: Callable[[], None]) -> int:
    from .. import runtime, server  # noqa: F401 - loaded before the fork, so that the workers share the pages
    from ..metrics_share import end
    from ..workers import Supervisor
    from .app import report_and_exit

    folder = _shared_folder(settings)

    def work(number: int, ready: Callable[[], None]) -> None:
        try:
            loop_run(serve_one(settings, number, port, ready, folder))
        except Exception as error:  # noqa: BLE001 - a worker's end is reported like a command's
            report_and_exit(error)

    gc.enable()
    try:
        return Supervisor(settings.server.workers, work, settings.server.stop_grace, announce).run()
    finally:
        if folder is not None:
            end(folder)


def _shared_folder(settings: Settings) -> Path | None:
    """Where the workers leave their metrics; None when it cannot be made: the first worker says what is wrong there."""
    from ..metrics_share import begin

    try:
        return begin(settings.data_dir)
    except OSError:
        return None
