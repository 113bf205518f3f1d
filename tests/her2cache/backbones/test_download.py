"""torchvision's weights: downloaded once, compared with the hash in their name, and damaged files told of."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, WeightsEnum
from torchvision.models._api import Weights

from her2cache.backbones.download import cached, damage, download
from her2cache.backbones.listing import _lacking, available
from her2cache.backbones.registry import load_recipe
from her2cache.errors import EmbedderError


def _saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


STATE = {"a": torch.arange(1000.0)}
CONTENT = _saved(STATE)
HALF = CONTENT[: len(CONTENT) // 2]
FLIPPED = CONTENT[:900] + bytes([CONTENT[900] ^ 1]) + CONTENT[901:]
KINDS = {"alexnet-imagenet": AlexNet_Weights, "torchvision:squeezenet1_1": SqueezeNet1_1_Weights}
DAMAGED = pytest.mark.parametrize(
    "content", [b"", b"text\n" * 50, b"\x80\x02}q\x00.", HALF, FLIPPED], ids=["empty", "text", "pickle", "half", "bit"]
)


@dataclass
class Site:
    """A web site of one file."""

    port: int = 0
    content: bytes = CONTENT
    said: bytes = b""  # headers of its own
    paths: list[str] = field(default_factory=list[str])  # asked for

    def weights(self, content: bytes = CONTENT) -> WeightsEnum:
        """Weights that are to be had there, named by the hash of their content."""
        url = f"http://127.0.0.1:{self.port}/net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        kinds: Any = WeightsEnum("kinds", {"V1": Weights(url, transforms=lambda: None, meta={"_file_size": 3})})
        return kinds.V1


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.paths.append(self.path)
            head = site.said or b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT)
            self.wfile.write(head + site.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield site
        server.shutdown()


def _download(weights: WeightsEnum, *, offline: bool = False) -> dict[str, torch.Tensor]:
    return download(weights, "the weights of net", "give a file", offline=offline)


def _put(weights: WeightsEnum, content: bytes) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_it_is_downloaded_once_and_in_silence(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    weights = site.weights()
    assert cached(weights) is None
    assert _lacking(weights, "net").startswith("weights come with the first use (3 MB)")
    for offline in (False, False, True):
        assert torch.equal(_download(weights, offline=offline)["a"], STATE["a"])
    assert len(site.paths) == 1
    path = cached(weights)
    assert path is not None
    assert path.read_bytes() == CONTENT
    assert damage(path) == _lacking(weights, "net") == ""
    assert capfd.readouterr() == ("", "")  # `embed --json` has its document there


@DAMAGED
def test_a_damaged_file_is_told_of_and_not_used(site: Site, content: bytes) -> None:
    weights = site.weights()
    path = _put(weights, content)
    for offline in (False, True):
        with pytest.raises(EmbedderError, match=f"{path} is damaged .* delete it, .*give a file"):
            _download(weights, offline=offline)
    assert f"{path} is damaged" in _lacking(weights, "net")
    assert path.read_bytes() == content  # what a user has is for the user to delete
    path.unlink()
    assert torch.equal(_download(weights)["a"], STATE["a"])
    assert damage(path) == ""


def test_a_file_with_the_right_hash_that_is_no_weights_file(site: Site) -> None:
    weights = site.weights(b"text")
    path = _put(weights, b"text")
    with pytest.raises(EmbedderError, match=f"cannot be read from {path} .* delete the file"):
        _download(weights)


@pytest.mark.parametrize(
    ("said", "content", "reason"),
    [
        (b"", HALF, "invalid hash value"),
        (b"", FLIPPED, "invalid hash value"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n", HALF, "IncompleteRead"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", b"", "HTTPError"),
        (b"text\r\n\r\n", b"", "BadStatusLine"),
    ],
)
def test_a_download_that_breaks_off_leaves_nothing(site: Site, said: bytes, content: bytes, reason: str) -> None:
    site.said, site.content = said, content
    weights = site.weights()
    with pytest.raises(EmbedderError, match=f"the weights of net cannot be downloaded .*{reason}.*; give a file"):
        _download(weights)
    assert cached(weights) is None
    assert list((Path(torch.hub.get_dir()) / "checkpoints").iterdir()) == []


def test_nobody_answers(site: Site) -> None:
    site.port = 9  # discard
    with pytest.raises(EmbedderError, match=r"cannot be downloaded .*URLError"):
        _download(site.weights())


@pytest.mark.parametrize("content", [b"", b"text\n" * 50, HALF, FLIPPED], ids=["empty", "text", "half", "bit"])
@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_an_embedder_whose_file_is_damaged_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Any, content: bytes
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = _put(kind.IMAGENET1K_V1, content)
    with pytest.raises(EmbedderError, match=f"{path} is damaged .* delete it"):
        load_recipe(name, 96)


def test_nor_is_it_listed_as_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    paths = {name: _put(kind.IMAGENET1K_V1, HALF) for name, kind in KINDS.items()}
    listed = {one.name: one for one in available()}
    for name, path in paths.items():
        assert not listed[name].usable
        assert f"{path} is damaged" in listed[name].why
        assert "delete it" in listed[name].why
