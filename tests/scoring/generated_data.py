"""Tokenizers, and local texts in the real form of the sources, for the tests of generated tasks."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.scoring import generators
from harness.scoring.ruler.words import listed
from harness.settings.config import EMBEDDED
from scripts.bench_ruler import byte_level

TOKENIZERS = ("bpe", "bpe_chat", "bytes", "words", "tiny_vlm")


@cache
def tokenizer(name: str) -> Any:
    """bpe, the same with a chat template, a token a byte, a token a word, the embedded model's."""
    if name == "tiny_vlm":
        return AutoTokenizer.from_pretrained(EMBEDDED / "tiny_vlm")
    if name == "words":
        core = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    if name == "bytes":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        core = Tokenizer(models.BPE({c: i for i, c in enumerate(["<s>", *sorted(alphabet)])}, []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
        return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    made = byte_level(2048, 12)
    if name == "bpe_chat":
        made.chat_template = (
            "<|im_start|>system\nYou are helpful.<|im_end|>\n{% for m in messages %}<|im_start|>"
            "{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
        )
    return made


def essays(folder: Path, sentences: int = 900) -> str:
    """A folder of text files as the essays are: sentences, line breaks, abbreviations."""
    rng = random.Random(1)
    folder.mkdir(parents=True)
    for number in range(3):
        text = []
        for place in range(sentences // 3):
            words = rng.sample(listed("noun"), rng.randint(4, 14))
            text.append(f"The {' '.join(words)}{rng.choice('.....?!')}")
            text += ["As Mr. Smith said, e.g. then."] if place % 40 == 0 else []
        lines = " ".join(text).replace(" said, ", " said,\n")
        (folder / f"essay_{number}.txt").write_text(lines)
    return str(folder)


def squad(path: Path, articles: int = 12) -> str:
    """SQuAD 2.0's schema: articles of three paragraphs, two questions each, one impossible."""
    rng = random.Random(2)
    data = []
    for article in range(articles):
        paragraphs = []
        for part in range(3):
            answers = [f"person {article}{part}", f"the person {article}{part}"]
            filler = " ".join(rng.sample(listed("noun"), 30))
            context = f"Paragraph {part} of {article}. {filler}. It was {answers[1]} who came."
            starts = [context.index(answer) for answer in answers]
            found = [{"text": a, "answer_start": s} for a, s in zip(answers, starts, strict=True)]
            asked = {"question": f"Who came in {article}{part}?", "id": f"{article}-{part}"}
            qas = [
                {**asked, "answers": found, "is_impossible": False},
                {"question": "Who left?", "id": "x", "answers": [], "is_impossible": True},
            ]
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"Article {article}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return str(path)


def hotpotqa(path: Path, questions: int = 12) -> str:
    """HotpotQA's schema (distractor): ten titled documents a question, two of them support it."""
    rng = random.Random(3)
    rows = []
    for number in range(questions):
        texts = [
            [f"Title {number}-{i}", [f"Fact {number}-{i} is", f" {rng.choice(listed('noun'))}."]]
            for i in range(10)
        ]
        texts[4][1].append(f" The bridge is called bridge {number}.")
        facts = [[texts[4][0], 2], [texts[5][0], 0]]
        row = {"_id": str(number), "question": f"Which bridge is {number}?", "level": "hard"}
        answer = {"answer": f"bridge {number}", "supporting_facts": facts, "type": "bridge"}
        rows.append({**row, **answer, "context": texts})
    path.write_text(json.dumps(rows))
    return str(path)


def sources(folder: Path) -> dict[str, str]:
    """Local copies of all sources."""
    return {
        "essays": essays(folder / "essays"),
        "squad": squad(folder / "squad.json"),
        "hotpotqa": hotpotqa(folder / "hotpotqa.json"),
    }


OPTIONS = {"generator": "ruler", "task": "ruler_niah_single_1", "length": 512, "samples": 3}


def prepare(fingerprint: str = "f" * 64, seed: int = 42, **options: Any) -> Path:
    """The folder of generated RULER data."""
    chosen = {**OPTIONS, **options}
    return generators.prepare("ruler", chosen, tokenizer("bpe"), fingerprint, seed, progress=False)
