"""The names of a model and of a run's folder, made of what is asked and of what differs from the
defaults.

Knows Hydra; must not know what a setting does.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from harness.settings.bounds import NAME
from harness.settings.config import CONF

GROUPS = ("model", "task", "protocol", "experiment")
LISTS = {"prefill": "prefills", "method": "methods"}  # groups, and the settings that they fill
#: What changes no answer and no verdict, or stands in the name anyhow.
LEFT_OUT = re.compile(
    r"(run|wandb|engine|store|hydra|ray)\.|seed$|shard$|workers$|model\.(name|caveat)$|protocol\.name$|"
    r"analysis\.resamples$|methods\.[^.]+\.method$|prefills\.[^.]+\.pattern$|tasks\.[^.]+\.lmms_task$"
)
SHORT = re.compile(r"^(methods|prefills|analysis|model|protocol)\.")
LENGTH = 120  # characters; a longer name is cut and told apart by a digest


def with_own_name(cfg: DictConfig, typed: Sequence[str]) -> DictConfig:
    """The settings, with the model named after its weights where these alone were typed."""
    given = {one.lstrip("+").partition("=")[0] for one in typed}
    if "model.pretrained" not in given or given & {"model", "model.name"}:
        return cfg
    name = own_name(cfg.model.pretrained)
    named = OmegaConf.merge(cfg, {"model": {"name": name}}) if name else cfg
    assert isinstance(named, DictConfig)
    return named


def own_name(pretrained: str) -> str:
    """The last part of a folder, a GGUF file, a package or a hub id; empty where it has none."""
    place = os.path.normpath(os.path.expanduser(pretrained.removeprefix("package:")))
    if place in (".", "..") and pretrained.strip():
        place = os.path.abspath(place)
    name = os.path.basename(place).removesuffix(".gguf")
    return "".join(filter(str.isprintable, name)).strip()[:NAME]


def default_name(cfg: DictConfig, typed: Sequence[str]) -> str:
    """Such as tiny_vlm-mmbench_mini-replay-seed0, or the same with -limit=20 behind it.

    Two runs whose answers or verdicts could differ have different names; order makes no other run.

    Args:
        cfg: the composed settings.
        typed: what they were composed from.
    """
    chosen = {name: _choice(typed, name) for name in (*GROUPS, *LISTS)}
    asked = [f"{name}={value}" for name, value in chosen.items() if value is not None]
    usual = plain = _compose(*asked)
    if any(chosen[name] is not None for name in LISTS):
        plain = _compose(*(text for text in asked if text.partition("=")[0] not in LISTS))
    parts = [cfg.model.name, "+".join(sorted(cfg.tasks)), cfg.protocol.name, f"seed{cfg.seed}"]
    if chosen["experiment"] not in (None, "null"):
        parts.insert(0, str(chosen["experiment"]))
    for name in LISTS.values():
        if set(cfg[name]) != set(plain[name]):
            parts.append("+".join(sorted(cfg[name])))
    changes = dict(_changes(cfg, usual))
    whole = "-".join([*parts, *(f"{name}={value}" for name, value in changes.items())])
    if cfg.model.name == own_name(cfg.model.pretrained):  # it stands in front
        changes.pop("pretrained", None)
    shown = {name: value.rpartition("/")[2] for name, value in changes.items()}
    return _safe("-".join([*parts, *(f"{name}={value}" for name, value in shown.items())]), whole)


def _choice(typed: Sequence[str], group: str) -> str | None:
    """The last choice that was typed for a group."""
    found = [text.partition("=")[2] for text in typed if text.lstrip("+").startswith(f"{group}=")]
    return found[-1] if found else None


@lru_cache(maxsize=16)  # the jobs of a multirun choose the same
def _compose(*asked: str) -> DictConfig:
    overrides = list(asked)
    if GlobalHydra.instance().is_initialized():
        return compose("config", overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


def _changes(cfg: DictConfig, usual: DictConfig) -> Iterator[tuple[str, str]]:
    """("limit", "20") for every setting whose value is not the usual one."""
    now, before = (_settings(one) for one in (cfg, usual))
    tasks = len(cfg.tasks)
    for name in sorted({*now, *before}):
        if now.get(name) == before.get(name) or LEFT_OUT.match(name):
            continue
        short = SHORT.sub("", name)
        if tasks == 1:
            short = re.sub(r"^tasks\.[^.]+\.", "", short)
        yield short, _said(now.get(name))


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """Every setting by its dotted name; amounts in order, since the same ones ask the same."""
    found = dict(_flat(OmegaConf.to_container(cfg)))
    for name in ("ratios", "budgets"):
        if isinstance(found.get(name), list):  # a mapping is taken apart, and refused later
            found[name] = sorted(found[name], key=_amount)
    return found


def _amount(value: object) -> tuple[bool, Any]:
    """Numbers by their size, and what is none behind them."""
    number = isinstance(value, int | float)
    return not number, value if number else str(value)


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _flat(value, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), node


def _said(value: object) -> str:
    if isinstance(value, list):
        return "+".join(dict.fromkeys(map(_said, value)))
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _safe(name: str, whole: str) -> str:
    """The name in characters that any file system takes, with a digest where some were lost."""
    plain = re.sub(r"[^A-Za-z0-9._=+-]", "_", name).lstrip("._=+-")
    if plain == whole and len(name) <= LENGTH:
        return name
    digest = hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain[:LENGTH].rstrip('-.')}-{digest}"
