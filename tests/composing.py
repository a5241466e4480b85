"""Hydra's compositions, made once for each choice of files: tests compose by the hundred.

Settings that are typed one by one are put on a copy, as Hydra puts them on what it composed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import Overrides
from hydra.core.plugins import Plugins

SOURCE = "hydra._internal.core_plugins.file_config_source"


def parts() -> tuple[tuple[Any, str], ...]:
    """The functions of Hydra in question: what reads a file, chooses files, merges them."""
    Plugins.instance()  # it runs the module of the source anew, which makes another class
    return (
        (import_module(SOURCE).FileConfigSource, "load_config"),
        (config_loader_impl, "create_defaults_list"),
        (ConfigLoaderImpl, "_compose_config_from_defaults_list"),
    )


ORIGINAL: list[Any] = []


@contextmanager
def once() -> Iterator[None]:
    """Within it the same files are chosen, read and merged once, until one of them changes."""
    ORIGINAL[:] = [getattr(*part) for part in parts()]
    read, choose, merge = ORIGINAL
    files: dict[Any, Any] = {}
    lists: dict[Any, Any] = {}
    merged: dict[Any, Any] = {}

    def load(source: Any, config_path: str) -> Any:
        path = Path(source.path, source._normalize_file_name(config_path))
        place = source.provider, path, path.stat().st_mtime_ns if path.exists() else None
        if place not in files:
            files[place] = read(source, config_path)
        return deepcopy(files[place])

    def chosen(repo: Any, config_name: Any, overrides_list: Any, **how: bool) -> Any:
        typed = Overrides(repo, overrides_list).config_overrides
        groups = [one.input_line for one in overrides_list if one not in typed]
        key = config_name, *groups, *how.items(), _state(repo)
        if key not in lists:
            lists[key] = choose(repo, config_name, overrides_list, **how)
        return replace(lists[key], config_overrides=typed)

    def composed(loader: ConfigLoaderImpl, defaults: Any, repo: Any) -> Any:
        key = *map(repr, defaults), _state(repo)
        if key not in merged:
            merged[key] = merge(loader, defaults, repo)
        return deepcopy(merged[key])

    with _replaced(load, chosen, composed):
        yield


@contextmanager
def anew() -> Iterator[None]:
    """Within it, and within `once`, Hydra does as it always does."""
    with _replaced(*ORIGINAL):
        yield


@contextmanager
def _replaced(*others: Any) -> Iterator[None]:
    places = parts()
    found = [getattr(*part) for part in places]
    for (owner, name), other in zip(places, others, strict=True):
        setattr(owner, name, other)
    try:
        yield
    finally:
        for (owner, name), before in zip(places, found, strict=True):
            setattr(owner, name, before)


def _state(repo: Any) -> tuple[Any, ...]:
    """Where settings come from, and when the files there were changed."""
    places = [source.path for source in repo.get_sources()]
    folders = [Path(place) for place in places if place and Path(place).is_dir()]
    files = [path for folder in folders for path in sorted(folder.rglob("*.yaml"))]
    return *places, *((str(path), path.stat().st_mtime_ns) for path in files)
