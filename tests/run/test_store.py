"""The answers store: what is written comes back or is refused by name, and may be shared."""

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.records import schema
from harness.records.claims import Claims
from harness.records.folder import locked
from harness.records.schema import FIELDS
from harness.records.store import Store, place_of
from harness.scoring.rows import stored
from harness.settings.grid import Cell
from tests.run.fakes import result

ANSWER = stored(result("B", Cell("a", "restkv", ratio=0.5), "AB"))
NAME = "s.sqlite"


def bare(found: dict[int, dict]) -> dict[int, dict]:
    """Answers without what computed them and stands beside them."""
    return {row: {name: each[name] for name in FIELDS} for row, each in found.items()}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    plain = stored(result("ü\n\x00", Cell("full", "full")))
    with Store(tmp_path / NAME) as store:
        store.write(7, {"k1": ANSWER, "k2": plain})
        store.write(3, {"k1": ANSWER})
    with Store(tmp_path / NAME) as store:
        assert bare(store.read("k1")) == {3: ANSWER, 7: ANSWER}
        assert store.read("k2")[7]["text"] == "ü\n\x00"
        assert store.read("k2")[7]["window_effective"] is None
        assert store.read("unknown") == {}
        assert store.done(["k1", "k2"]) == {7: {"k1", "k2"}, 3: {"k1"}}
        assert store.done(["k2"]) == {7: {"k2"}}
        assert store.have(7, ["k1", "k2", "k3"]) == {"k1", "k2"}
        assert store.count() == (2, 3)
    assert list(ANSWER) == list(FIELDS)


def test_an_answer_that_is_there_stays(tmp_path: Path) -> None:
    with Store(tmp_path / NAME) as store:
        store.write(0, {"k": ANSWER})
        store.write(0, {"k": {**ANSWER, "text": "other"}})
        assert store.read("k")[0]["text"] == "B"


def test_every_row_says_what_computed_it(tmp_path: Path) -> None:
    with Store(tmp_path / NAME) as store:
        store.computed_by({"torch": "1", "host": "a"})
        store.write(0, {"k": ANSWER})
        store.computed_by({"torch": "2", "host": "b"})
        store.write(1, {"k": ANSWER})
        store.write(0, {"k": ANSWER})  # is there: still the first one's
        origins = store.origins()
        said = {row: origins[values["origin"]] for row, values in store.read("k").items()}
    assert said == {0: {"torch": "1", "host": "a"}, 1: {"torch": "2", "host": "b"}}


def test_a_sample_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path / NAME) as store:
        with pytest.raises(sqlite3.IntegrityError):
            store.write(0, {"good": ANSWER, "bad": {**ANSWER, "text": None}})
        assert store.count() == (0, 0)
        store.write(0, {"good": ANSWER})
        assert store.count() == (1, 1)


def test_a_full_disk_is_one_sentence_and_keeps_what_is_stored(tmp_path: Path) -> None:
    with Store(tmp_path / NAME) as store:
        store.write(0, {"k": ANSWER})
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(UserError, match="full"):
            store.write(1, {f"k{i}": ANSWER for i in range(500)})
        assert bare(store.read("k")) == {0: ANSWER}
        assert store.count() == (1, 1)


def test_closing_raises_nothing_over_what_went_wrong(tmp_path: Path) -> None:
    store = Store(tmp_path / NAME)
    store._db.close()  # as a full disk may leave it
    store.close()
    Store(tmp_path / NAME).close()


def test_notes_are_replaced(tmp_path: Path) -> None:
    with Store(tmp_path / NAME) as store:
        assert store.get("x") is None
        store.put("x", "1")
        store.put("x", "2")
        assert store.get("x") == "2"


def test_nothing_but_the_file_and_its_lock_stays_after_closing(tmp_path: Path) -> None:
    with Store(tmp_path / NAME) as store:
        store.write(0, {"k": ANSWER})
    assert {p.name for p in tmp_path.iterdir()} == {NAME, "s.lock"}


def test_a_model_has_one_place_in_a_run_dir(tmp_path: Path) -> None:
    assert place_of(tmp_path, "ab" * 32) == tmp_path / "answers" / f"{'ab' * 8}.sqlite"


def _foreign(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()


def _filled(path: Path) -> None:
    with Store(path) as store:
        for row in range(400):
            store.write(row, {"k": ANSWER})


def _zeroed(path: Path) -> None:
    _filled(path)
    content = bytearray(path.read_bytes())
    content[8 * 4096 : -4096] = bytes(len(content) - 9 * 4096)
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    _filled(path)
    path.write_bytes(path.read_bytes()[:48_000])


def _newer(path: Path) -> None:
    _filled(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


def _renamed_column(path: Path) -> None:
    _filled(path)
    path.write_bytes(path.read_bytes().replace(b"exposed_tokens", b"exqosed_tokens"))


SPOILT = [lambda p: p.write_bytes(b"not a database" * 99), _foreign, _zeroed, _cut, _newer]


@pytest.mark.parametrize("spoil", [*SPOILT, _renamed_column])
def test_a_file_that_is_no_sound_store_is_refused_and_left_alone(tmp_path: Path, spoil) -> None:
    path = tmp_path / NAME
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"cannot be used .*nothing was changed.*store\.repair"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("spoil", [*SPOILT, _renamed_column])
def test_a_repair_keeps_what_is_sound_and_the_damaged_file(tmp_path: Path, spoil) -> None:
    path = tmp_path / NAME
    spoil(path)
    before = path.read_bytes()
    with Store(path, mend=True) as store:
        kept = bare(store.read("k"))
        assert all(values == ANSWER for values in kept.values())
        if spoil in (_newer, _renamed_column):
            assert len(kept) == 400
        elif spoil in (_zeroed, _cut):
            assert 0 < len(kept) < 400
        assert store.aside is not None
        assert store.aside.read_bytes() == before
        store.write(1000, {"k": ANSWER})
    with Store(path, mend=True) as store:  # sound now: nothing to mend
        assert (store.lost, store.aside) == (0, None)
        assert 1000 in store.read("k")


@pytest.mark.parametrize("field", ["text", "row", "cell_key", "kept_tokens", "origin"])
def test_an_edited_row_is_refused_by_name_and_dropped_on_request(
    tmp_path: Path, field: str
) -> None:
    path = tmp_path / NAME
    with Store(path) as store:
        for row in range(3):
            store.write(row, {"k": ANSWER, "other": ANSWER})
    new = {"row": "77", "kept_tokens": "kept_tokens + 1"}.get(field, "'k'")
    db = sqlite3.connect(path, isolation_level=None)
    own = "cell_key = 'other' AND row = 1" if field == "cell_key" else "cell_key = 'k' AND row = 1"
    if field == "cell_key":
        db.execute("DELETE FROM responses WHERE cell_key = 'k' AND row = 1")
    db.execute(f"UPDATE responses SET {field} = {new} WHERE {own}")
    db.close()
    with Store(path) as store:
        place = f"cell key k, row {77 if field == 'row' else 1}"
        with pytest.raises(UserError, match=f"responses at {place} is not what was written"):
            store.done(["k"])
        with pytest.raises(UserError, match=r"store\.repair=true"):
            store.read("k")
    with Store(path, mend=True) as store:
        assert store.lost == 1
        assert list(store.read("k")) == [0, 2]
        assert list(store.read("other")) == ([0, 2] if field == "cell_key" else [0, 1, 2])


@pytest.mark.parametrize("table", ["prompts", "kept"])
def test_an_answer_whose_trace_is_damaged_is_computed_anew(tmp_path: Path, table: str) -> None:
    path, prompt = tmp_path / NAME, {"segments": "[]", "tokens": None, "images": "[]"}
    with Store(path) as store:
        for row in range(3):
            store.write(row, {"full": ANSWER, "k": ANSWER}, {"full": prompt}, {"k": [0.5]})
    db = sqlite3.connect(path, isolation_level=None)
    name, key = ("segments", "full") if table == "prompts" else ("shares", "k")
    db.execute(f"UPDATE {table} SET {name} = 'x' WHERE row = 1")
    db.close()
    with Store(path, mend=True) as store:
        assert store.done(["full", "k"]) == {
            0: {"full", "k"},
            1: {"full", "k"} - {key},
            2: {"full", "k"},
        }
        store.write(1, {key: ANSWER}, {"full": prompt}, {"k": [0.5]})
        assert list(store.prompts("full")) == list(store.kept("k")) == [0, 1, 2]


@pytest.mark.parametrize("table", ["prompts", "kept"])
def test_a_trace_that_lies_under_another_key_is_missed(tmp_path: Path, table: str) -> None:
    path, prompt = tmp_path / NAME, {"segments": "[]", "tokens": None, "images": "[]"}
    with Store(path) as store:
        store.write(0, {"full": ANSWER, "k": ANSWER}, {"full": prompt}, {"k": [0.5]})
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"UPDATE {table} SET cell_key = 'l'")
    db.close()
    with Store(path) as store, pytest.raises(UserError, match=r"store\.repair=true"):
        store.read("full" if table == "prompts" else "k")


def test_every_store_begins_with_the_same_page(tmp_path: Path) -> None:
    """A repair puts a new store's first page in place of a damaged one."""
    _filled(tmp_path / "a.sqlite")
    Store(tmp_path / "b.sqlite").close()
    roots = "SELECT name, rootpage, sql FROM sqlite_master ORDER BY name"
    found = []
    for name in "ab":
        db = sqlite3.connect(tmp_path / f"{name}.sqlite")
        found.append(db.execute(roots).fetchall())
        assert db.execute("PRAGMA page_size").fetchone() == (4096,)
        db.close()
    assert found[0] == found[1]
    assert len(found[0]) == len(schema.TABLES)


def _hold(folder: Path, ready, release) -> None:
    with locked(folder, print), Store(folder / NAME) as store:
        assert store.claims.take("k", 1) is not None
        ready.set()
        release.wait(30)


def test_what_a_process_holds_is_free_when_it_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(tmp_path, ready, release))
    first.start()
    assert ready.wait(30)
    with Store(tmp_path / NAME) as store:
        assert store.claims.take("k", 1) is None
        assert store.claims.take("k", 2) is not None
    with pytest.raises(UserError, match="Another run uses the store"):
        Store(tmp_path / NAME, mend=True)
    told = []

    def tell(text: str) -> None:
        told.append(text)
        first.kill()

    with locked(tmp_path, tell), Store(tmp_path / NAME, mend=True) as store:
        assert told == [f"waiting for another run that writes to {tmp_path}"]
        assert store.claims.take("k", 1, wait=True) is not None
    first.join()


def test_a_claim_is_given_back(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "lock")
    place = claims.take("k", 1)
    assert place is not None
    claims.free(place)
    claims.close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written"),
        locked(tmp_path / "file" / "run", print),
    ):
        pass
    with pytest.raises(UserError, match=r"choose another run\.dir"):
        Store(tmp_path / "file" / NAME)


def test_a_place_at_fault_is_told_from_a_file_at_fault(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()  # what a folder that cannot be written looks like to SQLite
    with pytest.raises(UserError, match=r"choose another run\.dir"):
        Store(tmp_path / NAME)
