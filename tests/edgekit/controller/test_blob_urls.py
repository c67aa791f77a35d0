"""URLs of blobs: base URLs of web servers, and URLs that a bucket signs."""

import urllib.request

import pytest

from edgekit.controller.blob_urls import blob_urls
from edgekit.errors import SettingsError
from edgekit.registry import blob_name
from edgekit.storage.stores import open_store
from tests.simulators.s3 import s3_server
from tests.simulators.store import MemoryStore

DIGEST = "ab" * 32


def test_base_urls_are_followed_by_the_blobs_name():
    """Base URLs may end with a slash and are separated by commas; an empty setting gives no URL."""
    urls = blob_urls("http://one/registry, https://two/", MemoryStore())
    assert urls(DIGEST) == [f"http://one/registry/{blob_name(DIGEST)}", f"https://two/{blob_name(DIGEST)}"]
    assert blob_urls("", MemoryStore())(DIGEST) == []


@pytest.mark.parametrize("setting", ["file:///registry", "ftp://host", "http://", "sined"])
def test_what_is_no_web_address_is_a_wrong_setting(setting):
    """The message names the wrong part."""
    with pytest.raises(SettingsError, match=setting):
        blob_urls(setting, MemoryStore())


def test_a_folder_cannot_sign(tmp_path):
    """The advice names stores that can sign URLs."""
    with pytest.raises(SettingsError, match="cannot sign") as caught:
        blob_urls("signed", open_store(f"file://{tmp_path}"))
    assert "s3://" in caught.value.advice


def test_a_bucket_signs_an_address_that_anybody_can_read(monkeypatch):
    """The signature is in the query; a range of the blob comes back."""
    with s3_server() as endpoint:
        for name, value in {
            "ENDPOINT": endpoint,
            "ALLOW_HTTP": "true",
            "REGION": "us-east-1",
            "ACCESS_KEY_ID": "id",
            "SECRET_ACCESS_KEY": "secret",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        store = open_store("s3://models/registry")
        store.put(blob_name(DIGEST), b"0123456789")
        (url,) = blob_urls("signed", store)(DIGEST)
        assert "X-Amz-Signature=" in url
        request = urllib.request.Request(url, headers={"Range": "bytes=2-4"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.read() == b"234"
