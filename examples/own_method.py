"""A method of one's own, written here and used without registering it, beside SnapKV.

The engine and `harness.evict` take policy objects, so a class with `measure` is enough. It needs no
network and takes about ten seconds on a CPU, nearly all of it imports.
"""

import io
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from PIL import Image
from torch import Tensor

import methods
from harness.embedded import MMBENCH_MINI, TINY_VLM
from harness.engine import Branch, Engine, Generation
from harness.models.loading import load


@dataclass(frozen=True, kw_only=True)
class SmallKeys(methods.Policy):
    """Keep the tokens whose keys are short."""

    name: ClassVar[str] = "small_keys"

    def measure(self, view: methods.LayerView) -> Tensor:  # float32 [B, Hkv, L], larger = keep
        return -view.keys.float().norm(dim=-1)


row = pd.read_parquet(MMBENCH_MINI / "en").set_index("index").loc[8]
picture = Image.open(io.BytesIO(row["image"]["bytes"]))
content = [{"type": "image", "url": picture}, {"type": "text", "text": row["question"]}]

loaded = load(str(TINY_VLM))
prompt = loaded.prompt([{"role": "user", "content": content}])
policies = SmallKeys(), methods.build("snapkv", window=4)
branches = [Branch(policy, ratio=0.8) for policy in policies]
results = Engine(loaded).run(prompt, branches, Generation(max_new_tokens=1), trace=True)
print(f"{row['question']} Each head keeps {results[0].kept_tokens:g} tokens of the prompt.")
most = [{i for i, share in enumerate(r.kept_shares) if share > 0.5} for r in results]
for policy, kept in zip(policies, most, strict=True):
    words = [results[0].shown.tokens[i] for i in sorted(kept) if not prompt.modality[i]]
    print(f"{policy.name}: most heads keep {len(kept)} tokens, of the text {words}")
print(f"both: {len(most[0] & most[1])} tokens")
