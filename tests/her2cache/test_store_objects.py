"""URIs of object stores, the environment that opens them, and what is said of servers that refuse us."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from her2cache.errors import ConfigError, StoreUnreachableError
from her2cache.store.objects import PATIENCE, is_remote, normal_uri, open_bucket, split_uri
from her2cache.store.reader import FeatureStore, open_records
from tests.s3 import SECRET_KEY, S3Server

MARK = "sEcReTmArK"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of AWS but what a test sets."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(PATIENCE, "0.5")
    return monkeypatch


class TestUris:
    @pytest.mark.parametrize(
        ("uri", "remote"),
        [
            *((uri, True) for uri in ("s3://b/x", "S3://bucket", "gs://b/x")),
            *((uri, False) for uri in ("/a/b", "a", "", "file:///a", "C:\\x", "a:b", "./s3://x")),
        ],
    )
    def test_what_is_remote(self, uri: str, remote: bool) -> None:
        assert is_remote(uri) is remote
        assert not is_remote(Path(uri))

    def test_bucket_and_key(self) -> None:
        assert split_uri("s3://bucket") == ("bucket", "")
        assert split_uri("s3://bucket/") == ("bucket", "")
        assert split_uri("S3://my.bucket-1/a/b c/ü%20/") == ("my.bucket-1", "a/b c/ü%20")
        assert normal_uri("S3://bucket/a/") == "s3://bucket/a"

    @pytest.mark.parametrize(
        "uri", ["s3://", "s3:///x", "s3://a b/c", "s3://b", "s3://bucket/../x", "s3://bucket/a//b"]
    )
    def test_what_names_no_place(self, uri: str) -> None:
        with pytest.raises(ConfigError, match="names no place in a bucket"):
            split_uri(uri)

    @pytest.mark.parametrize("uri", ["gs://bucket/x", "az://bucket", "http://host/x", "ftp://x"])
    def test_other_kinds_are_told_from_those_that_are_known(self, uri: str) -> None:
        for use in (FeatureStore.open, FeatureStore.create):
            with pytest.raises(ConfigError, match=r"is no kind of store that is known: .* s3://"):
                use(uri)

    @pytest.mark.parametrize("uri", [f"s3://me:{MARK}@bucket/x", f"s3://{MARK}@bucket", f"gs://a:{MARK}@b/c"])
    def test_credentials_in_a_uri_are_refused_and_not_repeated(self, uri: str) -> None:
        with pytest.raises(ConfigError, match="carries credentials") as caught:
            FeatureStore.open(uri)
        assert MARK not in str(caught.value)


class TestEnvironment:
    @pytest.mark.parametrize("endpoint", ["http://s3.example.com", "http://10.0.0.1:9000", "http://127.example.com"])
    def test_http_is_for_this_machine_unless_it_is_allowed(
        self, environment: pytest.MonkeyPatch, endpoint: str
    ) -> None:
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(ConfigError, match="not encrypted"):
            open_bucket("s3://bucket")
        environment.setenv("AWS_ALLOW_HTTP", "true")
        open_bucket("s3://bucket")

    @pytest.mark.parametrize(
        "endpoint", ["http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1", "https://x.org"]
    )
    def test_these_need_no_leave(self, environment: pytest.MonkeyPatch, endpoint: str) -> None:
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        open_bucket("s3://bucket")

    @pytest.mark.parametrize(
        "endpoint",
        [f"http://me:{MARK}@127.0.0.1:1", f"https://{MARK}@host", f"ftp://{MARK}", f"{MARK}:80", "http://[1"],
    )
    def test_endpoints_that_are_none(self, environment: pytest.MonkeyPatch, endpoint: str) -> None:
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(ConfigError, match="the endpoint in AWS_ENDPOINT_URL") as caught:
            open_bucket("s3://bucket")
        assert MARK not in str(caught.value)

    def test_the_endpoint_of_s3_alone_comes_first(self, environment: pytest.MonkeyPatch, s3_server: S3Server) -> None:
        for name, value in s3_server.environment.items():
            environment.setenv(name, value)
        environment.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
        environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        FeatureStore.create(f"{s3_server.make_bucket('tests')}/endpoint")

    @pytest.mark.parametrize("patience", ["x", "-1", "nan", "1e9"])
    def test_a_patience_that_is_none(self, environment: pytest.MonkeyPatch, patience: str) -> None:
        environment.setenv(PATIENCE, patience)
        with pytest.raises(ConfigError, match="not a number of seconds"):
            open_bucket("s3://bucket")

    def test_a_bucket_is_opened_once(self, environment: pytest.MonkeyPatch) -> None:
        assert open_bucket("s3://bucket/a") is open_bucket("s3://bucket/b")
        environment.setenv("AWS_REGION", "eu-west-1")
        assert open_bucket("s3://bucket/a") is not None


@pytest.mark.parametrize(
    ("changes", "bucket", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": MARK}, "tests", "does not know the access key"),
        ({"AWS_SECRET_ACCESS_KEY": MARK}, "tests", "does not fit the access key"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "tests", "no credentials are found"),
        ({}, "no-such-bucket", "there is no bucket 'no-such-bucket'"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "tests", "no S3 server answers at http://127.0.0.1:9"),
    ],
    ids=["key", "secret", "none", "bucket", "server"],
)
def test_what_is_wrong_is_told_in_one_line_and_soon(
    environment: pytest.MonkeyPatch, s3_server: S3Server, changes: dict[str, str], bucket: str, said: str
) -> None:
    s3_server.make_bucket("tests")
    for name, value in {**s3_server.environment, **changes}.items():
        environment.setenv(name, value)
    for name in [name for name, value in changes.items() if not value]:
        environment.delenv(name)
    environment.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # this machine has no role
    uri = f"s3://{bucket}/store"
    began = time.monotonic()
    for use in (FeatureStore.open, FeatureStore.create, lambda uri: open_records(uri).list("commits")):
        with pytest.raises(StoreUnreachableError, match=said) as caught:
            use(uri)
        message = str(caught.value)
        assert message.startswith(uri)
        assert "\n" not in message
        assert len(message) < 300
        assert MARK not in message
        assert SECRET_KEY not in message
        assert caught.value.__cause__ is None
    assert time.monotonic() - began < 30
