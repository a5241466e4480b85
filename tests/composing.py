"""Hydra's compositions, made once for each choice of files: tests compose by the hundred.

Settings that are typed one by one are put on a copy, as Hydra puts them on what it composed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import Overrides

READ = FileConfigSource.load_config
CHOOSE = config_loader_impl.create_defaults_list
MERGE = ConfigLoaderImpl._compose_config_from_defaults_list


@contextmanager
def once() -> Iterator[None]:
    """Within it the same files are chosen, read and merged once, until one of them changes."""
    files: dict[Any, Any] = {}
    lists: dict[Any, Any] = {}
    merged: dict[Any, Any] = {}

    def load(source: FileConfigSource, config_path: str) -> Any:
        path = Path(source.path, source._normalize_file_name(config_path))
        place = source.provider, path, path.stat().st_mtime_ns if path.exists() else None
        if place not in files:
            files[place] = READ(source, config_path)
        return deepcopy(files[place])

    def chosen(repo: Any, config_name: Any, overrides_list: Any, **how: bool) -> Any:
        typed = Overrides(repo, overrides_list).config_overrides
        groups = [one.input_line for one in overrides_list if one not in typed]
        key = config_name, *groups, *how.items(), _state(repo)
        if key not in lists:
            lists[key] = CHOOSE(repo, config_name, overrides_list, **how)
        return replace(lists[key], config_overrides=typed)

    def composed(loader: ConfigLoaderImpl, defaults: Any, repo: Any) -> Any:
        key = *map(repr, defaults), _state(repo)
        if key not in merged:
            merged[key] = MERGE(loader, defaults, repo)
        return deepcopy(merged[key])

    _put(load, chosen, composed)
    try:
        yield
    finally:
        _put(READ, CHOOSE, MERGE)


@contextmanager
def anew() -> Iterator[None]:
    """Within it Hydra does as it always does."""
    found = (
        FileConfigSource.load_config,
        config_loader_impl.create_defaults_list,
        ConfigLoaderImpl._compose_config_from_defaults_list,
    )
    _put(READ, CHOOSE, MERGE)
    try:
        yield
    finally:
        _put(*found)


def _put(read: Any, choose: Any, merge: Any) -> None:
    FileConfigSource.load_config = read
    config_loader_impl.create_defaults_list = choose
    ConfigLoaderImpl._compose_config_from_defaults_list = merge


def _state(repo: Any) -> tuple[Any, ...]:
    """Where settings come from, and when the files there were changed."""
    places = [source for source in repo.get_sources() if isinstance(source, FileConfigSource)]
    paths = [path for source in places for path in sorted(Path(source.path).rglob("*.yaml"))]
    stored = [source.path for source in repo.get_sources()]
    return *stored, *((str(path), path.stat().st_mtime_ns) for path in paths)
