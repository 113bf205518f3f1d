"""The viewer's HTTP server: only what the sweep's slides need, and only for those who know the token."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from her2cache.errors import ConfigError, Her2CacheError, SlideOpenError
from her2cache.remote import SlidePath
from her2cache.units import Coords
from trainers.viewer.page import STATIC, page, problem, static
from trainers.viewer.scene import Scene, Scenes
from trainers.viewer.tiles import TileKey, Tiles

PATCH_PX = 384
"""Side of the picture of a patch."""

_SCENES_KEPT = 8
_TYPES = {".css": "text/css", ".js": "text/javascript"}


class Viewer:
    """Serves the slides of a sweep.

    Args:
        scenes: what is shown.
        host: address to bind; the default is reached from this machine only.
        port: 0 takes a free one.
        workers: tiles decoded at once.

    Attributes:
        url: address of the first page, with the token; whoever has it may look.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, scenes: Scenes, host: str = "127.0.0.1", port: int = 0, workers: int = 4) -> None:
        self.token = secrets.token_urlsafe(24)
        self._shown = _Shown(scenes, workers)
        context = {"shown": self._shown, "token": self.token}
        self._application = Application(
            [
                (r"/", _First, context),
                (r"/static/([a-z.]+)", _Static, context),
                (r"/slide/(\d{1,7})", _Page, context),
                (r"/tile/(\d{1,7})/(he|ihc)/(\d{1,3})/(\d{1,9})/(\d{1,9})\.jpg", _Tile, context),
                (r"/patch/(\d{1,7})/(\d{1,9})\.jpg", _Patch, context),
            ],
            default_handler_class=_Nothing,
            default_handler_args=context,
            log_function=lambda _: None,  # an address has the token in it, which no log may hold
        )
        try:
            self._sockets = bind_sockets(port, host)
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} cannot be bound ({error.strerror}): another program has the port, or this machine has"
                " no such address; choose another --port, or leave it out"
            ) from error
        self.port: int = self._sockets[0].getsockname()[1]
        shown_host = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown_host}:{self.port}/?token={self.token}"

    async def serve(self, until: asyncio.Event) -> None:
        """Serves until the event is set."""
        server = HTTPServer(self._application, max_header_size=2**14, max_body_size=2**10)
        server.add_sockets(self._sockets)
        try:
            await until.wait()
        finally:
            server.stop()
            await server.close_all_connections()
            self._shown.close()

    @contextmanager
    def running(self) -> Generator[str]:
        """Serves from a thread of its own, until the block ends; for scripts and notebooks. Gives `url`."""
        loop, until = asyncio.new_event_loop(), asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(self.serve(until),), name="viewer")
        thread.start()
        try:
            yield self.url
        finally:
            loop.call_soon_threadsafe(until.set)
            thread.join()
            loop.close()


class _Shown:
    """Slides that are being looked at. A slide stands in addresses by its place in the list, so no name is ever read
    from one."""

    def __init__(self, scenes: Scenes, workers: int) -> None:
        self.title, self.entries = scenes.title, list(scenes.entries())
        self._scenes = scenes
        self._opener = ThreadPoolExecutor(1, "scenes")  # one at a time: models and features are shared
        self._kept: OrderedDict[int, Future[Scene]] = OrderedDict()
        self._paths: dict[str, SlidePath] = {}  # a tile needs no more of a slide than this,
        self._places: dict[int, tuple[Coords, float]] = {}  # and a patch no more than that
        self.tiles = Tiles(self._paths, workers)

    def close(self) -> None:
        self._opener.shutdown(cancel_futures=True)
        self.tiles.close()

    async def scene(self, number: int) -> Scene:
        if number >= len(self.entries):
            raise HTTPError(404)
        if number not in self._kept:
            self._kept[number] = self._opener.submit(self._open, number)
            if len(self._kept) > _SCENES_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        try:
            return await asyncio.wrap_future(self._kept[number])
        except Exception:
            self._kept.pop(number, None)  # it may be there when it is asked for again
            raise

    async def tile(self, number: int, stain: str, zoom: int, column: int, row: int) -> bytes:
        await self._known(number)
        if (name := f"{number}/{stain}") not in self._paths:
            raise HTTPError(404)
        return await self._made(self.tiles.get(TileKey(name, zoom, column, row)))

    async def patch(self, number: int, patch: int) -> bytes:
        await self._known(number)
        coords, side = self._places[number]
        if patch >= len(coords):
            raise HTTPError(404)
        left, top = coords[patch].tolist()
        return await self._made(self.tiles.square(f"{number}/he", left, top, side, PATCH_PX))

    async def _known(self, number: int) -> None:
        if number not in self._places:
            try:
                await self.scene(number)
            except Her2CacheError as error:
                raise HTTPError(404) from error

    def _open(self, number: int) -> Scene:
        scene = self._scenes.open(self.entries[number].slide_id)
        self._places[number] = scene.coords, scene.patch_px
        self._paths[f"{number}/he"] = scene.he.path
        if scene.ihc is not None:
            self._paths[f"{number}/ihc"] = scene.ihc.path
        return scene

    async def _made(self, tile: Future[bytes]) -> bytes:
        try:
            return await asyncio.wrap_future(tile)
        except (LookupError, SlideOpenError) as error:
            raise HTTPError(404) from error


class _Handler(RequestHandler):
    def initialize(self, shown: _Shown, token: str) -> None:
        self.shown, self._token = shown, token

    def prepare(self) -> Awaitable[None] | None:
        given = self.get_query_argument("token", "")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise HTTPError(403)
        return None

    def set_default_headers(self) -> None:
        self.set_header("Server", "her2cache")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        reasons = {403: "The address lacks the token that `her2cache view` printed.", 404: "There is no such page."}
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(reasons.get(status_code, "The viewer failed."))

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not isinstance(value, HTTPError):  # without the address: it has the token in it
            logging.getLogger("her2cache.viewer").error("a request failed", exc_info=value)

    def address(self, *parts: object) -> str:
        """As `trainers.viewer.page.Url`."""
        ends = {"tile": "TILE", "patch": "PATCH.jpg"}  # which the page's script fills in
        path = "/".join(str(part) for part in (*parts, *([ends[str(parts[0])]] if parts[0] in ends else [])))
        return f"/{path}?{urlencode({'token': self._token})}"

    def send(self, content: bytes | str, kind: str, *, keep: bool = False) -> None:
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", "private, max-age=3600" if keep else "no-store")
        self.finish(content)


class _First(_Handler):
    def get(self) -> None:
        self.redirect(self.address("slide", 0))


class _Nothing(_Handler):
    def get(self) -> None:
        raise HTTPError(404)


class _Static(_Handler):
    def get(self, name: str) -> None:
        if name not in {*STATIC, "bokeh.min.js"}:
            raise HTTPError(404)
        self.send(static(name), f"{_TYPES[Path(name).suffix]}; charset=utf-8", keep=True)


class _Page(_Handler):
    async def get(self, digits: str) -> None:
        shown, number, nonce = self.shown, int(digits), secrets.token_urlsafe(16)
        if number >= len(shown.entries):
            raise HTTPError(404)
        try:
            scene = await shown.scene(number)
            content = page(shown.title, shown.entries, shown.entries[number], number, scene, self.address, nonce)
        except Her2CacheError as error:
            content = problem(shown.title, shown.entries, number, str(error), self.address)
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'",
        )
        self.send(content, "text/html; charset=utf-8")


class _Tile(_Handler):
    async def get(self, slide: str, stain: str, zoom: str, column: str, row: str) -> None:
        tile = await self.shown.tile(int(slide), stain, int(zoom), int(column), int(row))
        self.send(tile, "image/jpeg", keep=True)


class _Patch(_Handler):
    async def get(self, slide: str, patch: str) -> None:
        self.send(await self.shown.patch(int(slide), int(patch)), "image/jpeg", keep=True)
