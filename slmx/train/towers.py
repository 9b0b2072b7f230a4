"""The encoder that is trained: texts in, vectors with gradients out, the same at every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from slmx.errors import SlmxError, UsageError
from slmx.models.catalogue import require_weight_files
from slmx.models.encoders import Encoder, Role, load_folder
from slmx.models.quiet import no_bars
from slmx.train.losses import Similarity

POOLINGS = ("mean", "cls", "max")


class Tower:
    """A sentence-transformers model in training.

    Args:
        folder: the model's folder (see `slmx.models.encoders.resolve`).
        device: a torch device.
        dtype: what matrices are multiplied in; weights, pooling and similarity stay fp32.
        pooling: mean, cls or max instead of the model's own; "" keeps it.
        query_prompt, passage_prompt: put before the texts, and kept in the trained model; "": the model's own.
        query_length, passage_length: tokens of a text that are read in training, no more than the model reads (None).

    Raises:
        UsageError: a length above the model's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        pooling: str = "",
        query_prompt: str = "",
        passage_prompt: str = "",
        query_length: int | None = None,
        passage_length: int | None = None,
    ) -> None:
        settings = Encoder(folder, device="cpu", query_prompt=query_prompt, passage_prompt=passage_prompt)
        self.prompts = settings.prompts
        self.similarity: Similarity = settings.similarity
        self.device, self.dtype = device, dtype
        self.model: Any = load_model(folder, device)
        if pooling:
            set_pooling(self.model, pooling)
        own = self.model.max_seq_length or 512
        for option, asked in (("--max-query-length", query_length), ("--max-passage-length", passage_length)):
            if asked and asked > own:
                raise UsageError(
                    f"{option} {asked} is more than the {own} tokens of a text that {folder} reads.",
                    hint=f"Give {own} or less, or leave it out.",
                )
        self._tokenizer: Any = self.model[0].tokenizer
        inner = self._tokenizer.backend_tokenizer
        self._tokenizing, self._cut, self._filled = Lock(), inner.truncation, inner.padding
        self.lengths: dict[Role, int] = {
            "query": query_length or own,
            "passage": passage_length or own,
        }
        self.model.similarity_fn_name = self.similarity
        if any(self.prompts.values()):
            self.model.prompts = {"query": self.prompts["query"], "document": self.prompts["passage"]}
            if self.model.default_prompt_name not in self.model.prompts:  # the folder would not load
                self.model.default_prompt_name = None
        self.model.train()
        for module in self.model.modules():  # a piece has few of all words: their gradients alone are added up
            if isinstance(module, torch.nn.Embedding) and device.type == "cpu":
                module.sparse = True

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        found: int = self.model.get_embedding_dimension()
        return found

    def tokenize(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """The tokens of texts as the model reads them: with the role's prompt, special tokens, cut to its length."""
        if not texts:
            return []
        asked = [self.prompts[role] + text for text in texts]
        with self._tokenizing:  # its settings are the tokenizer's own: two threads at once would mix them up
            told = self._tokenizer(
                asked,
                truncation=True,
                max_length=self.lengths[role],
                return_attention_mask=False,
                return_token_type_ids=False,
            )
        found: list[list[int]] = told["input_ids"]
        return found

    def pad(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Tokens of texts as what the model takes: tensors of shape (texts, longest), on the processor."""
        import numpy as np

        shape = (len(rows), max(map(len, rows)))
        ids, mask = np.full(shape, self._tokenizer.pad_token_id or 0), np.zeros(shape, dtype=np.int64)
        for number, row in enumerate(rows):
            place = slice(shape[1] - len(row), None) if self._tokenizer.padding_side == "left" else slice(len(row))
            ids[number, place], mask[number, place] = row, 1
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if "token_type_ids" in self._tokenizer.model_input_names:
            features["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
        return features

    def embed(self, features: Mapping[str, torch.Tensor], seed: int) -> torch.Tensor:
        """The vectors of padded texts, fp32, shape (texts, dimension), with the dropout of a seed.

        Within `precision()`, where the number type is not fp32.
        """
        torch.manual_seed(seed)
        out = self.model[0]({key: value.to(self.device, non_blocking=True) for key, value in features.items()})
        out["token_embeddings"] = out["token_embeddings"].float()
        with torch.autocast(self.device.type, enabled=False):
            for module in list(self.model.children())[1:]:
                out = module(out)
        vectors: torch.Tensor = out["sentence_embedding"].float()
        return vectors

    def precision(self) -> AbstractContextManager[Any]:
        """Where texts are embedded: weights are brought to the number type once within it."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def save(self, folder: Path) -> None:
        """Write the model as a sentence-transformers folder, weights as safetensors.

        A call of the tokenizer leaves its lengths in it; they are put back, so that equal models have equal files.
        """
        inner = self._tokenizer.backend_tokenizer
        with no_bars(), self._tokenizing:
            for own, switch, off in (
                (self._cut, inner.enable_truncation, inner.no_truncation),
                (self._filled, inner.enable_padding, inner.no_padding),
            ):
                switch(**own) if own else off()
            self.model.save_pretrained(str(folder), create_model_card=False)

    def named_weights(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trained weights by name."""
        return ((name, one) for name, one in self.model.named_parameters() if one.requires_grad)


def load_model(folder: Path, device: torch.device) -> Any:
    """A sentence-transformers model in fp32; SlmxError when the folder is none, or one that cannot be trained here."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    require_weight_files(folder)
    hint = "Give a folder that sentence-transformers or save_pretrained wrote."
    model = load_folder(SentenceTransformer, folder, device=device, dtype=torch.float32, kind="text encoder", hint=hint)
    if not isinstance(model[0], Transformer) or not getattr(model[0].tokenizer, "is_fast", False):
        raise SlmxError(f"{folder} does not begin with a transformer; it cannot be trained here.")
    if any(model[0].tokenizer("a").get("token_type_ids", ())):
        raise SlmxError(f"{folder} marks parts of a single text by token types; it cannot be trained here.")
    return model


def set_pooling(model: Any, pooling: str) -> None:
    """Pool token vectors by mean, cls or max instead; UsageError for another name."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    from slmx.registry import unknown_name

    if pooling not in POOLINGS:
        raise unknown_name("pooling", pooling, POOLINGS)
    for place, module in enumerate(model.children()):
        if isinstance(module, Pooling):
            model[place] = Pooling(module.get_embedding_dimension(), pooling_mode=pooling)
            return
    raise UsageError("This model has no pooling of its own to replace.", hint="Leave out --pooling.")


def warm_start(model: Any, folder: Path) -> None:
    """Put the weights of another folder of the same architecture into a model.

    Raises:
        SlmxError: its weights have other names or shapes; the first that differs is named.
    """
    other = load_model(folder, torch.device("cpu")).state_dict()
    own = model.state_dict()
    for name in dict.fromkeys([*own, *other]):
        here, there = own.get(name), other.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = [("none" if one is None else "x".join(map(str, one.shape)) or "one") for one in (there, here)]
            raise SlmxError(
                f"{folder} has another architecture: {name} is {shapes[0]} there and {shapes[1]} in the model.",
                hint="Give its folder as --model, or a checkpoint of this model.",
            )
    model.load_state_dict(other)
