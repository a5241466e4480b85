"""LongBench's samsum ends at the token of a newline, not at a newline inside another token.

The release (THUDM/LongBench pred.py) gives `encode("\\n")[-1]` as a second end of text, bars both
as the first token, and takes the first line behind leading newlines.
"""

import json
import zipfile

import pytest

from harness.scoring.benchmark import Benchmark
from harness.scoring.bridge import Bridge
from harness.settings.config import ModelConfig, ProtocolConfig, TaskConfig
from harness.settings.grid import Cell
from tests.scoring.longbench_data import row
from tests.scoring.scripted_llama import write
from tests.scoring.tasks import own_data, settings

SUMMARY = "A baked bread and will bring B some tomorrow"
CELLS = [Cell("full", "full"), Cell("random", "random", (("seed", 0),), 0.5)]


@pytest.fixture(scope="module")
def samsum(tmp_path_factory):
    with own_data(tmp_path_factory.mktemp("data")) as root:
        path = root / "THUDM" / "LongBench" / "data.zip"
        path.parent.mkdir(parents=True)
        asked = row("samsum", 100) | {"input": "Dialogue: A and B.\nSummary: "}
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("data/samsum.jsonl", json.dumps(asked | {"answers": [SUMMARY]}) + "\n")
        yield Benchmark("samsum", TaskConfig(lmms_task="longbench_samsum", images=False))


def answers(folder, script, messages, generation):
    write(folder, "Summary: ", script)
    model = ModelConfig(str(folder), str(folder), None, False)
    bridge = Bridge(model, ProtocolConfig("replay", "last_token"))
    return bridge.answer(messages, CELLS, generation, ())


@pytest.mark.parametrize(
    ("script", "said", "score"),
    [
        (f"\n\n{SUMMARY}\nDialogue", f"\n\n{SUMMARY}", 1),  # begins with one token "\n\n"
        (f"{SUMMARY}\n\nDialogue\nC", f"{SUMMARY}\n\nDialogue", 1),  # goes on behind such a token
        (f"{SUMMARY}\nDialogue", SUMMARY, 1),  # the token "\n" ends it
        (f"\n{SUMMARY}", "", 0),  # barred as the first token: what remains is silence
    ],
)
def test_samsum_ends_where_the_release_ends(tmp_path, samsum, script, said, score):
    (messages,) = (samsum.task.doc_to_messages(doc) for doc in samsum.task.eval_docs)
    for found in answers(tmp_path, script, messages, samsum.generation):
        assert found.text == said
        assert [judged.score for judged in samsum.judge([found.text])] == [pytest.approx(score)]


def test_a_stop_text_is_looked_for_inside_tokens(tmp_path, samsum):
    """As lmms-eval's tasks use it; with min_new_tokens it is looked for behind the first token."""
    (messages,) = (samsum.task.doc_to_messages(doc) for doc in samsum.task.eval_docs)
    script, ends = f"\n\n{SUMMARY}\nDialogue", {"max_new_tokens": 99, "until": ["\n"]}
    assert {found.text for found in answers(tmp_path, script, messages, ends)} == {""}
    found = answers(tmp_path, script, messages, ends | {"min_new_tokens": 1})
    assert {each.text for each in found} == {f"\n\n{SUMMARY}"}
    assert found[1].exposed_tokens == len(found[1].token_ids) - 1  # all but the newline count


def test_both_editions_of_samsum_name_the_token():
    for name in ("longbench_samsum", "longbench_samsum_e"):
        read = settings(name)["generation_kwargs"]
        assert (read["until"], read["until_tokens"]) == ([], ["\n"])
