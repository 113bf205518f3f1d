"""Buckets of an object store: opened from a URI and the standard environment; what goes wrong there, in one line.

Credentials are read by obstore where AWS's own tools have them (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_SESSION_TOKEN`, a web identity, the role of a container or of an instance) and stay inside it: a bucket is never
pickled, and no message repeats what obstore says in full.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore, S3Store

from her2cache.errors import ConfigError, StoreError, StoreSilentError, StoreUnreachableError

SCHEMES = ("s3",)
"""Kinds of object stores that are known; a directory needs none."""

PATIENCE = "HER2CACHE_STORE_PATIENCE"
"""Environment: for how many seconds a request is tried again while the server does not answer."""

_PATIENCE_S = 60.0
_BLOCK_BYTES = 4 << 20
_CONNECT_S, _SILENCE_S, _REQUEST_S = 5, 60, 3600
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_TRUE = frozenset({"1", "true", "yes", "on", "t", "y"})

_opener = 0
"""The process that obstore runs its threads in; they do not survive a fork."""

_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN where there is one) in the environment of"
    " every process"
)
_CODES = {
    "InvalidAccessKeyId": "the server does not know the access key in AWS_ACCESS_KEY_ID; check it, and the endpoint",
    "SignatureDoesNotMatch": "the secret in AWS_SECRET_ACCESS_KEY does not fit the access key; check both",
    "ExpiredToken": "the credentials have expired; get new ones",
    "InvalidToken": "AWS_SESSION_TOKEN is not of these credentials; set it anew, or unset it",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "AuthorizationHeaderMalformed": "the region is wrong; set AWS_REGION to that of the bucket",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION to that of the bucket",
}
"""What a server's error codes mean and what to do."""


def scheme_of(uri: str | Path) -> str:
    """What stands before `://`, in lower case; "" where nothing does."""
    found = _SCHEME.match(str(uri))
    return found.group().lower() if found else ""


def is_remote(uri: str | Path) -> bool:
    """Whether a URI is of an object store, not of a path on this machine."""
    return scheme_of(uri) not in {"", "file"}


def split_uri(uri: str | Path) -> tuple[str, str]:
    """The bucket and the key of `s3://bucket/key`; the key has no slash at its ends, and may be "".

    Raises:
        ConfigError: the scheme is not known, no bucket is named, or the URI carries credentials.
    """
    text = str(uri)
    scheme = scheme_of(text)
    rest = text[len(scheme) + 3 :]
    host, _, key = rest.partition("/")
    if "@" in host:
        raise ConfigError(f"a URI {scheme}://... carries credentials, where others could read them; {_CREDENTIALS}")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(
            f"{scheme}:// is no kind of store that is known: give a directory, or a URI that begins with {known}"
        )
    key = key.strip("/")
    if not _BUCKET.fullmatch(host) or any(part in {"", ".", ".."} for part in key.split("/") if key):
        raise ConfigError(f"{text} names no place in a bucket: give s3://BUCKET/PREFIX")
    return host, key


def normal_uri(uri: str | Path) -> str:
    """A URI with its scheme in lower case and no slash at its end, so that a place has one name."""
    bucket, key = split_uri(uri)
    return f"{scheme_of(uri)}://{bucket}/{key}".rstrip("/")


def open_bucket(uri: str | Path) -> ObjectStore:
    """The bucket of a URI; keys are relative to the bucket, whatever the URI says behind its name.

    Nothing is asked of the server yet. One bucket is opened once in a process, however often it is asked for.

    Raises:
        ConfigError: the URI names no bucket, or the environment an endpoint that is not allowed.
        StoreError: this process was forked from one that has opened a bucket.
    """
    global _opener  # noqa: PLW0603
    bucket, _ = split_uri(uri)
    _opener = _opener or os.getpid()
    if _opener != os.getpid():
        raise StoreError(
            f"{uri}: this process was forked from one that has used the store, whose network threads it lacks, so"
            " requests would wait for ever: start workers with the method spawn or forkserver (of a DataLoader:"
            " multiprocessing_context), or stage what they read before they start"
        )
    environment = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_") or k == PATIENCE))
    return _opened(bucket, environment)


@contextmanager
def translated(uri: str | Path) -> Generator[None]:
    """Makes errors of obstore ours, in one line and without what only its authors can read.

    `FileNotFoundError` (no such object) and obstore's `AlreadyExistsError` and `PreconditionError` (of
    a condition that we set) pass as they are.

    Raises:
        StoreUnreachableError: the bucket does not exist, or its server does not answer or refuses us.
    """
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise
        failed = _explained(uri, str(error))
    except BaseError as error:
        failed = _explained(uri, str(error))
    else:
        return
    raise failed from None  # what obstore says in full goes nowhere


def stream(uri: str | Path) -> Iterator[memoryview]:
    """An object, in pieces of a few MB, as it comes. Raises what obstore does; see `translated`."""
    _, key = split_uri(uri)
    for block in obstore.get(open_bucket(uri), key).stream(min_chunk_size=_BLOCK_BYTES):
        yield memoryview(block)


@lru_cache(maxsize=16)
def _opened(bucket: str, environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    variables = dict(environment)
    endpoint = next((variables[name] for name in _ENDPOINTS if variables.get(name)), "")
    options: dict[str, Any] = {}
    if endpoint:
        _check_endpoint(endpoint, variables)
        options["endpoint"] = endpoint.rstrip("/")
    if "AWS_VIRTUAL_HOSTED_STYLE_REQUEST" not in variables:
        # servers of one's own seldom have a name for each bucket; and AWS's certificate has no bucket with a dot
        options["virtual_hosted_style_request"] = not endpoint and "." not in bucket
    if "AWS_CHECKSUM_ALGORITHM" not in variables:
        options["checksum_algorithm"] = "SHA256"  # the server refuses an object that came otherwise than it was sent
    try:
        return S3Store(
            bucket,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "read_timeout": timedelta(seconds=_SILENCE_S),
                "timeout": timedelta(seconds=_REQUEST_S),  # of a whole object, which may be large and the line slow
            },
            retry_config={
                "max_retries": 1000,  # time is what ends them
                "retry_timeout": timedelta(seconds=_patience(variables)),
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=3),
                    "base": 2,
                },
            },
            **options,
        )
    except BaseError as error:
        raise ConfigError(
            f"s3://{bucket} cannot be opened ({str(error).partition(chr(10))[0]}); correct the variables AWS_... of the"
            " environment"
        ) from None


def _patience(variables: dict[str, str]) -> float:
    text = variables.get(PATIENCE, "")
    try:
        seconds = float(text) if text else _PATIENCE_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise ConfigError(f"{PATIENCE}={text} is not a number of seconds")
    return seconds


def _check_endpoint(endpoint: str, variables: dict[str, str]) -> None:
    """Refuses an endpoint that carries a password, and one that would send features in the clear unasked."""
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
    except ValueError:
        raise ConfigError("the endpoint in AWS_ENDPOINT_URL is not a URL; give http(s)://HOST:PORT") from None
    if "@" in parts.netloc:
        raise ConfigError(f"the endpoint in AWS_ENDPOINT_URL carries credentials; take them out and {_CREDENTIALS}")
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigError("the endpoint in AWS_ENDPOINT_URL is not a URL; give http(s)://HOST:PORT")
    allowed = variables.get("AWS_ALLOW_HTTP", "").lower() in _TRUE
    if parts.scheme == "http" and not _LOOPBACK.fullmatch(host) and not allowed:
        raise ConfigError(
            f"the endpoint {endpoint} is not encrypted, and not on this machine: use https, or set AWS_ALLOW_HTTP=true"
            " where the network is trusted"
        )


def _without_names(said: str, uri: str | Path) -> str:
    """The first line of what obstore says, without the names that the user chose."""
    bucket, key = split_uri(uri)
    line = said.partition("\n")[0]
    for name in sorted({bucket, *key.split("/")} - {""}, key=len, reverse=True):
        line = line.replace(name, "")
    return line


def _explained(uri: str | Path, said: str) -> StoreUnreachableError:
    """What a failed request means."""
    message = _answered(uri, said)
    if message:
        return StoreUnreachableError(message)
    return StoreSilentError(
        f"{uri} cannot be reached: no S3 server answers at {_endpoint()}; it is down, or the network or"
        " AWS_ENDPOINT_URL is wrong; when it is back, run the same command again"
    )


def _endpoint() -> str:
    return next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "AWS")


def _answered(uri: str | Path, said: str) -> str:
    """What a server said of a failed request, in one line: fact, likely cause, remedy; "" where nobody answered."""
    bucket, _ = split_uri(uri)
    endpoint = _endpoint()
    code = next(iter(re.findall(r"<Code>(\w+)</Code>", said)), "")
    status = next(iter(re.findall(r"status code: (\d{3})", said)), "")
    if code == "NoSuchBucket":
        return f"{uri}: there is no bucket {bucket!r} at {endpoint}; make it, or check its name and AWS_ENDPOINT_URL"
    if code in _CODES:
        return f"{uri} cannot be used: {_CODES[code]}"
    if (
        re.search(r"169\.254\.\d+\.\d+|latest/(?:api/token|meta-data)|[Cc]redential", _without_names(said, uri))
        and not code
    ):
        return f"{uri} cannot be used: no credentials are found, and this machine has no role; {_CREDENTIALS}"
    if status in {"401", "403"} or code == "AccessDenied":
        return (
            f"{uri}: the server refuses access ({code or status}): these credentials may not do that in bucket"
            f" {bucket!r}; ask for the rights to list, read, write and delete there"
        )
    if status:
        return f"{uri}: the server at {endpoint} fails ({' '.join(filter(None, (status, code)))}); try again later"
    return ""
