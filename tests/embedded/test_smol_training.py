"""The training of smol_vlm reads what the joined model reads, and what it writes joins."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F

from harness.drawing import world
from harness.drawing.render import render
from harness.embedded import TINY_VLM
from harness.embedded.questions import KINDS, ask, prompt
from harness.models import gguf, joining, parts
from harness.models.loading import load
from scripts import train_smol_vlm
from scripts.smol_vlm import learn, rows
from scripts.smol_vlm.learn import Head, Reader, Stage
from scripts.smol_vlm.projector import Tables
from scripts.smol_vlm.rows import PICTURE, Words
from scripts.tiny_vlm import tower
from scripts.tiny_vlm.language import Pool
from tests.installed import install

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from tiny_gguf import SPECIAL, write_llama

CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' ' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>says\n' }}"
    "{% endif %}"
)
BARES, WHOLES, SCENES = 3, 4, 2


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVICTBENCH_CACHE", str(tmp_path / "cache"))
    words = [*SPECIAL, joining.UNUSED]
    file = write_llama(tmp_path / "text.gguf", template=CHAT, special=words)
    install(tmp_path / "site", "tiny-text", {"text.gguf": file.read_bytes()})
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(train_smol_vlm, "PACKAGE", "package:tiny-text")
    monkeypatch.setattr(learn, "HINTED", 1)
    monkeypatch.setattr(learn, "LATE", 0)
    monkeypatch.setattr(learn, "EARLY", 0)
    monkeypatch.setattr(learn, "MOVED", 1)
    found = gguf.unpacked("package:tiny-text")
    assert found is not None
    return found[0]


def test_rows_behind_a_picture_are_read_as_whole_prompts_are(text: Path) -> None:
    model = joining.untrained(text, TINY_VLM)
    processor = joining.processor(text, TINY_VLM)
    words, rng = Words(processor), Random(3)
    pool = Pool.draw(model, rng, SCENES)
    asked = [ask(scene, kind, rng) for scene in pool.scenes for kind in ("color", "location")]
    drawn = [rows.whole(question, words) for question in asked if question is not None]
    batch = rows.collate(drawn, 2, words.stop)
    reader = Reader(model, words, bf16=False)
    with torch.no_grad():
        states, cache = reader.states(reader.read(pool.hidden), batch, None)
        away = reader.away(batch, cache)
    model.model.language_model.set_attn_implementation("eager")
    attention = []
    for index, (row, question) in enumerate(zip(drawn, asked, strict=True)):
        assert question is not None
        content = [{"type": "image"}, {"type": "text", "text": prompt(question)}]
        said = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        picture = render(pool.scenes[index // 2])
        inputs = processor(text=[said], images=[picture], return_tensors="pt")
        past = inputs["input_ids"].shape[1] - row.last - 1
        assert inputs["input_ids"][0, past:].tolist() == row.ids[:-1]
        with torch.no_grad():
            found = model(**inputs, output_attentions=True)
            own = reader.logits(states[index, : row.last + 1])
        torch.testing.assert_close(own, found.logits[0, past:], rtol=1e-3, atol=1e-3)
        hinted = learn.LATE if question.kind == "location" else learn.HINTED
        heads = found.attentions[hinted][0, 2:, -1]  # the two query heads of the second KV head
        attention.append(-heads[:, past + row.option].log())
        assert processor.tokenizer.decode(row.ids[row.mark]) == "?"
        until = processor.tokenizer.decode(row.ids[: row.option + 1])
        letter = "ABCD"[question.options.index(question.answer)]
        assert until.endswith(f"{letter}. {question.answer}")
        assert processor.tokenizer.decode([row.letter]) == letter
    torch.testing.assert_close(away, torch.stack(attention).mean(), rtol=1e-3, atol=1e-3)


def test_the_content_is_read_behind_two_layers_too(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = joining.untrained(text, TINY_VLM)
    words, rng = Words(joining.processor(text, TINY_VLM)), Random(6)
    pool = Pool.draw(model, rng, 1)
    asked = [ask(pool.scenes[0], kind, rng) for kind in ("location", "color")]
    drawn = [rows.whole(question, words) for question in asked if question is not None]
    batch = rows.collate(drawn, 2, words.stop)
    reader = Reader(model, words, bf16=False)
    for head in reader.heads.values():
        torch.nn.init.normal_(head.linear.weight)
    # A random layer changes little; this one has to, so that the two heads read different states.
    torch.nn.init.normal_(model.model.language_model.layers[1].mlp.down_proj.weight, std=10.0)
    heads = learn.losses(reader, pool.hidden, [batch], None, 0.0)[0]
    monkeypatch.setattr(learn, "HEAD", 0.0)
    heads = heads - learn.losses(reader, pool.hidden, [batch], None, 0.0)[0]
    lost, start, inner = [], len(words.prefix), model.model
    hidden: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(inner.language_model.layers):
        layer.register_forward_hook(lambda _, __, out, index=index: hidden.update({index: out}))
    for one in drawn:
        embedded = inner.language_model.embed_tokens(torch.tensor([[*words.prefix, *one.ids]]))
        image = inner.multi_modal_projector(pool.hidden)
        whole = torch.cat((embedded[:, :start], image, embedded[:, start:]), 1)
        inner.language_model(inputs_embeds=whole)
        for at, layer, where in (("mark", 0, one.mark), ("last", 1, one.last)):
            state = hidden[layer][0, start + PICTURE + where]
            said = reader.heads[at].linear(F.layer_norm(state, state.shape)).softmax(-1)
            known = reader.heads[at].tokens.tolist()
            lost.append(-torch.stack([said[known.index(token)].log() for token in one.word]).mean())
    each = learn.WORD + learn.LETTER + learn.END
    torch.testing.assert_close(heads, 0.5 * sum(lost) / (each * len(drawn)), rtol=1e-3, atol=1e-4)


def test_every_answer_has_a_place_in_the_head(text: Path) -> None:
    words, rng = Words(joining.processor(text, TINY_VLM)), Random(7)
    tokens = set(Head(words, 8).tokens.tolist())
    for scene in (world.sample_scene(rng) for _ in range(60)):
        for kind in KINDS:
            question = ask(scene, kind, rng)
            assert question is None or set(words.of(question.answer)) <= tokens


def test_places_are_named_where_something_lies_alone(text: Path) -> None:
    model = joining.untrained(text, TINY_VLM)
    words = Words(joining.processor(text, TINY_VLM))
    tables = Tables(model.get_input_embeddings().weight.detach(), words)
    torch.nn.init.normal_(tables.by_name["corner"])  # the tiny tokenizer spells them all alike
    scene = world.sample_scene(Random(8))
    labels = torch.from_numpy(tower.labels(scene))
    corner = list(tower.ATTRIBUTES).index("corner")
    moved = labels.clone()
    moved[:, corner] = (labels[:, corner] + 1) % len(world.CORNERS)
    differs = (tables.of(labels) != tables.of(moved)).any(-1)
    occupied = {cell for item in scene.items for cell in item.cells()}
    assert set(differs.nonzero()[:, 0].tolist()) == occupied


def test_a_partial_view_hides_from_the_answer_alone(text: Path) -> None:
    words, rng = Words(joining.processor(text, TINY_VLM)), Random(4)
    drawn = [
        row
        for _ in range(40)
        for row in rows.draw(world.sample_scene(rng), words, rng, (0, 1), (learn.EQUAL,) * 2)
    ]
    batch = rows.collate(drawn, 1, words.stop)
    mask = learn.partial_view(batch, 5, torch.Generator().manual_seed(0))[:, 0]
    width = batch.ids.shape[1]
    causal = torch.ones(width, width + 5, dtype=torch.bool).tril(5)
    shares = []
    for one, row in zip(mask, drawn, strict=True):
        assert torch.equal(one[: row.last], causal[: row.last])
        assert one[row.last, row.last + 5]
        assert not one[~causal].any()
        shares.append(one[row.last, : row.last + 5].float().mean().item())
    assert 10 < sum(share == 1 for share in shares) < 30
    assert min(shares) < 0.3


def test_rows_with_and_without_options_are_asked_by_what_is_known_of_each(text: Path) -> None:
    words, rng = Words(joining.processor(text, TINY_VLM)), Random(8)
    known = {"word": dict.fromkeys(KINDS, 1.0), "letter": dict.fromkeys(KINDS, 1.0)}
    known["word"]["color"] = known["letter"]["brightness"] = 0.0
    without, others = train_smol_vlm.asked(known)
    assert without["color"] / without["brightness"] == pytest.approx(2.3 / 0.3)
    assert others["brightness"] / others["color"] == pytest.approx(2.3 / 0.3)
    only = tuple({kind: float(kind == name) for kind in KINDS} for name in ("color", "brightness"))
    drawn = rows.draw(world.sample_scene(rng), words, rng, (3, 2), only)
    assert [(row.kind, row.letter >= 0) for row in drawn] == [("color", False)] * 3 + [
        ("brightness", True)
    ] * 2


@pytest.mark.parametrize("bf16", [False, True])
def test_a_short_training_writes_what_joins(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    monkeypatch.setattr(train_smol_vlm, "quick_bf16", lambda: bf16)
    plan = train_smol_vlm.Plan(
        projector_steps=2,
        fitted=20,
        pool=6,
        held_out=2,
        stages=(
            Stage("content", 2, BARES, 0, SCENES),
            Stage("letters", 3, BARES, WHOLES, SCENES, fall=0.5, partial=0.5),
        ),
    )
    given = argparse.Namespace(seed=1, start=None, folder=tmp_path / "made", threads=1, port=0)
    train_smol_vlm.work(0, 1, given, plan)
    before = parts.joined(str(given.folder))
    assert before is not None
    loaded = load(str(given.folder), device="cpu", dtype="float32")
    assert loaded.takes_images
    plain = joining.untrained(text, TINY_VLM).state_dict()
    trained = loaded.model.state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], trained[name])}
    assert len(changed) == 7 * 2 + 4  # the projections of two layers, the projector
    assert all("_proj." in name or "projector" in name for name in changed)
    given.start, given.folder = given.folder, tmp_path / "more"
    train_smol_vlm.work(0, 1, given, replace(plan, stages=plan.stages[1:]))
    assert parts.joined(str(given.folder)) != before
    records = [
        json.loads((tmp_path / f / train_smol_vlm.RECORD).read_text()) for f in ("made", "more")
    ]
    assert records[0]["start"] is None
    assert records[1]["start"] == records[0]
    assert records[1]["command"].endswith(f"--seed 1 --start {given.start} --stage letters")


def test_a_training_that_is_stopped_leaves_what_it_had_at_the_last_look(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = train_smol_vlm.Plan(2, 20, 4, 2, (Stage("content", 5, BARES, 0, SCENES),))
    given = argparse.Namespace(seed=1, start=None, folder=tmp_path / "made", threads=1, port=0)
    average, steps = train_smol_vlm.Shared.average, []

    def stopped(self, parameters):
        steps.append(len(steps))
        if len(steps) == 3:
            raise KeyboardInterrupt
        return average(self, parameters)

    monkeypatch.setattr(train_smol_vlm, "EVERY", 2)
    monkeypatch.setattr(train_smol_vlm.Shared, "average", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_smol_vlm.work(0, 1, given, plan)
    record = json.loads((given.folder / train_smol_vlm.RECORD).read_text())
    assert record["content"]["steps"] == 2
    assert load(str(given.folder), device="cpu", dtype="float32").takes_images
