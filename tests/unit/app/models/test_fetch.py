"""A bundle from afar is fetched once, verified, continued or begun again after a break, and never seen half."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import fsspec
import pandas as pd
import pytest
import yaml

from app.calibration import Calibration
from app.errors import BundleError, DigestMismatch, UnsafeBundle
from app.models.bundle import open_bundle
from app.models.bundle_files import REFERENCE, SPEC, WEIGHTS
from app.models.fetch import redacted
from app.models.packing import pack_bundle
from app.models.repository import Repository, add_calibration, open_repository
from app.models.trust import TrustStore
from tests.samples import pack_sample, sample_module, sample_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Handler(http.server.SimpleHTTPRequestHandler):
    """A file server whose ranges and breaks are switched by the test."""

    ranges = True
    break_after: int | None = None
    seen: list[str]

    def do_GET(self) -> None:
        """Send a file, a part of one, or one that breaks off."""
        path = self.translate_path(self.path)
        wanted = self.headers.get("Range", "")
        type(self).seen.append(f"{self.path} {wanted}".strip())
        if path.endswith((".yaml", ".json")) or self.path.endswith("/"):
            super().do_GET()
            return
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - the path is a string of the library
                content = file.read()
        except OSError:
            self.send_error(404)
            return
        first = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and self.ranges else 0
        part = content[first:]
        self.send_response(206 if wanted and self.ranges else 200)
        if wanted and self.ranges:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.break_after is not None and self.path.endswith(WEIGHTS):
            self.wfile.write(part[: self.break_after])
            self.wfile.flush()
            self.wait_for_part(self.break_after)
            self.close_connection = True
            return
        self.wfile.write(part)

    @staticmethod
    def wait_for_part(size: int) -> None:
        """Wait until so much has reached the disk of the other side."""

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


class Server:
    """An HTTP server of a folder."""

    def __init__(self, root: Path, cache: Path) -> None:
        def wait_for_part(size: int) -> None:
            for _ in range(1000):
                if any(part.stat().st_size >= size for part in cache.glob("*/*/*/*.part")):
                    return
                threading.Event().wait(0.01)

        self.handler = type("Handler", (_Handler,), {"seen": [], "wait_for_part": staticmethod(wait_for_part)})
        handler = functools.partial(self.handler, directory=str(root))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/models"

    @property
    def seen(self) -> list[str]:
        """Requests so far."""
        return self.handler.seen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the far repository holds."""
    pack_sample(tmp_path / "far" / "models")
    return tmp_path / "far" / "models"


@pytest.fixture
def server(root: Path, tmp_path: Path) -> Iterator[Server]:
    """Its HTTP server."""
    server = Server(root.parent, tmp_path / "cache")
    thread = threading.Thread(target=functools.partial(server.server.serve_forever, poll_interval=0.02))
    thread.start()
    yield server
    server.server.shutdown()
    thread.join()
    server.server.server_close()


@pytest.fixture
def repository(server: Server, tmp_path: Path) -> Repository:
    """It, as a worker sees it."""
    return _open(server.url, tmp_path)


def _open(url: str, tmp_path: Path) -> Repository:
    return open_repository(url, cache=tmp_path / "cache", trust=TrustStore(tmp_path / "trust.json"))


def _cache(tmp_path: Path) -> list[str]:
    """Entries of the cache, without its locks."""
    return [path.name for path in (tmp_path / "cache").glob("*") if path.suffix != ".lock"]


@contextmanager
def _in_memory(root: Path) -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.put(str(root), "/far/models", recursive=True)
    try:
        yield "memory://far/models"
    finally:
        files.rm("/far", recursive=True)


def test_a_bundle_is_fetched_once(repository: Repository, server: Server, root: Path, tmp_path: Path) -> None:
    """It is the one that was packed, lies under its digest, and is not fetched again."""
    bundle = repository.open("sample", 3)
    original = open_bundle(root / "sample" / "3")
    assert (bundle.sha256, bundle.spec, bundle.calibration) == (original.sha256, original.spec, original.calibration)
    assert bundle.folder == tmp_path / "cache" / bundle.sha256 / "sample" / "3"
    assert bundle.weights().keys() == original.weights().keys()
    assert _cache(tmp_path) == [bundle.sha256]
    count = len(server.seen)
    repository.open("sample", 3)
    assert server.seen[count:] == [f"/models/sample/3/{SPEC}"]


def test_models_are_found_by_index_pages(repository: Repository, root: Path) -> None:
    """As any HTTP server lists a folder."""
    pack_sample(root, sample_spec(version=10))
    (root / "sample" / "notes").mkdir()
    add_calibration(root, "sample", 10, Calibration("platt", a=2.0))
    assert repository.names() == ["sample"]
    assert repository.versions("sample") == [3, 10]
    assert repository.calibrations("sample", 10) == [1]
    assert repository.open("sample", 10, calibration=1).calibration.a == 2.0
    assert [spec.version for spec in repository.specs()] == [3, 10]


def test_models_are_found_by_an_index_file(repository: Repository, root: Path, server: Server) -> None:
    """For a server that lists no folders; it alone counts then."""
    (root / "index.json").write_text(json.dumps({"sample": [3], "other": [1, 2]}))
    assert repository.names() == ["other", "sample"]
    assert repository.versions("other") == [1, 2]
    assert repository.versions("nobody") == []
    assert all(request.startswith("/models/index.json") for request in server.seen)
    (root / "index.json").write_text("[1]")
    with pytest.raises(BundleError, match=r"index\.json: \{name: \[versions\]\} is expected"):
        repository.names()


def test_memory_works_alike(root: Path, tmp_path: Path) -> None:
    """Any file system of fsspec does; this one has no server."""
    add_calibration(root, "sample", 3, Calibration("platt", a=2.0))
    with _in_memory(root) as url:
        repository = _open(url, tmp_path)
        assert repository.names() == ["sample"]
        assert repository.versions("sample") == [3]
        assert repository.calibrations("sample", 3) == [1]
        assert repository.open("sample", 3).sha256 == open_bundle(root / "sample" / "3").sha256
        assert _open("memory://far/none", tmp_path).names() == []


def test_an_interrupted_fetch_goes_on_where_it_broke(repository: Repository, server: Server, tmp_path: Path) -> None:
    """Until then there is no bundle; then only the rest is asked for."""
    server.handler.break_after = 100
    with pytest.raises(BundleError, match=r"weights\.safetensors: cannot be read .*kept for the next try"):
        repository.open("sample", 3)
    assert all(name.endswith(".draft") for name in _cache(tmp_path))
    server.handler.break_after = None
    count = len(server.seen)
    repository.open("sample", 3)
    again = [request for request in server.seen[count:] if WEIGHTS in request]
    assert len(again) == 1
    assert " bytes=100-" in again[0]


def test_without_ranges_an_interrupted_fetch_begins_again(repository: Repository, server: Server) -> None:
    """A server that cannot send the rest sends the whole."""
    server.handler.break_after = 100
    with pytest.raises(BundleError, match="cannot be read"):
        repository.open("sample", 3)
    server.handler.break_after, server.handler.ranges = None, False
    assert repository.open("sample", 3).weights()


def test_a_file_that_changed_in_between_is_begun_again(repository: Repository, server: Server, tmp_path: Path) -> None:
    """Two halves of different files are no file."""
    server.handler.break_after = 100
    with pytest.raises(BundleError):
        repository.open("sample", 3)
    part = next((tmp_path / "cache").glob(f".*/sample/3/{WEIGHTS}.part"))
    part.write_bytes(bytes(len(part.read_bytes())))
    server.handler.break_after = None
    assert repository.open("sample", 3).weights()


def test_what_is_not_what_was_packed_is_never_served(repository: Repository, root: Path, tmp_path: Path) -> None:
    """Nor kept: the next try fetches it anew."""
    content = (root / "sample" / "3" / WEIGHTS).read_bytes()
    (root / "sample" / "3" / WEIGHTS).write_bytes(content[:-1] + b"x")
    for _ in range(2):
        with pytest.raises(DigestMismatch, match=f"sample/3/{WEIGHTS}: its sha256 is not the one"):
            repository.open("sample", 3)
        assert all(name.endswith(".draft") for name in _cache(tmp_path))
    (root / "sample" / "3" / WEIGHTS).write_bytes(content)
    assert repository.open("sample", 3).weights()


def test_half_a_copy_is_named(repository: Repository, root: Path) -> None:
    """A file that has not arrived there yet, and a version that is not there at all."""
    (root / "sample" / "3" / REFERENCE).unlink()
    with pytest.raises(BundleError, match=f"sample/3/{REFERENCE}: not there in http"):
        repository.open("sample", 3)
    with pytest.raises(BundleError, match=r"sample/4/model\.yaml: not there"):
        repository.open("sample", 4)


def test_a_cached_bundle_that_has_gone_bad_is_fetched_again(repository: Repository, server: Server) -> None:
    """Its digests are checked each time; a missing file counts as bad."""
    folder = repository.open("sample", 3).folder
    (folder / WEIGHTS).write_bytes(b"bad")
    assert repository.open("sample", 3).weights()
    (folder / WEIGHTS).unlink()
    assert repository.open("sample", 3).weights()
    assert len([request for request in server.seen if WEIGHTS in request]) == 3


def test_the_fingerprint_changes_when_the_far_files_do(repository: Repository, root: Path) -> None:
    """Also when a file arrives late."""
    folder = root / "sample" / "3"
    seen = {repository.fingerprint("sample", 3)}
    assert repository.fingerprint("sample", 3) in seen
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    seen.add(repository.fingerprint("sample", 3))
    (folder / WEIGHTS).write_bytes(content[:50])
    seen.add(repository.fingerprint("sample", 3))
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["../../../secret", "/etc/hostname", "sub/x"])
def test_a_far_name_that_leads_out_is_refused(repository: Repository, root: Path, tmp_path: Path, name: str) -> None:
    """Nothing is asked for or written under it."""
    path = root / "sample" / "3" / SPEC
    document = yaml.safe_load(path.read_text())
    document["files"][name] = "0" * 64
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UnsafeBundle, match="lies outside the bundle"):
        repository.open("sample", 3)
    assert _cache(tmp_path) == []


def test_a_version_in_another_place_is_refused(repository: Repository, root: Path) -> None:
    """Before anything but its model.yaml is fetched."""
    shutil.copytree(root / "sample" / "3", root / "sample" / "4")
    with pytest.raises(BundleError, match="says sample version 3, but lies in sample/4"):
        repository.open("sample", 4)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With what to expect."""
    with pytest.raises(BundleError, match=r"cannot be read from http://127\.0\.0\.1:9/models"):
        _open("http://user:secret@127.0.0.1:9/models", tmp_path).versions("sample")


def test_messages_hide_what_opens_the_store() -> None:
    """User, password and signature stay out of logs."""
    assert redacted("https://me:secret@host:80/a?sig=1") == "https://host:80/a"
    assert redacted("s3://bucket/models") == "s3://bucket/models"


def test_processes_that_fetch_at_once_fetch_once(root: Path, server: Server, tmp_path: Path) -> None:
    """One fetches, the other waits; both get the verified bundle."""
    spec = sample_spec(version=4)
    pack_bundle(root, spec, sample_module(spec), Calibration(), pd.DataFrame({"x": range(1000)}))
    code = (
        "import sys; from pathlib import Path; from app.models.repository import open_repository\n"
        "from app.models.trust import TrustStore\n"
        "r = open_repository(sys.argv[1], cache=Path(sys.argv[2]), trust=TrustStore(Path('none')))\n"
        "print(r.open('sample', 4).sha256)"
    )
    command = [sys.executable, "-c", code, server.url, tmp_path / "cache"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = {process.communicate(timeout=60)[0] for process in running}
    assert digests == {open_bundle(root / "sample" / "4").sha256 + "\n"}
    assert len([request for request in server.seen if WEIGHTS in request]) == 1


def test_removing_a_far_version_drops_the_copies(repository: Repository, root: Path, tmp_path: Path) -> None:
    """A version that was packed anew has two; the far one stays, and is fetched when it is wanted again."""
    repository.open("sample", 3)
    shutil.rmtree(root / "sample" / "3")
    pack_sample(root, sample_spec(description="again"))
    repository.open("sample", 3)
    assert len(repository.remove("sample", 3)) == 2
    assert _cache(tmp_path) == []
    with pytest.raises(BundleError, match="sample has no version 3 on this machine"):
        repository.remove("sample", 3)
    assert repository.open("sample", 3).spec.description == "again"


def test_the_size_is_that_of_all_files(repository: Repository, root: Path) -> None:
    """Told without fetching them."""
    expected = sum(path.stat().st_size for path in (root / "sample" / "3").iterdir())
    assert repository.size_bytes("sample", 3) == expected
