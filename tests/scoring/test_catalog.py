import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lmms_eval
import pytest
from lmms_eval.tasks import TaskManager

from harness.errors import UserError
from harness.scoring import catalog

THEIRS = Path(lmms_eval.__file__).parent / "tasks"
# Folders with quoted keys, comments, a byte order mark, names and tags from an included template,
# old groups on a task, groups in groups, Python classes, and one name in two files.
FOLDERS = (
    "arc", "charxiv", "gpqa", "illusionvqa", "mmbench", "mmlu", "mmmu", "mmstar", "openai_math",
    "pope", "refcoco", "scienceqa", "step2_audio_paralinguistic", "vstar_bench", "vstat", "jmmmu",
)  # fmt: skip
KINDS = {"python_task": "class"}


@pytest.fixture(scope="module")
def theirs() -> TaskManager:
    folders = [str(THEIRS / folder) for folder in FOLDERS]
    return TaskManager(include_path=folders, include_defaults=False)


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in place of both this project's tasks and lmms-eval's."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(catalog, "OURS", tmp_path / "ours")
    monkeypatch.setattr(catalog, "theirs", lambda: tmp_path / "theirs")
    catalog._index.cache_clear()
    catalog._keys.cache_clear()
    yield tmp_path
    catalog._index.cache_clear()
    catalog._keys.cache_clear()


def test_names_kinds_and_files_are_those_of_lmms_evals_own_index(theirs: TaskManager) -> None:
    assert len(theirs.task_index) > 150
    for name, entry in theirs.task_index.items():
        assert catalog.kind(name) == KINDS.get(entry["type"], entry["type"]), name
        path = None if entry["type"] == "tag" else Path(entry["yaml_path"])
        assert catalog.find(name) == path, name
        if entry["type"] == "tag":
            assert set(entry["task"]) <= set(catalog.members(name)), name


def test_groups_in_groups_and_tags_are_flattened() -> None:
    assert catalog.members("mmbench_en") == ["mmbench_en_dev", "mmbench_en_test"]
    assert catalog.members("pope_full") == ["pope_adv", "pope_pop", "pope_random"]
    assert catalog.members("pope") == ["pope"]
    inner = catalog.members("mmlu_generative")
    assert len(inner) == 57
    assert all(catalog.kind(name) == "task" for name in inner)


def test_a_name_that_no_file_has_is_told_with_similar_ones() -> None:
    assert catalog.find("mmbnch_en_dev") is None
    assert catalog.kind("mmbnch_en_dev") is None
    assert catalog.names_like("mmbnch_en_dev")[0] == "mmbench_en_dev"
    assert catalog.names_like("docvqa")[0] == "docvqa"
    with pytest.raises(UserError, match=r"task=mmbnch_en_dev is not a task.*mmbench_en_dev"):
        catalog.members("mmbnch_en_dev")


def test_the_whole_index_takes_a_moment_without_lmms_eval() -> None:
    code = "from harness.scoring import catalog; import sys; print(catalog.find('mmstar')); "
    code += "print('lmms_eval.tasks' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(THEIRS / "mmstar" / "mmstar.yaml"), "False"]
    catalog._index.cache_clear()
    catalog._keys.cache_clear()
    start = time.process_time()
    catalog.find("mmstar")
    assert time.process_time() - start < 3  # reading every task of lmms-eval takes eight


@pytest.mark.parametrize(
    "line",
    [
        "task: mine", 'task: "mine"', "'task': mine", "task: mine  # why", "task:   mine\t",
        "task: 'mine' # 'x'",
    ],
)  # fmt: skip
def test_a_name_is_read_however_it_is_written(ours: Path, line: str) -> None:
    (ours / "theirs" / "a.yaml").write_text(f"# task: other\n{line}\nx:\n  task: inner\n")
    assert catalog.find("mine") == ours / "theirs" / "a.yaml"
    assert catalog.find("other") is catalog.find("inner") is None


@pytest.mark.parametrize(
    "tags", ["tag: t", "tag: [s, t]", "tag:\n  - s\n  # no\n  - t", "tag:\n- t"]
)
def test_tags_gather_tasks_however_they_are_written(ours: Path, tags: str) -> None:
    for name in "ab":
        (ours / "theirs" / f"{name}.yaml").write_text(f"task: {name}\n{tags}\noutput_type: x\n")
    assert catalog.kind("t") == "tag"
    assert catalog.find("t") is None
    assert catalog.members("t") == ["a", "b"]


def test_this_projects_files_come_first_and_members_are_listed_once(ours: Path) -> None:
    for root in ("ours", "theirs"):
        (ours / root / "same.yaml").write_text("task: same\n")
    (ours / "ours" / "g.yaml").write_text(
        "group: g\ntask:\n- same\n- task: other\n  num_fewshot: 0\n- group: in\n  task: [same, h]\n"
    )
    (ours / "theirs" / "other.yaml").write_text("task: other\nf: !function utils.f\n")
    (ours / "theirs" / "h.yaml").write_text("group: h\ntask: [other, g]\n")  # a circle
    assert catalog.find("same") == ours / "ours" / "same.yaml"
    assert catalog.find("g") == ours / "ours" / "g.yaml"
    assert catalog.members("g") == ["same", "other"]


def test_a_group_that_lists_what_is_not_there_is_refused(ours: Path) -> None:
    (ours / "theirs" / "g.yaml").write_text("group: g\ntask:\n  - gone\n")
    with pytest.raises(UserError, match="task=gone is not"):
        catalog.members("g")
