"""Several tasks in one run, and how names become tasks."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from harness.errors import UserError
from harness.run import sweep, tasks
from harness.settings.config import EMBEDDED, Config, ModelConfig, TaskConfig
from tests.run.conftest import Program
from tests.run.fakes import FakeEngine, write_mmbench


def config(**chosen: TaskConfig) -> Config:
    return Config(tasks=chosen)


def test_a_group_becomes_its_members_under_their_own_names() -> None:
    found = tasks.expand(config(some=TaskConfig("longbench_16")))
    assert len(found) == 16
    assert {task.group for task in found} == {"some"}
    assert all(task.name == task.config.lmms_task for task in found)


def test_a_single_task_keeps_the_name_it_was_chosen_by() -> None:
    (found,) = tasks.expand(config(mine=TaskConfig("longbench_qasper")))
    assert (found.name, found.group, found.config.lmms_task) == ("mine", None, "longbench_qasper")


def test_every_length_of_generated_data_is_a_task_and_a_group() -> None:
    data = {"generator": "ruler", "lengths": [4096, 8192], "samples": 2}
    found = tasks.expand(config(ruler=TaskConfig("ruler", data=data)))
    assert len(found) == 2 * 13
    assert {task.group for task in found} == {"ruler_4096", "ruler_8192"}
    last = found[-1]
    assert last.name == f"{last.config.lmms_task}_8192"
    assert last.data == {**data, "task": last.config.lmms_task, "length": 8192}


def test_the_lengths_of_one_task_are_one_group() -> None:
    data = {"generator": "needle", "lengths": [1024, 2048]}
    found = tasks.expand(config(grid=TaskConfig("needle", data=data)))
    assert [(task.name, task.group) for task in found] == [
        ("grid_1024", "grid"),
        ("grid_2048", "grid"),
    ]


@pytest.mark.parametrize("lengths", [[], 4096, ["a"], [0], [True], "4096"])
def test_lengths_that_are_none_are_refused(lengths: object) -> None:
    data = {"generator": "ruler", "lengths": lengths}
    with pytest.raises(UserError, match=r"tasks\.r\.data\.lengths="):
        tasks.expand(config(r=TaskConfig("ruler", data=data)))


def test_a_task_that_two_groups_hold_is_refused() -> None:
    with pytest.raises(UserError, match="is asked twice"):
        tasks.expand(config(a=TaskConfig("longbench"), b=TaskConfig("longbench_16")))


def test_an_unknown_name_is_refused_with_names_like_it() -> None:
    with pytest.raises(UserError, match=r"lmms_task=longbench_qaspr .*longbench_qasper"):
        tasks.expand(config(a=TaskConfig("longbench_qaspr")))


def test_extraction_is_for_every_task_that_sets_none() -> None:
    chosen = config(a=TaskConfig("mmbench_en_dev_static"), b=TaskConfig("mmstar"))
    chosen.tasks["b"].extraction = "lmms_eval"
    chosen.extraction = "strict"
    assert [task.config.extraction for task in tasks.expand(chosen)] == ["strict", "lmms_eval"]


@pytest.fixture
def two(data: Path, overrides: list[str]) -> list[str]:
    """A run of the same questions as two tasks, the second with another prompt length."""
    base = [o for o in overrides if not o.startswith("tasks.")]
    return [
        *base,
        "task=[mmbench_mini,mmbench_en_dev]",
        f"tasks.mmbench_mini.overrides.dataset_path={data}",
        f"tasks.mmbench_en_dev.overrides.dataset_path={data}",
    ]


def test_a_run_of_two_tasks_holds_a_table_of_each(
    call: Program, engine: FakeEngine, two: list[str], tmp_path: Path, capsys
) -> None:
    assert call(*two) == 0
    frame = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert list(frame["task"].unique()) == ["mmbench_mini", "mmbench_en_dev"]
    counts = frame.groupby("task")["cell_key"].nunique()
    assert counts.tolist() == [4, 4]
    assert frame["cell_key"].nunique() == 8
    text = (tmp_path / "run" / "summary.md").read_text()
    assert "## All tasks" in text
    assert text.count("\n## tiny_vlm on ") == 2
    out = capsys.readouterr().out
    assert "mmbench_en_dev: 4 cells x 27 rows, 27 to compute" in out


@pytest.mark.usefixtures("no_report")
def test_a_second_task_leaves_the_answers_of_the_first(
    call: Program, engine: FakeEngine, overrides: list[str], two: list[str], tmp_path: Path
) -> None:
    assert call(*overrides, "limit=3") == 0
    first = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    engine.calls.clear()
    assert call(*two, "limit=3", "run.name=both") == 0
    assert len(engine.calls) == 2 * first["row"].nunique()  # the second task alone
    both = pd.read_parquet(tmp_path / "both" / "samples.parquet")
    again = both[both["task"] == "mmbench_mini"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, first)


def test_strict_reading_needs_no_new_answers(
    call: Program,
    engine: FakeEngine,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = "Absolutely not"  # the permissive reading finds its first letter, the strict one nothing
    monkeypatch.setattr(engine, "_say", lambda cell, text, letters: odd)
    assert call(*overrides) == 0
    before = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    engine.calls.clear()
    assert call(*overrides, "extraction=strict", "run.name=strict") == 0
    assert not engine.calls
    after = pd.read_parquet(tmp_path / "strict" / "samples.parquet")
    assert after["text"].equals(before["text"])
    assert after["score"].astype("Float64").equals(before["score_other"])
    assert after["score_other"].equals(before["score"].astype("Float64"))
    assert before["score"].mean() > after["score"].mean() == 0
    assert after["unparsed"].all()
    text = (tmp_path / "strict" / "summary.md").read_text()
    assert "Answers are read by VLMEvalKit's exact matching" in text
    assert f"{100 * before['score'].mean():.1f} % of them score otherwise" in text


def test_a_text_model_is_refused_an_image_task_by_what_the_task_shows(
    call: Program, engine: FakeEngine, overrides: list[str], capsys
) -> None:
    unsaid = "tasks.mmbench_mini.images=null"
    assert call(*overrides, unsaid, "model.images=false") == 2
    told = capsys.readouterr().err
    assert "task=mmbench_mini shows images and model=tiny_vlm reads text only" in told
    assert not engine.calls


def text_model(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"1")
    return f"model.pretrained={folder}"


@pytest.mark.usefixtures("no_report")
def test_whether_it_takes_images_is_read_from_the_model(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys
) -> None:
    own = [text_model(tmp_path / "text"), "model.name=mine"]
    assert call(*overrides, *own) == 2
    assert "task=mmbench_mini shows images and model=mine reads text" in capsys.readouterr().err
    assert call(*overrides, *own, "model.images=true") == 2
    assert "model=mine takes no images although its settings say" in capsys.readouterr().err
    base = [one for one in overrides if not one.startswith("tasks.")]
    assert not engine.calls
    assert call(*base, *own, "task=longbench_mini", "limit=2") == 0
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").model.images is False
    assert engine.calls


def test_data_settings_of_a_task_without_a_generator_are_one_sentence(
    call: Program, capsys
) -> None:
    typed = "tasks.longbench.data.sources.longbench=/tmp"
    assert call("task=longbench", typed) == 2
    told = capsys.readouterr().err
    assert f"error: {typed} is for data drawn here, and task=longbench has none: set EVICT" in told


def test_every_task_file_names_what_there_is() -> None:
    from harness.settings.config import CONF, register

    register()
    for path in sorted((CONF / "task").glob("*.yaml")):
        lines = path.read_text().splitlines()
        assert lines[0] == f"# @package tasks.{path.stem}"
        assert lines[1].startswith("# ")
        node = OmegaConf.merge(OmegaConf.structured(TaskConfig), OmegaConf.load(path))
        chosen = Config(model=ModelConfig(), tasks={path.stem: OmegaConf.to_object(node)})
        assert tasks.expand(chosen), path.stem


@pytest.mark.usefixtures("no_report")
def test_a_task_can_leave_the_blank_image_out(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    assert call(*overrides, "limit=1", "tasks.mmbench_mini.blank_image=false") == 0
    frame = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert set(frame["control"]) == {"none"}


def test_secret_answers_become_files_to_hand_in(
    call: Program, engine: FakeEngine, data: Path, overrides: list[str], tmp_path: Path
) -> None:
    from datasets import load_dataset

    rows = load_dataset(str(data), "en", split="dev").map(lambda row: {"answer": None})
    folder = tmp_path / "secret"
    (folder / "en").mkdir(parents=True)
    rows.to_parquet(str(folder / "en" / "test-00000-of-00001.parquet"))
    (folder / "README.md").write_text(
        (data / "README.md")
        .read_text()
        .replace("split: dev", "split: test")
        .replace("dev-", "test-")
    )
    base = [o for o in overrides if not o.startswith(("tasks.", "ratios"))]
    chosen = f"tasks.mmbench_en_test.overrides.dataset_path={folder}"
    assert call(*base, "task=mmbench_en_test", chosen, "ratios=[0,0.9]") == 0
    files = {p.name for p in (tmp_path / "run" / "submissions" / "mmbench_en_test").iterdir()}
    assert {"full.xlsx", "blank_image.xlsx", "random-0.xlsx", "restkv-0.9.xlsx"} <= files
    handed_in = pd.read_excel(
        tmp_path / "run" / "submissions" / "mmbench_en_test" / "restkv-0.9.xlsx"
    )
    frame = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    cell = frame[frame["method"].eq("restkv") & frame["ratio"].eq(0.9)]
    assert handed_in["index"].tolist() == cell["index"].tolist()
    assert handed_in["prediction"].fillna("").tolist() == cell["text"].tolist()
    assert frame["score"].isna().all()
    text = (tmp_path / "run" / "summary.md").read_text()
    assert "secret, so no accuracy is claimed" in text
    assert "was not run" not in text


def test_the_caveat_is_said_of_the_embedded_model_alone(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    # Weights of another folder under the settings of the embedded model.
    assert call(*overrides, "limit=1") == 0
    assert "stand-ins" not in (tmp_path / "run" / "summary.md").read_text()
    copy = shutil.copytree(EMBEDDED / "tiny_vlm", tmp_path / "copy")
    assert call(*overrides, f"model.pretrained={copy}", "run.name=again", "limit=1") == 0
    assert "stand-ins" in (tmp_path / "again" / "summary.md").read_text()


def test_texts_longer_than_the_model_takes_are_refused_before_they_are_made(
    call: Program, capsys, tmp_path: Path
) -> None:
    lengths = "tasks.ruler_vt.data.lengths=[4096]"
    assert call("task=ruler_vt", lengths, f"run.dir={tmp_path}", "wandb.mode=disabled") == 2
    told = capsys.readouterr().err
    assert "task=ruler_vt_4096" in told or "task=ruler_vt asks" in told
    assert "takes 2,048" in told
    assert "tasks.ruler_vt.data.lengths" in told


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("depths=50", "is not a grid"),
        ("seed=abc", "is not a seed"),
        ("seed=null", "is not a seed"),
        ("needles=2.0", "is not from 1"),
        ("sources=/tmp/x", "names no source"),
        ("+speed=3", "is not an option"),
        ("samples=0", "is not a count"),
    ],
)
def test_options_of_generated_data_are_checked(
    call: Program, capsys, tmp_path: Path, monkeypatch, option: str, told: str
) -> None:
    monkeypatch.setenv("EVICTBENCH_CACHE", str(tmp_path / "cache"))
    plus, name = ("+", option[1:]) if option.startswith("+") else ("", option)
    base = ["task=needle", "tasks.needle.data.haystack=noise", "tasks.needle.data.lengths=[512]"]
    run = [f"run.dir={tmp_path}", "wandb.mode=disabled"]
    assert call(*base, *run, f"{plus}tasks.needle.data.{name}") == 2
    assert told in capsys.readouterr().err


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    "changed",
    [
        "data",
        "model.max_length=2000",
        pytest.param("model.chat_template", marks=pytest.mark.slow),
        pytest.param("model.tile=64", marks=pytest.mark.slow),
        pytest.param("pixels", marks=pytest.mark.slow),
        pytest.param("model.max_prompt=1000", marks=pytest.mark.slow),
    ],
)
def test_what_changes_a_prompt_shares_no_answers(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, changed, monkeypatch
) -> None:
    asked = overrides if changed == "data" else [*overrides, "limit=1"]
    assert call(*asked) == 0
    rows = len(engine.calls) // 2
    engine.calls.clear()
    other = changed
    if changed == "data":
        other = f"tasks.mmbench_mini.overrides.dataset_path={write_mmbench(tmp_path / 'more', 10)}"
        rows += 2  # one more question, of two options
    if changed == "model.chat_template":
        (tmp_path / "form.jinja").write_text("{{ messages }}")
        other = f"model.chat_template={tmp_path / 'form.jinja'}"
    if changed == "pixels":
        there = sweep.find_spec("torchvision") is not None
        monkeypatch.setattr(sweep, "find_spec", lambda name: None if there else object())
        other = "seed=0"
    assert call(*asked, other, "run.name=other") == 0
    assert len(engine.calls) == 2 * rows
