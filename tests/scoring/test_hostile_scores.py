"""Every task of this project scores whatever a model says, between 0 and 1."""

import math

import pytest

from tests.run.test_hostile_answers import HOSTILE
from tests.scoring.longbench_data import CASES, write_longbench
from tests.scoring.tasks import build, own_data, score

ODD = (
    *HOSTILE,
    "\u00b2",
    "\u0663",
    "1" * 5000,
    "1e999",
    "-0",
    "paragraph " + "7" * 5000,
    "\u6bb5\u843d\u4e5d",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    with own_data(tmp_path_factory.mktemp("data")) as root:
        yield write_longbench(root)


@pytest.mark.parametrize("name", CASES)
def test_longbench_scores_any_answer(archive, name: str) -> None:
    task = build(f"longbench_{name}")
    document = next(iter(task.eval_docs_no_media))
    for text in ODD:
        for value in score(task, document, text[:3000]).values():
            assert 0 <= value <= 1
            assert math.isfinite(value)
