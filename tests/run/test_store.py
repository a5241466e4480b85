import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.grid import Cell
from harness.scoring.adapter import stored
from harness.store import FIELDS, FILE_NAME, Store, locked
from tests.run.fakes import result

ANSWER = stored(result("B", Cell("a", "restkv", ratio=0.5), "AB"))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    plain = stored(result("ü\n", Cell("full", "full")))
    with Store(tmp_path / FILE_NAME) as store:
        store.write(7, {"k1": ANSWER, "k2": plain})
        store.write(3, {"k1": ANSWER})
    with Store(tmp_path / FILE_NAME) as store:
        assert store.read("k1") == {3: ANSWER, 7: ANSWER}
        assert store.read("k2")[7]["text"] == "ü\n"
        assert store.read("k2")[7]["window_effective"] is None
        assert store.read("unknown") == {}
        assert store.done(["k1", "k2"]) == {7: {"k1", "k2"}, 3: {"k1"}}
        assert store.done(["k2"]) == {7: {"k2"}}
        assert store.count() == (2, 3)
    assert list(ANSWER) == list(FIELDS)


def test_an_answer_that_is_there_stays(tmp_path: Path) -> None:
    with Store(tmp_path / FILE_NAME) as store:
        store.write(0, {"k": ANSWER})
        store.write(0, {"k": {**ANSWER, "text": "other"}})
        assert store.read("k")[0]["text"] == "B"


def test_a_sample_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path / FILE_NAME) as store:
        with pytest.raises(sqlite3.IntegrityError):
            store.write(0, {"good": ANSWER, "bad": {**ANSWER, "text": None}})
        assert store.count() == (0, 0)
        store.write(0, {"good": ANSWER})
        assert store.count() == (1, 1)


def test_a_full_disk_is_one_sentence_and_keeps_what_is_stored(tmp_path: Path) -> None:
    with Store(tmp_path / FILE_NAME) as store:
        store.write(0, {"k": ANSWER})
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(UserError, match="full"):
            store.write(1, {f"k{i}": ANSWER for i in range(500)})
        assert store.read("k") == {0: ANSWER}
        assert store.count() == (1, 1)


def test_notes_are_replaced(tmp_path: Path) -> None:
    with Store(tmp_path / FILE_NAME) as store:
        assert store.get("x") is None
        store.put("x", "1")
        store.put("x", "2")
        assert store.get("x") == "2"


def test_nothing_but_the_file_stays_after_closing(tmp_path: Path) -> None:
    with Store(tmp_path / FILE_NAME) as store:
        store.write(0, {"k": ANSWER})
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def _foreign(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()


def _damaged(path: Path) -> None:
    with Store(path) as store:
        for row in range(400):
            store.write(row, {"k": ANSWER})
    content = bytearray(path.read_bytes())
    content[8192:-4096] = bytes(len(content) - 8192 - 4096)
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    with Store(path) as store:
        for row in range(400):
            store.write(row, {"k": ANSWER})
    path.write_bytes(path.read_bytes()[:9000])


def _newer(path: Path) -> None:
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize(
    "spoil", [lambda p: p.write_bytes(b"not a database" * 99), _foreign, _damaged, _cut, _newer]
)
def test_a_file_that_is_no_sound_store_is_refused_and_left_alone(tmp_path: Path, spoil) -> None:
    path = tmp_path / FILE_NAME
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"cannot be used .*nothing was changed"):
        Store(path)
    assert path.read_bytes() == before


def _hold(folder: Path, ready, release) -> None:
    with locked(folder):
        ready.set()
        release.wait(30)


def test_a_second_run_on_the_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(tmp_path, ready, release))
    first.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match="Another run"), locked(tmp_path):
        pass
    first.kill()
    first.join()
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "file" / "run"):
        pass


def test_a_place_at_fault_is_told_from_a_file_at_fault(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()  # what a folder that cannot be written looks like to SQLite
    with pytest.raises(UserError, match=r"choose another run\.dir"):
        Store(tmp_path / FILE_NAME)
