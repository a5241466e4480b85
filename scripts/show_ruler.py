"""Print one RULER sample of each task, shortened in the middle.

    python -m scripts.show_ruler --length 4096 --tokenizer path/of/a/model

Without --tokenizer that of scripts/bench_ruler.py is trained, which takes a few seconds.
"""

from __future__ import annotations

import argparse

from transformers import AutoTokenizer

from harness.errors import UserError
from harness.scoring import generators
from harness.scoring.ruler.tasks import TASKS, Ruler
from scripts.bench_ruler import byte_level


def show(name: str, tokenizer: object, length: int, seed: int, width: int) -> str:
    """A sample as text: its length, its prompt with `width` characters at each end, its answers."""
    options = {**Ruler.defaults, "task": name, "length": length, "samples": 1}
    missing = generators.needs_hub({"generator": "ruler", **options})
    if missing:
        return f"needs {missing}, a download"
    try:
        row = next(Ruler().rows(options, tokenizer, seed))
    except UserError as error:
        return str(error)
    prompt, end = row["input"], row["context_end"]
    question = prompt[end:]
    context = prompt[:end]
    if end > 2 * width:
        cut = f" [... {end - 2 * width:,} characters ...] "
        context = context[:width] + cut + context[-width:]
    return (
        f"{row['length']:,} of {length:,} tokens\n{context}<context ends>{question}"
        f"<assistant>{row['answer_prefix']}\n=> {', '.join(row['outputs'])}"
    )


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sample")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--tokenizer", help="folder or hub id of a model; default: trained here")
    parser.add_argument("--width", type=int, default=400, help="characters at each end")
    args = parser.parse_args()
    given = args.tokenizer
    tokenizer = AutoTokenizer.from_pretrained(given) if given else byte_level()
    for name in TASKS:
        text = show(f"ruler_{name}", tokenizer, args.length, args.seed, args.width)
        print(f"== ruler_{name}: {text}\n")


if __name__ == "__main__":
    main()
