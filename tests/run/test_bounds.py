"""Absurd values of every kind of setting: each is one sentence, before anything heavy loads."""

import copy
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.errors import UserError
from harness.settings import checks, variants
from harness.settings.config import CONF, Config, as_config, register
from harness.settings.wording import sentence

CHOSEN = "method=[restkv,snapkv,h2o,tova,lacache,streaming_llm,random,criticalkv]"

# Where, what, and what the sentence names beside the end of the setting's name.
ABSURD: list[tuple[str, Any, str]] = [
    ("seed", 2**32, "4,294,967,295"),
    ("seed", 10**400, "..."),
    ("seed", [1], "list"),
    ("seed", True, "bool"),
    ("limit", 0, "from 1"),
    ("limit", 10**12, "2,147,483,647"),
    ("limit", {"a": 1}, "dict"),
    ("ratios", [0.9999999], "6 decimals"),
    ("ratios", [1e-300], "6 decimals"),
    ("ratios", [float("nan")], "from 0"),
    ("ratios", {"a": 0.5}, "list"),
    ("budgets", [2**63], "2,147,483,647"),
    ("budgets", [1e12], "whole number"),
    ("budgets", "many", "list"),
    ("analysis.method", "nope", "restkv"),
    ("analysis.method", "full", "restkv"),
    ("analysis.control", "nope", "random"),
    ("analysis.alpha", 1e-300, "1e-06"),
    ("analysis.alpha", float("nan"), "0.499"),
    ("analysis.margin", 1e-9, "0.01"),
    ("analysis.power", 1.0, "0.9999"),
    ("analysis.above", -1, "-0.999"),
    ("analysis.resamples", 10**12, "100,000"),
    ("analysis.resamples", 1e12, "Integer"),
    ("engine.threads", 100_000, "too large"),
    ("engine.threads", 1.5, "whole number"),
    ("engine.threads", [2], "whole number"),
    ("engine.cells_per_batch", 10**12, "1,000,000"),
    ("engine.cells_per_batch", True, "auto"),
    ("model.max_length", 10**30, "2,147,483,647"),
    ("model.max_prompt", -5, "more tokens"),
    ("model.name", "", "characters"),
    ("model.name", "x" * 1000, "characters"),
    ("model.name", "a\nb", "not text"),
    ("model.pretrained", "a\0b", "not text"),
    ("model.pretrained", " ", "empty"),
    ("model.revision", "main", "is on this machine"),
    ("run.name", "x" * 201, "200"),
    ("run.name", "näme", "letters"),
    ("run.name", "a\nb", "not text"),
    ("run.dir", "a\0b", "not text"),
    ("model.chat_template", "/nothing/there", "No such file"),
    ("model.chat_template", "/dev/null", "is empty"),
    ("run.report_every", "10", "unit"),
    ("run.report_every", "0m", "unit"),
    ("run.report_every", "-1h", "unit"),
    ("run.report_every", "ten minutes", "10m"),
    ("run.report_every", [1], "list"),
    ("run.dir", "a\nb", "not text"),
    ("run.dir", "x" * 256, "too long"),
    ("run.dir", "x/" * 3000, "too long"),
    ("run.dir", "\udcff", "not text"),
    ("run.dir", "", "empty"),
    ("wandb.project", "a/b", "project"),
    ("wandb.project", "", "project"),
    ("device", "cuda:99999", "cuda:<n>"),
    ("device", 0, "cuda:<n>"),
    ("tasks.mmbench_mini.generation.max_new_tokens", 0, "from 1"),
    ("tasks.mmbench_mini.generation.max_new_tokens", -1, "from 1"),
    ("tasks.mmbench_mini.generation.max_new_tokens", 1e9, "whole number"),
    ("tasks.mmbench_mini.generation.max_new_tokens", 10**9, "1,000,000"),
    ("tasks.mmbench_mini.generation.max_new_tokens", "many", "whole number"),
    ("tasks.mmbench_mini.data", {"samples": 10**12}, "100,000"),
    ("tasks.mmbench_mini.data", {"lengths": [10**12]}, "100,000,000"),
    ("tasks.mmbench_mini.overrides", {"dataset_path": "a\0b"}, "not text"),
    ("methods.restkv.window", 100_000_000, "65,536"),
    ("methods.restkv.window", 32.0, "whole number"),
    ("methods.restkv.kernel", 10**30 + 1, "65,536"),
    ("methods.restkv.kernel", 4, "odd"),
    ("methods.restkv.tau", 1e300, "100"),
    ("methods.restkv.tau", 10**400, "100"),
    ("methods.restkv.alpha", 1e-300, "1e-06"),
    ("methods.restkv.scale", 1e-300, "0.01"),
    ("methods.restkv.relative_scale", 1e300, "10000"),
    ("methods.restkv.project", "yes please", "true or false"),
    ("methods.restkv.group", ["mean"], "joint"),
    ("methods.restkv.pyramid_beta", 10**30, "1,000,000"),
    ("methods.restkv.adaptive_floor", float("nan"), "at most 1"),
    ("methods.restkv.boundary_share", 0.6, "at most 0.5"),
    ("methods.snapkv.kernel", 10**9 + 1, "65,536"),
    ("methods.snapkv.window", True, "65,536"),
    ("methods.h2o.recent", -1, "0 or more"),
    ("methods.tova.decode", 3, "hold, grow"),
    ("methods.tova.buffer", 10**30, "1 or more"),
    ("methods.lacache.span", 10**30, "1 or more"),
    ("methods.streaming_llm.sinks", 2**63, "0 or more"),
    ("methods.random.seed", 2**64, "4,294,967,295"),
    ("methods.criticalkv.epsilon", 1e-300, "1e-12"),
    ("methods.restkv", 5, "method"),
    ("methods.restkv.method", "x" * 500, "..."),
]


@pytest.fixture(scope="module")
def usual() -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [CHOSEN])


def settled(usual: DictConfig, name: str, value: object) -> Config:
    given = copy.deepcopy(usual)
    OmegaConf.update(given, name, value, merge=False, force_add=True)
    config = as_config(given)
    checks.check(config)
    variants.variants(config.methods, variants.sweep_wide(config))
    return config


@pytest.mark.parametrize(("name", "value", "said"), ABSURD)
def test_an_absurd_value_is_one_sentence(usual: DictConfig, name: str, value: object, said: str):
    with pytest.raises((UserError, OmegaConfBaseException)) as caught:
        settled(usual, name, value)
    told = sentence(caught.value)
    assert name.rsplit(".", 1)[-1] in told
    assert said in told
    assert len(told) < 700
    assert told.isprintable()


def test_equal_amounts_are_one_and_the_other_kind_goes(usual: DictConfig):
    assert settled(usual, "ratios", [0.5, 0.5, 0]).ratios == [0.5, 0.0]
    found = settled(usual, "budgets", [16, 16, 64])
    assert (found.ratios, found.budgets) == (None, [16, 64])


@pytest.mark.parametrize(
    ("typed", "both"),
    [
        (["ratios=[0.5]", "budgets=[16]"], True),
        (["++budgets=[16]", "ratios=[0.5]"], True),
        (["budgets=[16]"], False),
        (["ratios=null", "budgets=[16]"], False),
        (["ratios=[0.5]", "budgets=null"], False),
    ],
)
def test_ratios_and_budgets_exclude_each_other(typed: list[str], both: bool):
    if both:
        with pytest.raises(UserError, match="give one of the two"):
            checks.check_typed(typed)
    else:
        checks.check_typed(typed)


@pytest.mark.parametrize("typed", ["model=[tiny_vlm,tiny_vlm]", "protocol=[replay,paper]"])
def test_a_run_has_one_model_and_one_protocol(typed: str):
    with pytest.raises(UserError, match="chooses several and a run has one"):
        checks.check_typed([typed])
    checks.check_typed([typed.partition(",")[0].replace("[", "")])
