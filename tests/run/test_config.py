import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import methods
from harness import sweep
from harness.config import CONF
from tests.run.conftest import Program

# What is typed, and what the sentence must name: the value, then what is allowed.
BAD = [
    ("method=[restkv,foo]", "method=foo", "streaming_llm"),
    ("method=foo", "method=foo", "streaming_llm"),
    ("method=[]", "method=[]", "'method=[restkv]'"),
    ("model=foo", "model=foo", "qwen2_5_vl_7b"),
    ("task=foo", "task=foo", "mmbench_en_dev"),
    ("protocol=foo", "protocol=foo", "replay"),
    ("experiment=foo", "experiment=foo", "smoothing"),
    ("methods.restkv.alhpa=0.5", "methods.restkv.alhpa", "alpha"),
    ("+methods.restkv.alhpa=0.5", "methods.restkv.alhpa", "alpha"),
    ("methods.tova.protect_last=true", "methods.tova.protect_last", "'method=[...]'"),
    ("methods.restkv.alpha=7", "alpha=7", "at most 1"),
    ("methods.restkv.method=foo", "methods.restkv.method=foo", "snapkv"),
    ("+methods.mine.alpha=0.5", "methods.mine", "'method=[mine]'"),
    ("+methods.twin={method: random, seed: 0}", "methods.twin", "leave one out"),
    ("ratios=[0.5,1.0]", "ratios has 1.0", "0.9"),
    ("ratios=[-0.1]", "ratios has -0.1", "0.9"),
    ("ratios=[half]", "ratios has 'half'", "a number"),
    ("ratios=[true]", "ratios has True", "a number"),
    ("ratios=[.nan]", "ratios has", "a number"),
    ("ratios=[]", "ratios=[]", "'ratios=[0.5,0.9]'"),
    ("ratios=null", "ratios=None", "'ratios=[0.5,0.9]'"),
    ("ratios=0.5", "ratios=0.5", "'ratios=[0.5,0.9]'"),
    ("ratios=[0.5", "ratios=[0.5", "'ratios=[0.5,0.9]'"),
    ("budgets=[0]", "budgets has 0", "from 1"),
    ("budgets=[1.5]", "budgets has 1.5", "whole number"),
    ("budgets=[]", "budgets=[]", "from 1"),
    ("limit=0", "limit=0", "from 1"),
    ("limit=few", "'few'", "Integer"),
    ("seed=-1", "seed=-1", "from 0"),
    ("device=gpu", "device=gpu", "cuda"),
    ("dtype=int8", "dtype=int8", "bfloat16"),
    ("protocol.name=foo", "protocol.name=foo", "replay"),
    ("protocol.tail=foo", "protocol.tail=foo", "suffix"),
    ("wandb.mode=foo", "wandb.mode=foo", "offline"),
    ("engine.cells_per_batch=0", "engine.cells_per_batch=0", "auto"),
    ("engine.threads=many", "engine.threads=many", "auto"),
    ("run.name=a/b", "run.name='a/b'", "letters"),
    ("task.scorer=foo", "task.scorer=foo", "mmbench"),
    ("task.overrides.dataset_path=/nowhere", "/nowhere", "dataset_path"),
    ("task.lmms_task=foo", "task.lmms_task=foo", "lmms-eval tasks"),
    ("+task.generation.num_beams=2", "num_beams=2", "1"),
    ("model=llama_3_1_8b", "llama_3_1_8b", "image-text"),
    ("model.pretrained=/nowhere", "/nowhere", "folder"),
    ("model.images=maybe", "'maybe'", "bool"),
    ("limitt=3", "limitt", "--help"),
    ("+speed=3", "speed", "seed"),
    ("+model.speed=3", "model.speed", "pretrained"),
    ("run.name=${nothing}", "nothing", "--help"),
]


@pytest.mark.parametrize(("typed", "named", "allowed"), BAD, ids=[bad[0] for bad in BAD])
def test_bad_input_ends_in_one_sentence(
    call: Program,
    overrides: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    named: str,
    allowed: str,
) -> None:
    earlier = tmp_path / "run" / "summary.md"
    earlier.parent.mkdir()
    earlier.write_text("earlier")
    base = [o for o in overrides if o.split("=")[0] != typed.split("=")[0]]
    if typed == "model=llama_3_1_8b":
        base = [o for o in base if not o.startswith("model.")]
    assert call(*base, typed) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert named in told
    assert allowed in told
    assert earlier.read_text() == "earlier"
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_hub_id_without_network_is_refused_before_anything_heavy_is_imported() -> None:
    program = (
        "import sys; from harness.__main__ import main; code = main(); "
        "heavy = {'torch', 'transformers', 'lmms_eval', 'wandb', 'pandas'} & set(sys.modules); "
        "sys.exit(code if not heavy else str(heavy))"
    )
    command = [sys.executable, "-c", program, "model=qwen2_5_vl_7b", "run.dir=/nowhere"]
    offline = {"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere"}
    done = subprocess.run(command, cwd=CONF.parent, env=offline, capture_output=True, text=True)
    assert re.fullmatch(r"error: .*Qwen/Qwen2\.5-VL-7B-Instruct.*\n", done.stderr)
    assert done.returncode == 2


def test_help_names_every_group_and_setting(
    call: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        call("--help")
    assert done.value.code == 0
    text = capsys.readouterr().out
    for word in ("restkv_relative", "llava_onevision_7b", "mmbench_en_dev", "replay", "smoothing"):
        assert word in text
    for word in ("ratios", "budgets", "limit", "methods.<label>", "run.name", "wandb.mode"):
        assert word in text


@pytest.mark.parametrize("path", sorted((CONF / "method").glob("*.yaml")), ids=lambda p: p.stem)
def test_each_variant_spells_out_the_parameters_and_defaults_of_its_method(path: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    ablation = node.pop("defaults", None) is not None  # of restkv
    known = methods.parameters(node.pop("method", "restkv"))
    spelled = {k: known[k] if v == "${seed}" else v for k, v in node.items()}
    if ablation:
        assert spelled.keys() <= known.keys()
        assert all(known[k] != v for k, v in spelled.items())  # it names what it changes
    else:
        assert spelled == known


@pytest.mark.parametrize("choice", ["experiment=smoothing", "experiment=paper_protocol"])
def test_the_experiments_are_sound(
    call: Program, overrides: list[str], monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    jobs: list[sweep.Job] = []
    monkeypatch.setattr(sweep, "run", lambda config: jobs.append(sweep.validate(config)))
    fixed = [o for o in overrides if not o.startswith(("method=", "ratios=", "run.name="))]
    assert call(*fixed, choice) == 0
    name = choice.partition("=")[2]
    assert jobs[0].folder.name.startswith(name)
    assert "restkv" in {cell.label for cell in jobs[0].cells}
    assert jobs[0].config.protocol.name == ("paper" if "paper" in name else "replay")


def test_the_multirun_flag_may_stand_anywhere(
    call: Program, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(sweep, "run", lambda config: seeds.append(config.seed))
    assert call(*overrides, "-m", "seed=0,1", "limit=1") == 0
    assert seeds == [0, 1]
