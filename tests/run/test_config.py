import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.run import sweep
from harness.settings.config import CONF
from tests.run.conftest import Program

# What is typed, and what the sentence must name: the value, then what is allowed.
BAD = [
    ("method=[restkv,foo]", "method=foo", "streaming_llm"),
    ("method=foo", "method=foo", "streaming_llm"),
    ("method=[]", "method=[]", "'method=[restkv]'"),
    ("model=foo", "model=foo", "qwen2_5_vl_7b"),
    ("task=foo", "task=foo", "mmbench_en_dev"),
    ("protocol=foo", "protocol=foo", "replay"),
    ("+tasks.mmbench_mini.generation.temperature=nan", "generation.temperature=nan", "no number"),
    ("budgets={a:8}", "budgets", "from 1"),
    ("~ratios", "ratios", "'ratios=[0.5,0.9]'"),
    ("method=[[restkv]]", "method=[[restkv]]", "method=[a,b]"),
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
    ("budget=16", "budget=16 is not a rule", "'budgets=[16,64]'"),
    ("budget=[16,64]", "budget=[16, 64] is not a rule", "'budgets=[16,64]'"),
    ("budget=foo", "budget='foo'", "uniform, pyramid, adaptive, global"),
    ("budget=global", "budget='global'", "not in one unit"),
    ("decode=foo", "decode='foo'", "hold, grow"),
    ("buffer=64", "buffer=64 does nothing", "decode=buffer"),
    ("+methods.mine={method: tova, buffer: 64}", "buffer=64", "decode=buffer with it"),
    ("protect=foo", "protect='foo'", "none, text"),
    ("window_anchor=foo", "window_anchor='foo'", "end, question"),
    ("positions=cache", "positions=cache", "of streaming_llm, lacache, finch."),
    ("limit=0", "limit=0", "from 1"),
    ("limit=few", "'few'", "Integer"),
    ("seed=-1", "seed=-1", "from 0"),
    ("device=gpu", "device=gpu", "cuda"),
    ("device=cuda:77", "cuda:77", "cpu"),
    ("dtype=int8", "dtype=int8", "bfloat16"),
    ("protocol.name=foo", "protocol.name=foo", "replay"),
    ("protocol.tail=foo", "protocol.tail=foo", "suffix"),
    ("wandb.mode=foo", "wandb.mode=foo", "offline"),
    ("engine.cells_per_batch=0", "engine.cells_per_batch=0", "auto"),
    ("engine.threads=many", "engine.threads=many", "auto"),
    ("engine.kernels=cuda", "engine.kernels=cuda", "auto, triton, torch"),
    ("engine.cuda_graphs=maybe", "engine.cuda_graphs=maybe", "auto, true or false"),
    ("run.name=a/b", "run.name='a/b'", "letters"),
    ("task=[]", "task=[]", "mmbench_mini"),
    ("task=mmbench_mni", "task=mmbench_mni", "task or group of lmms-eval"),
    ("tasks.mmbench_mini.scorer=foo", "tasks.mmbench_mini.scorer=foo", "mmbench"),
    ("tasks.mmbench_mini.overrides.dataset_path=/nowhere", "/nowhere", "dataset_path"),
    ("tasks.mmbench_mini.lmms_task=mmbench_foo", "lmms_task=mmbench_foo", "mmbench_en"),
    ("tasks.mmbench_mini.extraction=foo", "extraction=foo", "strict"),
    ("+tasks.mmbench_mini.generation.num_beams=2", "num_beams=2", "1"),
    ("tasks.mmbench_mini.overrides.speed=2", "speed", "YAML"),
    ("tasks.mmbench_mini.overrides.process_docs=nope", "process_docs='nope'", "function"),
    ("--nope", "unrecognized arguments: --nope", "--help"),
    ("tasks='${seed}'", "tasks=0 is no group", "leave it out"),
    ("task=null", "task=null is not there", "mmbench_mini"),
    ("tasks.mmbench_mini.overrides.dataset_kwargs=3", "dataset_kwargs=3", "a mapping"),
    ("ratios=[\uff10.\uff15]", "cannot be read: write", "lists in quotes"),
    ("tasks.mmbench_mini.generation.num_beams=2", "num_beams=2", "1"),
    ("+tasks.mmbench_mini.speed=2", "tasks.mmbench_mini.speed", "lmms_task"),
    ("extraction=foo", "extraction=foo", "strict"),
    ("model.max_length=1", "model.max_length=1", "more tokens"),
    ("model.tile=0", "model.tile=0", "whole number from 1"),
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
    if typed.startswith("budgets="):
        base.remove("ratios=[0.9]")
    if typed.startswith("task="):
        base = [o for o in base if not o.startswith("tasks.")]
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


def test_the_multirun_flag_may_stand_anywhere(
    call: Program, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(sweep, "run", lambda config: seeds.append(config.seed))
    assert call(*overrides, "-m", "seed=0,1", "limit=1") == 0
    assert seeds == [0, 1]
