"""Hub files are read from an own copy, then the hub's cache, then the hub; else one sentence."""

import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from harness.errors import UserError
from harness.scoring import datafiles

ONE = {"data_files": {"test": "hf://datasets/owner/name/part/a.jsonl"}}
ZIPPED = {"data_files": {"test": "zip://data/a.jsonl::hf://datasets/owner/name/data.zip"}}


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """An empty own folder, an empty cache and a hub out of reach."""
    monkeypatch.setenv("EVICTBENCH_DATA", str(tmp_path / "own"))
    monkeypatch.setattr(datafiles, "_converted", lambda: tmp_path / "converted")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(dataset_info=refuse))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


class ConnectError(Exception):
    """What an HTTP client raises, neither OSError nor ValueError."""


def refuse(*_, **__):
    raise ConnectError("no network")


def write(path: Path, text: str = "row") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_kwargs_without_hub_files_stay_as_they_are() -> None:
    for kwargs in ({}, {"data_files": "x.jsonl", "field": "rows"}, {"load_from_disk": True}):
        assert datafiles.repositories(kwargs) == []
        assert datafiles.local("task", kwargs) == kwargs
    assert datafiles.local("task", None) == {}


def test_repositories_are_found_in_any_nesting() -> None:
    files = [ONE["data_files"]["test"], "hf://datasets/o/n/b.jsonl", "/here/c.jsonl"]
    assert datafiles.repositories({"data_files": {"test": files}}) == ["owner/name", "o/n"]
    assert datafiles.repositories(ZIPPED) == ["owner/name"]


def test_an_own_copy_comes_first(tmp_path, monkeypatch) -> None:
    cached = str(write(tmp_path / "cached.jsonl"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: cached)
    assert datafiles.local("task", ONE)["data_files"] == {"test": cached}
    own = write(tmp_path / "own" / "owner" / "name" / "part" / "a.jsonl")
    found = datafiles.local("task", {**ONE, "features": "f"})
    assert found["data_files"] == {"test": str(own)}
    assert found["features"] == "f"
    assert ONE["data_files"]["test"].startswith("hf://")  # the caller's own are left alone
    monkeypatch.delenv("EVICTBENCH_DATA")
    assert datafiles.local("task", ONE)["data_files"] == {"test": cached}


def test_a_member_is_taken_out_of_the_archive_of_the_moment(tmp_path) -> None:
    path = tmp_path / "own" / "owner" / "name" / "data.zip"
    path.parent.mkdir(parents=True)
    for text in ("one", "another"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data/a.jsonl", text)
        file = datafiles.local("task", ZIPPED)["data_files"]["test"]
        assert Path(file).read_text() == text
    assert sorted(p.name for p in Path(file).parent.iterdir()) == ["a.jsonl"]


def test_a_member_may_lie_loose_beside_its_archive(tmp_path) -> None:
    loose = write(tmp_path / "own" / "owner" / "name" / "data" / "a.jsonl")
    assert datafiles.local("task", ZIPPED)["data_files"] == {"test": str(loose)}
    loose.unlink()
    copies = "owner/name/data.zip or owner/name/data/a.jsonl"
    with pytest.raises(UserError, match=f"a folder with a copy at {copies}"):
        datafiles.local("task", ZIPPED)


@pytest.mark.parametrize("content", [b"no zip", None])
def test_an_archive_without_the_member_is_one_sentence(tmp_path, content) -> None:
    path = write(tmp_path / "own" / "owner" / "name" / "data.zip")
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data/b.jsonl", "")
    with pytest.raises(UserError, match=r"data.zip is no zip file that holds data/a.jsonl: put"):
        datafiles.local("task", ZIPPED)


def test_a_file_that_is_nowhere_is_one_sentence() -> None:
    with pytest.raises(UserError) as error:
        datafiles.local("longbench", ONE)
    assert str(error.value) == (
        "task=longbench needs part/a.jsonl of the data set owner/name from the Hugging Face hub, "
        "which cannot be reached: connect, or set EVICTBENCH_DATA to a folder with a copy at "
        "owner/name/part/a.jsonl."
    )


def test_the_hub_is_asked_for_what_it_offers(tmp_path, monkeypatch) -> None:
    def info(repository, timeout):
        assert (repository, timeout) == ("owner/name", datafiles.PATIENCE)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in offered])

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(dataset_info=info))
    offered: list[str] = []
    with pytest.raises(UserError, match="which has no such file there: connect"):
        datafiles.local("task", ONE)
    offered.append("part/a.jsonl")
    with pytest.raises(UserError, match=r"which refuses it \(ConnectError\)"):
        datafiles.local("task", ONE)
    fetched = str(write(tmp_path / "fetched.jsonl"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: fetched)
    assert datafiles.local("task", ONE)["data_files"] == {"test": fetched}
