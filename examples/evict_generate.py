"""One question about a picture, answered with the full cache and with nine tenths of it evicted.

Shows `harness.evict` around the `generate` of a plain transformers model. It needs no network and
takes about ten seconds on a CPU, nearly all of it imports.
"""

import io

import pandas as pd
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import harness
from harness.embedded import MMBENCH_MINI, TINY_VLM

ASK = "Answer with the option's letter from the given choices directly."

row = pd.read_parquet(MMBENCH_MINI / "en").set_index("index").loc[8]
options = "\n".join(f"{letter}. {row[letter]}" for letter in "ABCD")
text = f"{row['question']} There are several options:\n{options}\n\n{ASK}"
picture = Image.open(io.BytesIO(row["image"]["bytes"]))
content = [{"type": "image", "url": picture}, {"type": "text", "text": text}]

model = AutoModelForImageTextToText.from_pretrained(TINY_VLM, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(TINY_VLM)
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)

ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(f"{text}\n\nright answer: {row['answer']}\nfull cache: {processor.decode(ids[0, -1])}")
for method in ("restkv", "streaming_llm"):
    with harness.evict(model, method, ratio=0.9):
        ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    print(f"{method}, 90 % evicted: {processor.decode(ids[0, -1])}")
