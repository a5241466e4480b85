"""Flipped bits and edited rows in the file of answers: found by name, or the same result.

Then `store.repair=true` gives the right result.
"""

import random
import re
import shutil
import sqlite3
from pathlib import Path

from scripts.campaign import kills, scene
from scripts.campaign.bench import Bench
from scripts.campaign.engine import Scripted
from scripts.campaign.outcome import RIGHT, SENTENCE, WRONG, Outcome, Verdict, raw, refused

FLIPS, EDITS = 400, 40
COUNT = FLIPS + EDITS
SAMPLE = (0, FLIPS)
IDENTITY = {*range(60, 64), *range(68, 72)}  # of the header: user_version, application_id
prepare = kills.prepare


def run(number: int, bench: Bench) -> tuple[str, Verdict]:
    """Damage a copy, run the same command, then repair."""
    runs = bench.folder / "runs"
    shutil.copytree(bench.shared / "runs", runs)
    path = scene.store(runs)
    said = _flip(path, bench.random) if number < FLIPS else _edit(path, bench.random)
    (reference,) = scene.folders(bench.shared / "runs")
    again = bench.call(*scene.settings(bench.shared, runs), engine=Scripted())
    verdict = _same_or_named(again, runs, reference)
    if verdict.label == SENTENCE:
        repair = scene.settings(bench.shared, runs, "store.repair=true")
        repaired = bench.call(*repair, engine=Scripted())
        mended = _same(repaired, runs, reference)
        if mended is not None and not (_foreign(said) and refused(repaired).label == SENTENCE):
            return said, Verdict(mended.label, f"after store.repair=true: {mended.why}")
    return said, verdict


def _foreign(said: str) -> bool:
    """Whether the file says now that another program or version made it: that is not repaired."""
    place = re.match(r"bit \d of byte (\d+) ", said)
    return "PRAGMA" in said or (place is not None and int(place[1]) in IDENTITY)


def _same_or_named(outcome: Outcome, runs: Path, reference: Path) -> Verdict:
    if outcome.code == 0 or raw(outcome):
        return _same(outcome, runs, reference) or Verdict(RIGHT)
    return refused(outcome, scene.store(runs).name)


def _same(outcome: Outcome, runs: Path, reference: Path) -> Verdict | None:
    bad = raw(outcome)
    if bad is not None:
        return bad
    if outcome.code:
        return Verdict(WRONG, f"refused: {outcome.errors!r:.300}")
    (folder,) = scene.folders(runs)
    return scene.same(folder, reference)


def _flip(path: Path, rng: random.Random) -> str:
    """Flip one bit, now and then in the header, where a file says what it is."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(100 if rng.random() < 0.1 else len(content))
    bit = rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))
    return f"bit {bit} of byte {place} of {len(content)}"


def _edit(path: Path, rng: random.Random) -> str:
    """Change the file as a person with sqlite3 would."""
    db = sqlite3.connect(path)
    keys = [key for (key,) in db.execute("SELECT DISTINCT cell_key FROM responses ORDER BY 1")]
    rows = [row for (row,) in db.execute("SELECT DISTINCT row FROM responses ORDER BY 1")]
    one, other = rng.sample(rows, 2)
    key, second = rng.sample(keys, 2)
    where = f"cell_key = '{key}' AND row = {one}"
    said = rng.choice(STATEMENTS).format(
        where=where, one=one, other=other, key=key, second=second, number=rng.randrange(99)
    )
    try:
        for statement in said.split(";"):
            db.execute(statement)
        db.commit()
    except sqlite3.Error as error:
        db.rollback()
        said = f"{said} (refused by SQLite: {error})"
    db.close()
    return said


STATEMENTS = (
    "UPDATE responses SET text = CASE text WHEN 'A' THEN 'B' ELSE 'A' END WHERE {where}",
    "UPDATE responses SET text = text || '.' WHERE {where}",
    "UPDATE responses SET text = 'A' WHERE cell_key = '{key}'",
    "UPDATE responses SET text = (SELECT text FROM responses WHERE cell_key = '{key}' AND "
    "row = {other}) WHERE {where}",
    "UPDATE responses SET kept_tokens = kept_tokens + 1 WHERE {where}",
    "UPDATE responses SET exposed_tokens = 0 WHERE {where}",
    "UPDATE responses SET exposed_tokens = 1 - exposed_tokens WHERE cell_key = '{key}'",
    "UPDATE responses SET letter_logits = '{{}}' WHERE {where}",
    "UPDATE responses SET letter_logits = 'not json' WHERE {where}",
    "UPDATE responses SET kept_tokens = 'many' WHERE {where}",
    "UPDATE responses SET prompt_tokens = {number} WHERE {where}",
    "UPDATE responses SET text = x'ff00fe' WHERE {where}",
    "UPDATE responses SET row = 100{number} WHERE {where}",
    "UPDATE responses SET row = -1 WHERE row = {one};UPDATE responses SET row = {one} WHERE "
    "row = {other};UPDATE responses SET row = {other} WHERE row = -1",
    "UPDATE responses SET cell_key = 'x' WHERE cell_key = '{key}';UPDATE responses SET "
    "cell_key = '{key}' WHERE cell_key = '{second}';UPDATE responses SET cell_key = '{second}' "
    "WHERE cell_key = 'x'",
    "UPDATE responses SET cell_key = 'ffffffffffffffff' WHERE {where}",
    "DELETE FROM responses WHERE {where}",
    "DELETE FROM responses WHERE row = {one}",
    "DELETE FROM responses WHERE cell_key = '{key}'",
    "DELETE FROM responses",
    "DELETE FROM prompts",
    "UPDATE prompts SET segments = '[]' WHERE row = {one}",
    "UPDATE prompts SET segments = 'x'",
    "UPDATE kept SET shares = x'00'",
    "DELETE FROM kept",
    "DROP TABLE kept",
    "DROP TABLE cells",
    "DROP TABLE responses",
    "DELETE FROM cells",
    "DELETE FROM notes",
    "UPDATE notes SET value = 'x'",
    "UPDATE notes SET value = '{{}}'",
    "CREATE TABLE mine (x)",
    "ALTER TABLE responses ADD COLUMN mine TEXT",
    "ALTER TABLE responses DROP COLUMN prefill_s",
    "ALTER TABLE responses RENAME COLUMN text TO txt",
    "PRAGMA user_version = 0",
    "PRAGMA user_version = 99",
    "PRAGMA application_id = 1",
    "INSERT INTO responses SELECT * FROM responses WHERE 0",
)
