"""What a transformer writes: a few tokens after a beginning, for the log. (`slmx models chat` talks to a saved one.)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from slmx.train.transformer import Transformer

LENGTH = 80  # tokens
TEMPERATURE = 0.8


@torch.no_grad()
def write(model: Transformer, begin: Sequence[int], tokenizer: Path, *, stop: int | None, seed: int) -> str:
    """The text of up to LENGTH sampled tokens after `begin`, to the end-of-text `stop`; the same for the same seed.

    Args:
        tokenizer: a folder with tokenizer.json.
    """
    from tokenizers import Tokenizer

    ids = list(begin)
    random = torch.Generator().manual_seed(seed)
    for _ in range(LENGTH):
        tokens = torch.tensor([ids[-model.shape.context :]], device=model.cos.device)
        logits = model(tokens)[0, -1].float().cpu()
        picked = int(torch.multinomial((logits / TEMPERATURE).softmax(-1), 1, generator=random))
        if picked == stop:
            break
        ids.append(picked)
    known = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    text: str = known.decode(ids, skip_special_tokens=True)
    return text
