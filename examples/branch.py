"""One prompt through many cells: the engine reads it once, then branches into every cell.

Every method at every ratio and the full cache answer in one call, decoded as one batch. It needs no
network and takes about ten seconds on a CPU, nearly all of it imports.
"""

import io

import pandas as pd
from PIL import Image

import methods
from harness.embedded import MMBENCH_MINI, TINY_VLM
from harness.engine import Branch, Engine, Generation
from harness.models.loading import load

METHODS = ("restkv", "snapkv", "h2o", "tova", "streaming_llm", "lacache", "random")
RATIOS = (0.5, 0.8, 0.9, 0.95)
ASK = "Answer with the option's letter from the given choices directly."

row = pd.read_parquet(MMBENCH_MINI / "en").set_index("index").loc[8]
options = "\n".join(f"{letter}. {row[letter]}" for letter in "ABCD")
text = f"{row['question']} There are several options:\n{options}\n\n{ASK}"
picture = Image.open(io.BytesIO(row["image"]["bytes"]))
content = [{"type": "image", "url": picture}, {"type": "text", "text": text}]

loaded = load(str(TINY_VLM))
prompt = loaded.prompt([{"role": "user", "content": content}])
policies = [methods.build(name) for name in METHODS]  # one for all its ratios: measured once
branches = [Branch(policy, ratio=ratio) for policy in policies for ratio in RATIOS]
full, *cells = Engine(loaded).run(prompt, [Branch(), *branches], Generation(max_new_tokens=1))

print(f"{text}\n\nright answer: {row['answer']}\nfull cache: {full.text}")
print(f"{len(cells)} cells of the same {full.evictable_tokens} tokens, by evicted ratio:")
table = pd.DataFrame(index=METHODS, columns=RATIOS)
for branch, cell in zip(branches, cells, strict=True):
    table.loc[branch.policy.name, branch.ratio] = cell.text
print(table.to_string())
