"""How many cells decode together follows from the memory that is free, on the CPU as on a GPU."""

from pathlib import Path

import psutil
import pytest
import torch
from tiny_models import make_prompt

import methods
from harness.engine import Branch, Engine, Generation
from harness.engine import session as session_module
from harness.models import memory
from harness.settings.caches import HostValues, PQKeys, Quantized

VERSION_2 = {
    "memory.max": "1000",
    "memory.current": "700",
    "memory.stat": "anon 1\ninactive_file 50",
}


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_control_groups_limit_the_memory_up_to_the_topmost(tmp_path: Path) -> None:
    groups, own = tmp_path / "groups", tmp_path / "own"
    own.write_text("0::/slurm/job_7/step\n")
    write(groups / "slurm" / "job_7", VERSION_2)
    write(groups / "slurm" / "job_7" / "step", VERSION_2 | {"memory.max": "max"})
    write(groups / "slurm", VERSION_2 | {"memory.max": "600"})
    assert sorted(memory._rooms(groups, own)) == [0, 350]
    assert memory._rooms(groups, tmp_path / "none") == []


def test_control_groups_of_version_1_are_read(tmp_path: Path) -> None:
    groups, own = tmp_path / "groups", tmp_path / "own"
    own.write_text("4:cpu,cpuacct:/x\n3:hugetlb,memory:/docker/1\n0::/\n")
    files = {"memory.limit_in_bytes": "500", "memory.usage_in_bytes": "200"}
    write(groups / "memory" / "docker" / "1", files | {"memory.stat": "total_inactive_file 30"})
    assert memory._rooms(groups, own) == [330]


def test_free_memory_is_the_least_of_machine_and_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_rooms", lambda *_: [10**18])
    assert 0 < memory.free_memory(torch.device("cpu")) <= psutil.virtual_memory().total
    monkeypatch.setattr(memory, "_rooms", lambda *_: [10**18, 77])
    assert memory.free_memory(torch.device("cpu")) == 77


@pytest.mark.parametrize("kind", ["llama", "gemma"])  # gemma: layers with a window stay whole
def test_batches_hold_as_many_cells_as_fit(loaded_models, monkeypatch, kind: str) -> None:
    """Each cell takes what it keeps and what it grows by, of the room of which a CPU gives half."""
    loaded, prompt, new = loaded_models[kind], make_prompt(kind), 40
    engine = Engine(loaded)
    policies = [methods.build("snapkv"), methods.build("tova")]  # the latter holds its budget
    branches = [Branch(), *(Branch(policy, ratio=r) for r in (0.5, 0.9) for policy in policies)]
    answers, cells = engine.prefilled(prompt, branches, Generation(new))
    layers = dict(enumerate(answers.filled.cache.layers))
    evicted = {each.index for each in engine.layout.layers}
    assert bool(layers.keys() - evicted) == (kind == "gemma")
    token = sum(
        layers[i].keys[:, :, :1].nbytes + layers[i].values[:, :, :1].nbytes for i in evicted
    )
    whole = sum(layers[i].keys.nbytes + layers[i].values.nbytes for i in layers.keys() - evicted)
    copies = 1 + session_module.COPIES / len(evicted)
    wanted = []
    for cell in cells:
        most = cell.count + 1 + (0 if cell.branch.policy is policies[1] else new)
        wanted.append(whole + most * token * copies)
    needs = answers.needs(cells)
    assert needs == pytest.approx(wanted)
    for size in range(1, len(cells) + 1):
        room = 2 * sum(needs[:size])
        monkeypatch.setattr(session_module, "free_memory", lambda device, room=room: room + 1)
        assert engine.batch_size(needs, loaded.device) == size
        monkeypatch.setattr(session_module, "free_memory", lambda device, room=room: room - 8)
        assert engine.batch_size(needs, loaded.device) == max(1, size - 1)


def test_a_batch_bounded_by_memory_gives_the_same_answers(loaded_models, monkeypatch) -> None:
    loaded, prompt, policy = loaded_models["qwen"], make_prompt("qwen"), methods.build("snapkv")
    branches = [Branch(), *(Branch(policy, ratio=r) for r in (0.5, 0.8, 0.9))]
    wanted = Engine(loaded).run(prompt, branches, Generation(3))
    monkeypatch.setattr(session_module, "free_memory", lambda device: 0)
    found = Engine(loaded).run(prompt, branches, Generation(3))
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]


@pytest.mark.parametrize("stored", [Quantized(4, 8, 4), PQKeys(4, 2, 4), HostValues(0.5, 30)])
def test_what_stays_unpacked_on_a_cpu_is_counted(loaded_models, monkeypatch, stored) -> None:
    """Tiles and what is read in full precision, of all layers of a batch."""
    engine, held = Engine(loaded_models["llama"]), []
    monkeypatch.setattr(session_module, "COPIES", 0)
    own = engine.decoder.run

    def run(cache, *rest):
        decoded = own(cache, *rest)
        tiles = [pool for each in cache.layers for pool in (each.tiles, _opened(each)) if pool]
        token = 4 * (tiles[0].keys.shape[2] + tiles[0].values.shape[2])
        held.append(sum(int(pool.counts.sum()) * token for pool in tiles))
        return decoded

    monkeypatch.setattr(engine.decoder, "run", run)
    branches = [Branch(), Branch(methods.build("snapkv"), 0.5), Branch(cache=stored)]
    asked = make_prompt("llama"), branches, Generation(5)
    answers, cells = engine.prefilled(*asked)
    engine.run(*asked)
    needs = sum(answers.needs(cells))
    assert 0.6 * needs < sum(held) <= needs


def _opened(layer):
    return getattr(layer, "_opened", None)
