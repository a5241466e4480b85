"""What the store keeps of prompts and of kept tokens, and what it takes over of earlier stores."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from harness.errors import UserError
from harness.records import older
from harness.records.schema import FIELDS
from harness.records.store import Store
from harness.scoring.rows import stored
from harness.settings.grid import Cell
from tests.run import old_stores
from tests.run.fakes import result

NAME = "s.sqlite"
ANSWER = stored(result("B", Cell("a", "restkv", ratio=0.5), "AB"))
PROMPT = {"segments": '[["image", 3]]', "tokens": '["ä", "b", "c"]', "images": "[[0, 1, 3]]"}
SHARES = [0.0, 1.0, 0.5, 1 / 3, 55 / 112, 7 / 12]


def test_traces_are_read_back(tmp_path: Path) -> None:
    bare = {**PROMPT, "tokens": None}
    with Store(tmp_path / NAME) as store:
        store.write(7, {"k": ANSWER}, {"full": PROMPT}, {"k": SHARES, "full": [1.0] * 6})
        store.write(2, {"k": ANSWER}, {"full": bare})
        store.write(4, {"k": ANSWER})
    with Store(tmp_path / NAME) as store:
        assert store.prompts("full") == {2: bare, 7: PROMPT}
        assert store.prompts("k") == {}
        assert list(store.kept("k")) == list(store.kept("full")) == [7]
        found = store.kept("k")[7]
        assert found.dtype == np.float32
        assert found.tolist() == np.float32(SHARES).tolist()  # whole numbers of 65,520
        assert store.kept("full")[7].tolist() == [1.0] * 6


@pytest.mark.parametrize("lost", ["kept WHERE cell_key = 'k'", "kept", "prompts"])
def test_an_answer_whose_trace_is_lost_is_named_and_dropped_on_request(tmp_path: Path, lost: str):
    with Store(tmp_path / NAME) as store:
        store.write(7, {"k": ANSWER, "full": ANSWER}, {"full": PROMPT}, {"k": SHARES})
        store.write(4, {"k": ANSWER, "full": ANSWER})
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute(f"DELETE FROM {lost}")
    key = "full" if lost == "prompts" else "k"
    with Store(tmp_path / NAME) as store, pytest.raises(UserError, match=r"store\.repair=true"):
        store.read(key)
    with Store(tmp_path / NAME, mend=True) as store:
        assert store.lost == 1
        assert list(store.read(key)) == [4]  # the other is computed anew
        assert list(store.read("full" if key == "k" else "k")) == [4, 7]


def test_any_share_is_kept_to_five_digits_and_in_little_room(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shares = rng.random(1000)
    sparse = (rng.random(16_000) < 0.1).astype(float)
    with Store(tmp_path / NAME) as store:
        store.write(0, {}, None, {"k": shares.tolist(), "s": sparse.tolist()})
        assert np.abs(store.kept("k")[0] - shares).max() < 1e-5
        assert store.kept("s")[0].tolist() == sparse.tolist()
        query = "SELECT length(shares) FROM kept ORDER BY cell_key"
        assert [n for (n,) in store._db.execute(query)] < [2100, 8000]


def test_a_trace_that_is_there_stays(tmp_path: Path) -> None:
    other = {**PROMPT, "segments": "[]"}
    with Store(tmp_path / NAME) as store:
        store.write(0, {"k": ANSWER}, {"full": PROMPT}, {"k": [1.0]})
        store.write(0, {"n": ANSWER}, {"full": other}, {"k": [0.0], "n": [0.5]})
        assert store.prompts("full") == {0: PROMPT}
        assert store.kept("k")[0].tolist() == [1.0]
        assert store.kept("n")[0].tolist() == [0.5]


@pytest.mark.parametrize(
    ("prompts", "error"),
    [({"full": {**PROMPT, "segments": None}}, sqlite3.IntegrityError), ({"full": {}}, KeyError)],
)
def test_answers_and_traces_are_stored_together_or_not_at_all(
    tmp_path: Path, prompts: dict, error: type[Exception]
) -> None:
    with Store(tmp_path / NAME) as store:
        with pytest.raises(error):
            store.write(0, {"k": ANSWER}, prompts, {"k": [1.0]})
        assert store.count() == (0, 0)
        assert store.prompts("full") == store.kept("k") == {}
        assert not store._db.in_transaction


@pytest.mark.parametrize("version", [1, 2, 3])
def test_answers_of_earlier_versions_are_taken_over_once(tmp_path: Path, version: int) -> None:
    (tmp_path / "a run").mkdir()
    path = tmp_path / "a run" / older.FILE
    old_stores.write(path, version)
    before, told = path.read_bytes(), []
    with Store(tmp_path / NAME) as store:
        for _ in range(2):
            older.absorb(store, tmp_path, "w", told.append)
        assert told == [f"1 answers were taken over from {path}"]
        (answer,) = store.read("k").values()
        assert list(answer) == [*FIELDS, "origin", "traces"]
        assert store.origins()[answer["origin"]] == {"host": "unknown", "torch": "1.0"}
        assert answer["text"] == "B"
        assert answer["letter_logits"] == "{}"
        assert answer["decode_s"] == 0.4
        assert answer["truncated_tokens"] == (0 if version == 1 else 7)
        assert answer["nonfinite_tokens"] == 0
        assert store.read("of other weights") == {}
        assert list(store.prompts("k")) == ([3] if version == 3 else [])
        assert [each.tolist() for each in store.kept("k").values()] == [[1.0, 0.5]] * (version == 3)
    assert path.read_bytes() == before


def test_an_earlier_store_that_is_damaged_is_told_and_stops_nothing(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"mine" * 500)):
        (tmp_path / name).mkdir()
        (tmp_path / name / older.FILE).write_bytes(content)
    told: list[str] = []
    with Store(tmp_path / NAME) as store:
        older.absorb(store, tmp_path, "w", told.append)
        assert store.count() == (0, 0)
    assert len(told) == 2
    assert all("computed anew" in sentence for sentence in told)
