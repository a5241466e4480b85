import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import methods
from harness.errors import UserError
from harness.run import sweep, validate
from harness.run.validate import Job
from harness.settings.config import CONF, SWEEP_WIDE
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
    ("budget=foo", "budget='foo'", "uniform, pyramid, adaptive"),
    ("decode=foo", "decode='foo'", "hold, grow"),
    ("protect=foo", "protect='foo'", "none, text"),
    ("window_anchor=foo", "window_anchor='foo'", "end, question"),
    ("positions=cache", "positions=cache", "of streaming_llm, lacache."),
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
        base.remove("ratios=[0.5,0.9]")
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


@pytest.fixture
def compose(
    call: Program, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Job]:
    """The validated job of a command line; what it gives replaces what `overrides` gives."""

    def job(*typed: str) -> Job:
        found: list[Job] = []
        monkeypatch.setattr(sweep, "run", lambda config: found.append(sweep.validate(config)))
        names = {one.split("=")[0] for one in typed}
        if "experiment" in names:
            names |= {"method", "ratios", "run.name"}
        assert call(*[o for o in overrides if o.split("=")[0] not in names], *typed) == 0
        return found[0]

    return job


def parameters_of(job: Job) -> dict[str, dict[str, object]]:
    return {cell.label: dict(cell.params) for cell in job.cells(blank=True) if cell.evicts}


CHOSEN = "method=[random,streaming_llm,snapkv,h2o,tova,restkv_mean]"
WIDE = {
    "decode": ("grow", {"streaming_llm", "h2o", "tova", "random"}),
    "budget": ("pyramid", {"random", "snapkv", "h2o", "tova", "restkv_mean"}),
    "positions": ("cache", {"streaming_llm"}),
    "protect": ("text", {"random", "snapkv", "h2o", "tova", "restkv_mean"}),
    "window_anchor": ("question", {"snapkv", "restkv_mean"}),
}


@pytest.mark.parametrize("name", SWEEP_WIDE)
def test_a_sweep_wide_value_replaces_the_parameter_in_every_method_that_has_it(
    compose: Callable[..., Job], name: str
) -> None:
    value, having = WIDE[name]
    own = f"methods.{max(having)}.{name}={methods.parameters(max(having))[name]}"
    usual = parameters_of(compose(CHOSEN))
    for typed in ([f"{name}={value}"], [f"{name}={value}", own]):  # a label's own value gives way
        replaced = parameters_of(compose(CHOSEN, *typed))
        assert replaced == {
            label: params | ({name: value} if label in having else {})
            for label, params in usual.items()
        }
    assert parameters_of(compose(CHOSEN, f"{name}=null")) == usual


def test_sweep_wide_values_go_together(
    compose: Callable[..., Job],
) -> None:
    both = parameters_of(compose(CHOSEN, "budget=pyramid", "protect=text"))["h2o"]
    assert (both["budget"], both["protect"], both["decode"]) == ("pyramid", "text", "hold")


def test_a_window_on_the_question_needs_a_protocol_that_has_read_it(
    call: Program, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["method=[snapkv]", "window_anchor=question", "protocol=context"]
    assert call(*[o for o in overrides if not o.startswith("method=")], *typed) == 2
    told = capsys.readouterr().err
    assert "methods.snapkv.window_anchor=question" in told
    assert "protocol=context reads after" in told
    assert told.count("\n") == 1


def test_what_a_label_sets_itself_stands_and_is_told(compose: Callable[..., Job]) -> None:
    typed = ("budget=adaptive", "methods.tova.budget=pyramid", "methods.h2o.budget=uniform")
    job = compose("method=[snapkv,snapkv_pyramid,tova,h2o,lacache]", *typed)
    rules = {label: params.get("budget") for label, params in parameters_of(job).items()}
    assert rules == {
        "snapkv": "adaptive",
        "snapkv_pyramid": "pyramid",
        "tova": "pyramid",
        "h2o": "adaptive",  # what a label repeats of its method's default is no value of its own
        "lacache": None,
    }
    assert job.told == ["budget=adaptive does not apply to snapkv_pyramid, tova, lacache."]
    assert compose("method=[snapkv,h2o]", "budget=adaptive").told == []
    stored = {label: dict(node) for label, node in job.config.methods.items()}
    assert {label: node.get("budget") for label, node in stored.items()} == rules


def test_a_value_that_no_label_takes_is_refused(
    call: Program, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["method=[snapkv_pyramid]", "budget=adaptive"]
    assert call(*[o for o in overrides if not o.startswith("method=")], *typed) == 2
    told = capsys.readouterr().err
    assert "budget=adaptive applies to none of the chosen methods" in told
    assert told.count("\n") == 1


def test_labels_that_a_sweep_wide_value_makes_equal_are_refused(
    call: Program, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["method=[snapkv,snapkv_pyramid]", "budget=pyramid"]
    assert call(*[o for o in overrides if not o.startswith("method=")], *typed) == 2
    told = capsys.readouterr().err
    assert "methods.snapkv and methods.snapkv_pyramid are the same method" in told
    assert "(budget=pyramid given)" in told
    assert told.count("\n") == 1


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
    for name in SWEEP_WIDE:  # a line of its own, with its values
        assert re.search(rf"^ +{name}  +\S.*{WIDE[name][0]}", text, re.MULTILINE)


METHOD_FILES = sorted((CONF / "method").glob("*.yaml"))


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda p: p.stem)
def test_each_variant_spells_out_the_parameters_and_defaults_of_its_method(path: Path) -> None:
    assert path.read_text().startswith(f"# @package methods.{path.stem}\n# ")
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    base = node.pop("defaults", [None])[0]
    if base is None:
        assert node.pop("method") == path.stem
        known = methods.parameters(path.stem)
        assert {k: known[k] if v == "${seed}" else v for k, v in node.items()} == known
    else:
        known = methods.parameters(base.removesuffix("@_here_"))
        assert node.keys() <= known.keys()
        assert all(known[k] != v for k, v in node.items())  # it names what it changes


def test_all_variants_compose_to_what_their_files_say(compose: Callable[..., Job]) -> None:
    nodes = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in METHOD_FILES}
    bases = {n: node.get("defaults", [n])[0].partition("@")[0] for n, node in nodes.items()}
    job = compose(f"method=[{','.join(nodes)}]", "seed=3")
    expected = {
        label: methods.parameters(bases[label])
        | {k: 3 if k == "seed" else v for k, v in node.items() if k in methods.parameters(base)}
        for label, node in nodes.items()
        if (base := bases[label]) != "full"
    }
    assert parameters_of(job) == expected
    assert {cell.label: cell.method for cell in job.cells(blank=True) if cell.evicts} == {
        label: bases[label] for label in expected
    }


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "experiment").glob("*.yaml")])
def test_the_experiments_are_sound(compose: Callable[..., Job], name: str) -> None:
    job = compose(f"experiment={name}")
    assert job.folder.name.startswith(f"{name}-tiny_vlm-mmbench_mini-")
    assert job.config.protocol.name == ("paper" if name == "paper_protocol" else "replay")
    assert len(parameters_of(job)) >= 3


@pytest.mark.parametrize(
    ("experiment", "parameter", "values", "compared"),
    [
        ("budgets", "budget", {"uniform", "pyramid", "adaptive"}, {"snapkv", "restkv"}),
        ("decoding", "decode", {"hold", "grow"}, {"h2o", "tova", "streaming_llm", "lacache"}),
    ],
)
def test_an_experiment_varies_one_parameter_of_each_method(
    compose: Callable[..., Job],
    experiment: str,
    parameter: str,
    values: set[str],
    compared: set[str],
) -> None:
    found: dict[str, list[dict[str, object]]] = {}
    job = compose(f"experiment={experiment}")
    for cell in job.cells(blank=True):
        if cell.evicts and cell.ratio == 0.9:
            found.setdefault(cell.method, []).append(dict(cell.params))
    del found["random"]  # the control
    assert found.keys() == compared
    for method, cells in found.items():
        assert sorted(str(params.pop(parameter)) for params in cells) == sorted(values)
        usual = methods.parameters(method)
        usual.pop(parameter)
        assert all(params == usual for params in cells)


def test_the_multirun_flag_may_stand_anywhere(
    call: Program, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(sweep, "run", lambda config: seeds.append(config.seed))
    assert call(*overrides, "-m", "seed=0,1", "limit=1") == 0
    assert seeds == [0, 1]


@pytest.mark.parametrize(
    ("torch", "vision", "said"),
    [("2.13.0+cpu", "0.28.0", True), ("2.13.0+cpu", "0.28.0+cpu", False),
     ("2.13.0", "0.28.0", False), ("2.13.0+cu130", "0.28.0+cu130", False),
     ("2.13.0+cpu", None, False)],
)  # fmt: skip
def test_a_torchvision_for_another_torch_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, torch: str, vision: str | None, said: bool
) -> None:
    def found(package: str) -> str:
        if package == "torchvision" and vision is None:
            raise validate.PackageNotFoundError(package)
        return torch if package == "torch" else str(vision)

    monkeypatch.setattr(validate, "version", found)
    if said:
        with pytest.raises(UserError, match="pip uninstall torchvision"):
            validate.check_builds()
    else:
        validate.check_builds()
