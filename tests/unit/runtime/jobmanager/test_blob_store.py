"""Files by content: kept while a job refers to them."""

from __future__ import annotations

import hashlib

import pytest

from engine.core.clock import ManualClock
from engine.core.ids import JobID
from engine.runtime.jobmanager.blob_store import UNREFERENCED_KEPT_MS, BlobStore

JOB = JobID.from_text("job")


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def store(tmp_path, clock):
    store = BlobStore(str(tmp_path), clock)
    yield store
    store.close()
    assert list(tmp_path.glob("blobs-*")) == []


def put(store, tmp_path, content=b"content"):
    path = tmp_path / "incoming"
    path.write_bytes(content)
    sha256 = store.put(str(path))
    assert not path.exists()
    return sha256


def test_a_file_is_found_by_the_hash_of_its_content(store, tmp_path):
    sha256 = put(store, tmp_path)
    assert sha256 == hashlib.sha256(b"content").hexdigest()
    assert open(store.path(sha256), "rb").read() == b"content"


def test_the_same_content_again_is_one_blob(store, tmp_path):
    assert put(store, tmp_path) == put(store, tmp_path)


@pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd", "", "A" * 64])
def test_unknown_and_malformed_names_are_not_found(store, name):
    assert store.path(name) is None


def test_an_ended_jobs_file_goes_after_a_while(store, tmp_path, clock):
    sha256 = put(store, tmp_path)
    store.retain(JOB, [sha256])
    clock.advance(UNREFERENCED_KEPT_MS + 1)
    store.release(JobID.from_text("other"))
    store.sweep()
    assert store.path(sha256) is not None
    clock.advance(UNREFERENCED_KEPT_MS + 1)
    store.release(JOB)
    store.sweep()
    assert store.path(sha256) is None


def test_a_file_of_two_jobs_stays_until_both_have_ended(store, tmp_path, clock):
    sha256, other = put(store, tmp_path), JobID.from_text("other")
    store.retain(JOB, [sha256])
    store.retain(other, [sha256])
    for job_id, kept in ((JOB, True), (other, False)):
        store.release(job_id)
        clock.advance(UNREFERENCED_KEPT_MS + 1)
        store.sweep()
        assert (store.path(sha256) is not None) is kept


def test_a_client_that_asked_lately_finds_its_file(store, tmp_path, clock):
    sha256 = put(store, tmp_path)
    store.retain(JOB, [sha256])
    store.release(JOB)
    clock.advance(UNREFERENCED_KEPT_MS)
    assert store.path(sha256) is not None
    clock.advance(UNREFERENCED_KEPT_MS)
    store.sweep()
    assert store.path(sha256) is not None


def test_a_file_just_uploaded_is_kept_for_the_submission_that_follows(store, tmp_path):
    sha256 = put(store, tmp_path)
    store.release(JOB)
    store.sweep()
    assert store.path(sha256) is not None
