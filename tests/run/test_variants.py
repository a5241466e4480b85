"""What labels and sweep-wide settings come to: every variant with its parameters."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import methods
from harness.run import sweep
from harness.run.validate import Job
from harness.settings import caches
from harness.settings.config import CONF, HOME, SWEEP_WIDE, Config
from tests.run.conftest import Program


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
            names |= {"method", "ratios", "run.name", "protocol"}
        assert call(*[o for o in overrides if o.split("=")[0] not in names], *typed) == 0
        return found[0]

    return job


def parameters_of(job: Job) -> dict[str, dict[str, object]]:
    return {cell.label: dict(cell.params) for cell in job.cells(blank=True) if cell.evicts}


GATES = HOME / "tests" / "golden" / "trimkv" / "tensors.safetensors"
HEADS = HOME / "tests" / "golden" / "headkv" / "m300.json"
FILTERS = HOME / "tests" / "golden" / "qfilters" / "m300.safetensors"
CHOSEN = "method=[random,streaming_llm,snapkv,h2o,tova,restkv_mean]"
WIDE = {
    "decode": ("grow", {"streaming_llm", "h2o", "tova", "random"}),
    "buffer": (64, {"streaming_llm", "h2o", "tova", "random"}),
    "budget": ("pyramid", {"random", "snapkv", "h2o", "tova", "restkv_mean"}),
    "positions": ("cache", {"streaming_llm"}),
    "protect": ("text", {"random", "snapkv", "h2o", "tova", "restkv_mean"}),
    "merge": ("pivot", {"random", "snapkv", "h2o", "tova", "restkv_mean"}),
    "window_anchor": ("question", {"snapkv", "restkv_mean"}),
}


@pytest.mark.parametrize("name", [name for name in SWEEP_WIDE if name != "buffer"])
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


def test_a_sweep_wide_buffer_is_for_those_that_gather_tokens(compose: Callable[..., Job]) -> None:
    typed = ("decode=buffer", "buffer=64", "methods.tova.decode=grow")
    assert parameters_of(compose(CHOSEN, *typed))["h2o"]["decode"] == "buffer"
    job = compose("method=[snapkv,h2o,tova,random]", *typed)
    found = {
        label: (params.get("decode"), params.get("buffer"))
        for label, params in parameters_of(job).items()
    }
    assert found == {
        "snapkv": (None, None),
        "h2o": ("buffer", 64),
        "tova": ("grow", 128),
        "random": ("buffer", 64),
    }
    assert job.told == [
        "decode=buffer does not apply to snapkv, tova.",
        "buffer=64 does not apply to snapkv, tova.",
    ]


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


CACHE = {**dict.fromkeys(caches.NAMES), "cache": caches.FULL_PRECISION}
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
        known = {**methods.parameters(base.removesuffix("@_here_")), **CACHE}
        assert node.keys() <= known.keys()
        changed = {k: v for k, v in node.items() if k not in CACHE or k == "cache"}
        assert all(known[k] != v for k, v in changed.items())  # it names what it changes


def test_all_variants_compose_to_what_their_files_say(compose: Callable[..., Job]) -> None:
    nodes = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in METHOD_FILES}
    bases = {n: node.get("defaults", [n])[0].partition("@")[0] for n, node in nodes.items()}
    files = [f"methods.trimkv.gates={GATES}", f"methods.qfilters.filters={FILTERS}"]
    files += [f"methods.headkv.importance={HEADS}"]
    job = compose(f"method=[{','.join(nodes)}]", "seed=3", *files)
    expected = {
        label: methods.parameters(bases[label])
        | (caches.KINDS[node["cache"]]().params if "cache" in node else {})
        | {
            k: 3 if k == "seed" else v
            for k, v in node.items()
            if k not in ("defaults", "method") and v is not None
        }
        for label, node in nodes.items()
        if label != "full"
    }
    expected["trimkv"]["gates"] = methods.build("trimkv", gates=str(GATES)).params["gates"]
    filters = methods.build("qfilters", filters=str(FILTERS)).params["filters"]
    expected["qfilters"]["filters"] = filters
    importance = methods.build("headkv", importance=str(HEADS)).params["importance"]
    expected["headkv"]["importance"] = importance
    assert parameters_of(job) == expected
    assert {cell.label: cell.method for cell in job.cells(blank=True) if cell.evicts} == {
        label: bases[label] for label in expected
    }


EXPERIMENTS = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
OTHERS = {"long", "long_answers", "smol_vlm_long", "sparse_prefill"}  # with tasks of their own
OTHERS |= {"smollm2", "bytes_smollm2"}


@pytest.mark.parametrize("name", sorted(EXPERIMENTS - OTHERS))
def test_the_experiments_are_sound(compose: Callable[..., Job], name: str) -> None:
    job = compose(f"experiment={name}")
    tasks = "mmbench_mini+ruler_mini" if name == "bytes" else "mmbench_mini"
    assert job.folder.name.startswith(f"{name}-tiny_vlm-{tasks}-")
    protocols = {"paper_protocol": "paper", "field": "both", "learned": "both"}
    assert job.config.protocol.name == protocols.get(name, "replay")
    assert len(parameters_of(job)) >= 3


@pytest.mark.parametrize(
    ("typed", "model"),
    [
        (["experiment=long"], "tiny_vlm_long"),
        (["experiment=long", "model=smol_vlm"], "smol_vlm"),
        (["experiment=smol_vlm_long"], "smol_vlm"),
    ],
)
def test_long_pictures_are_cut_for_every_model_that_is_asked_about_them(
    call: Program, monkeypatch: pytest.MonkeyPatch, typed: list[str], model: str
) -> None:
    found: list[Config] = []
    monkeypatch.setattr(sweep, "run", found.append)
    assert call(*typed) == 0
    assert (found[0].model.name, found[0].model.tile) == (model, 128)
    assert list(found[0].tasks) == ["mmbench_mini_long"]
    assert {"restkv", "restkv_neither", "restkv_relative"} <= found[0].methods.keys()


@pytest.mark.parametrize(
    ("experiment", "parameter", "values", "compared"),
    [
        ("budgets", "budget", {"uniform", "pyramid", "adaptive"}, {"snapkv", "restkv"}),
        (
            "boundary",
            "protect",
            {"none", "boundary"},
            {"snapkv", "restkv", "h2o", "tova", "random"},
        ),
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
    assert found.keys() == compared | {"random"}  # the control
    for method in compared:
        cells = found[method]
        assert sorted(str(params.pop(parameter)) for params in cells) == sorted(values)
        usual = methods.parameters(method)
        usual.pop(parameter)
        assert all(params == usual for params in cells)


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
