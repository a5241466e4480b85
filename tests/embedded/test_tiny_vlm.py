"""The embedded model: loads as any hub model does, sees, and can be trained again from nothing."""

import io
import json
from dataclasses import replace
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness.drawing.world import Item, Scene
from harness.embedded import MMBENCH_MINI, TINY_VLM, texts
from harness.embedded.questions import Question, prompt
from scripts.build_mmbench_mini import ROTATION
from scripts.build_mmbench_mini import SEED as BENCHMARK_SEED
from scripts.build_text_mini import SEED as TEXT_BENCHMARK_SEED
from scripts.tiny_vlm import attention_hints, build, lessons, reading, recall, tower
from scripts.tiny_vlm.language import Stage
from scripts.tiny_vlm.lists import Listing
from scripts.tiny_vlm.walls import Looking
from scripts.train_tiny_vlm import BOTH, PARTS, Plan, train


@pytest.fixture(scope="module")
def loaded():
    model = AutoModelForImageTextToText.from_pretrained(TINY_VLM, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(TINY_VLM)


@pytest.fixture(scope="module")
def rows():
    """The first rotation of every third question."""
    frame = pd.read_parquet(MMBENCH_MINI / "en" / "dev-00000-of-00001.parquet")
    return frame[frame["index"] < ROTATION].iloc[::3]


def ask(loaded, row, image):
    """The model's answer through plain generate, as text."""
    model, processor = loaded
    options = tuple(row[x] for x in "ABCD" if not pd.isna(row[x]))
    hint = None if pd.isna(row["hint"]) else row["hint"]
    text = prompt(Question("", "", "", row["question"], options, "", hint, ()))
    content = [{"type": "image", "url": image}, {"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_weights_are_half_precision_safetensors_of_at_most_16_mb():
    assert sum(p.stat().st_size for p in TINY_VLM.iterdir()) <= 16 * 2**20
    with safe_open(TINY_VLM / "model.safetensors", "pt") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.float16}  # noqa: SIM118


def test_architecture(loaded):
    text, vision = loaded[0].config.text_config, loaded[0].config.vision_config
    assert type(loaded[0]).__name__ == "LlavaForConditionalGeneration"
    assert text.num_hidden_layers >= 4
    assert text.num_key_value_heads < text.num_attention_heads
    assert (vision.image_size // vision.patch_size) ** 2 >= 64


def test_training_is_on_record():
    record = json.loads((TINY_VLM / "training.json").read_text())
    assert record["seed"] != record["benchmark_seed"] == BENCHMARK_SEED
    assert record["seed"] != record["text_benchmark_seed"] == TEXT_BENCHMARK_SEED
    assert record["command"].endswith(f"--seed {record['seed']}")
    assert list(record["parts"]) == list(PARTS)
    for part in record["parts"].values():
        assert part["seconds"] > 0
        assert part["machine"]


def test_it_sees_and_answers_with_the_letter(loaded, rows):
    hits, blank = [], []
    for _, row in rows.iterrows():
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        said = ask(loaded, row, image)
        assert said in tuple("ABCD")
        hits.append(said == row["answer"])
        grey = Image.new("RGB", image.size, (128, 128, 128))
        blank.append(ask(loaded, row, grey) == row["answer"])
    assert np.mean(hits) >= 0.85
    assert np.mean(blank) <= 0.45


def test_every_word_of_the_benchmark_is_in_the_vocabulary(rows):
    known = set(build.vocabulary())
    tokens = build.tokenizer()
    for _, row in rows.iterrows():
        said = " ".join(str(row[x]) for x in ("question", "hint", "A", "B") if not pd.isna(row[x]))
        assert set(tokens.tokenize(said)) <= known - {"<unk>"}


def test_a_full_row_marks_the_right_tokens():
    question = Question(
        "color", "", "", "What is the color of the star?", ("red", "blue", "pink"), "blue",
        "Look at the image.", (5, 6),
    )  # fmt: skip
    row, words = lessons.full_row(question), build.vocabulary()
    assert words[row.ids[row.mark]] == "?"
    assert words[row.ids[row.option]] == "blue" == words[row.content]
    assert [words[row.ids[i]] for i in row.options] == ["red", "blue", "pink"]
    assert words[row.letter] == "B" == words[row.ids[-2]]
    assert words[row.ids[-3]] == ":"
    batch = lessons.collate([row, lessons.bare_row(question)], 2)
    assert batch.last.tolist() == [len(row.ids) - 3, -1]
    assert batch.cells[0].nonzero().flatten().tolist() == [5, 6]


def test_hints_leave_the_output_alone_and_measure_attention():
    """Against a softmax written out by hand."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 5, 8)
    wanted = torch.zeros(1, 5, dtype=torch.bool)
    wanted[0, 1] = True
    hint = attention_hints.Hint(7, (3,), torch.tensor([1]), torch.tensor([0]), wanted)
    module = torch.nn.Module()
    module.layer_idx, module.is_causal, module.num_key_value_groups = 7, False, 2
    arguments = (module, query, key, torch.randn(2, 2, 5, 8), None)
    attention_hints.set_hints([])
    plain = attention_hints.hinted_attention(*arguments, scaling=0.5)[0]
    assert attention_hints.collect() == 0.0
    attention_hints.set_hints([hint])
    hinted = attention_hints.hinted_attention(*arguments, scaling=0.5)[0]
    attention_hints.set_hints([])
    torch.testing.assert_close(hinted, plain)
    attention_hints._losses.append(attention_hints._loss(hint, query, key, 0.5))
    logits = (key[1, 1] @ query[1, 3, 0]) * 0.5  # head 3 of 4 reads KV head 1 of 2
    share = logits[:3].softmax(0)[1]  # the first of 3 queries after 2 past keys sees 3
    torch.testing.assert_close(attention_hints.collect(), -share.log())


def test_labels_name_what_each_cell_holds():
    star = Item("shape", "star", "red", row=4, col=5, height=2, width=2)
    digit = Item("digit", "7", "black", row=0, col=0, height=1, width=1)
    scene = Scene((star, digit), "dotted", "dim")
    labels, names = tower.labels(scene), tower.ATTRIBUTES
    at = dict(zip(names, labels[4 * 8 + 5], strict=True))
    assert names["value"][at["value"]] == "star"
    assert names["color"][at["color"]] == "red"
    assert names["size"][at["size"]] == "large"
    assert names["corner"][at["corner"]] == "bottom-right"
    assert names["value"][labels[0][0]] == "digit 7"
    assert (labels[:, list(names).index("anchor")] == 1).sum() == 1
    assert names["background"][labels[20][5]] == "dotted"


def short_plan():
    words = Stage(False, scenes=2, questions=3, goal=0.9, max_steps=2, rate=1e-3)
    letters = Stage(True, scenes=2, questions=3, goal=0.9, max_steps=2, rate=1e-3, decay=True)
    stage = replace(BOTH, lengths=(160,), tokens=600, questions=2, max_steps=2)
    return Plan(
        tower_steps=2,
        projector_steps=2,
        pool=8,
        words=words,
        letters=letters,
        finish=letters,
        kept=8,
        texts=(replace(stage, decay=False, partial=False),),
        both=stage,
        turned=stage,
        lists=(Listing((2, 4), 2, 1e-3, tokens=200, partial=0.5, decay=True),),
        walls=(Looking((1, 2), 4, 2, 2, 1e-3, replace(stage, hint_weight=0.0), decay=True),),
    )


@pytest.mark.slow
def test_the_training_command_runs_from_nothing(tmp_path):
    train(tmp_path, seed=3, plan=short_plan())
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.vocab_size == len(build.vocabulary())
    assert model.get_input_embeddings().weight.shape[0] == len(build.vocabulary())
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    record = json.loads((tmp_path / "training.json").read_text())
    assert list(record["parts"]) == list(PARTS)


@pytest.mark.slow
def test_a_part_begins_from_the_folder_of_the_part_before(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train(first, seed=3, plan=short_plan(), parts=("pictures",))
    before = AutoModelForImageTextToText.from_pretrained(first)
    assert before.get_input_embeddings().weight.shape[0] == len(build.picture_words())
    train(second, seed=3, plan=short_plan(), parts=("texts",), start=first)
    after = AutoModelForImageTextToText.from_pretrained(second)
    assert not after.config.tie_word_embeddings
    tower = [model.model.vision_tower.state_dict() for model in (before, after)]
    assert all(torch.equal(tower[0][name], tower[1][name]) for name in tower[0])
    train(tmp_path / "long", seed=3, plan=short_plan(), parts=("walls",), start=second)
    train(tmp_path / "lists", seed=3, plan=short_plan(), parts=("lists",), start=tmp_path / "long")
    record = json.loads((tmp_path / "lists" / "training.json").read_text())
    assert list(record["parts"]) == ["pictures", "texts", "walls", "lists"]
    last = AutoModelForImageTextToText.from_pretrained(tmp_path / "lists")
    seen = last.model.vision_tower.state_dict()
    assert all(torch.equal(tower[0][name], seen[name]) for name in seen)
    processor = AutoProcessor.from_pretrained(tmp_path / "long")
    config = AutoModelForImageTextToText.from_pretrained(tmp_path / "long").config
    assert (
        processor.tokenizer.model_max_length == config.text_config.max_position_embeddings == 4096
    )


def test_new_words_come_behind_the_old_ones():
    old = build.picture_words()
    assert build.vocabulary()[: len(old)] == old
    tokens = AutoProcessor.from_pretrained(TINY_VLM).tokenizer
    assert tokens.convert_ids_to_tokens(range(len(old))) == old


def test_packed_questions_see_the_text_and_themselves_only():
    """A question's logits are those that it has alone, behind its text."""
    rng = Random(4)
    text = texts.niah(rng, 200, keys=4)
    model = AutoModelForImageTextToText.from_pretrained(TINY_VLM, dtype=torch.float32).eval()
    packed = reading.pack([text], rng, 3)
    with torch.no_grad():
        states = recall.forward(model, packed, packed.visible())[-1][0]
        for segment in (1, 2, 3):
            own = (packed.segments[0] == 0) | (packed.segments[0] == segment)
            ids = packed.ids[0, own][None]
            alone = model.model.language_model(input_ids=ids).last_hidden_state[0]
            torch.testing.assert_close(states[own], alone, rtol=1e-3, atol=1e-3)


def test_repeated_subjects_point_at_their_earlier_places():
    rng = Random(8)
    for _ in range(20):
        text = reading.draw_text("count", rng, 400)
        ids = reading.encode(text.before)
        found = reading.repeats("count", ids)
        assert str(sum(places == (at,) for at, places in found)) == text.queries[0].outputs[0]
        assert all(ids[at] == ids[p] and p <= at for at, places in found for p in places)


@pytest.mark.parametrize("kind", [kind for kind in texts.KINDS if kind != "count"])
def test_lessons_point_at_the_words_that_answer(kind):
    """Following the wanted attention by hand gives the answer: key, what holds it, its word."""
    rng, words = Random(6), build.vocabulary()
    for _ in range(10):
        text = reading.draw_text(kind, rng, 400)
        packed = reading.pack([text], rng, 4)
        ids, bound = packed.ids[0].tolist(), dict(packed.binds[0])
        wanted = dict(zip(packed.at.tolist(), packed.wanted.tolist(), strict=True))
        assert packed.looks[0]
        for at, places in packed.looks[0]:
            right = {token for token in wanted[at] if token >= 0}
            held = {ids[bound[p]] if kind in reading.ECHOED else ids[p] for p in places}
            assert held == right
        for _, at, key in packed.fetch.tolist():
            asked = words[ids[key]]
            assert any(asked == q.key or asked in q.outputs for q in text.queries)
            assert key <= at


def test_partial_views_hide_text_from_answers_only():
    rng = Random(7)
    packed = reading.pack([reading.draw_text("niah", rng, 300) for _ in range(12)], rng, 4)
    seen = packed.visible()
    cut = recall.partial(packed, seen, torch.Generator().manual_seed(1))
    assert not (cut & ~seen).any()
    assert torch.equal(cut[~packed.lasts], seen[~packed.lasts])
    lost = (seen & ~cut).sum(-1)[packed.lasts]  # [tokens of answers]
    assert 0.1 < (lost > 0).float().mean() < 0.6
    assert cut.diagonal(dim1=1, dim2=2).logical_or(~packed.lasts).all()


def test_answers_in_any_order_look_back_at_what_they_said():
    rng = Random(9)
    packed = reading.pack([reading.draw_text(reading.SEVERAL, rng, 300)], rng, 1)
    ids, wanted = packed.ids[0].tolist(), dict(zip(packed.at.tolist(), packed.wanted, strict=True))
    before, after = packed.said[0][:-4], packed.said[0][-4:]
    assert all(places == (at,) for at, places in before)
    assert [len(places) for _, places in after] == [1, 2, 3, 4]
    for at, places in after:
        assert places[-1] == at
        assert not {ids[place] for place in places} & set(wanted[at].tolist())


def test_packed_hints_measure_attention():
    """Against a softmax written out by hand."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    wanted, visible = torch.zeros(2, 1, 2, 5, dtype=torch.bool)
    wanted[0, 0, 1] = True
    visible[0, 0, [0, 1, 3]] = True
    hint = attention_hints.PackedHint(7, (2,), torch.tensor([[3, -1]]), wanted, visible)
    logits = (key[0, 1] @ query[0, 2, 3]) * 0.5  # head 2 of 4 reads KV head 1 of 2
    share = logits[[0, 1, 3]].softmax(0)[1]
    loss = attention_hints._packed_loss(hint, query, key, 0.5)
    torch.testing.assert_close(loss, -share.log())
