"""The encoder that is trained: texts in, vectors with gradients out, the same at every run.

A batch is cut into pieces of about the same number of tokens, sorted by length, so that little is computed on padding.
Before each piece the random numbers are set from (seed, step, piece): dropout depends on nothing else, which makes a
run that was interrupted equal to one that was not, and the two passes of the cached loss equal to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from slmx.errors import SlmxError, UsageError
from slmx.files import hash_value
from slmx.models.catalogue import require_weight_files
from slmx.models.encoders import Encoder, Role, load_folder, plan_batches
from slmx.models.quiet import no_bars
from slmx.train.losses import Similarity

POOLINGS = ("mean", "cls", "max")


class Piece(NamedTuple):
    """Some texts of one role, tokenized and padded, and the places of their vectors in the batch."""

    features: dict[str, Any]
    places: torch.Tensor
    number: int


class Tower:
    """A sentence-transformers model in training.

    Args:
        folder: the model's folder (see `slmx.models.encoders.resolve`).
        device: a torch device. bf16: multiply in bf16; weights, pooling and similarity stay fp32.
        pooling: mean, cls or max instead of the model's own; "" keeps it.
        query_prompt, passage_prompt: put before the texts, and kept in the trained model; "": the model's own.
        query_length, passage_length: tokens of a text that are read; None: what the model reads.
        piece_tokens: tokens a piece, padding counted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        bf16: bool = False,
        pooling: str = "",
        query_prompt: str = "",
        passage_prompt: str = "",
        query_length: int | None = None,
        passage_length: int | None = None,
        piece_tokens: int = 4096,
    ) -> None:
        settings = Encoder(folder, device="cpu", query_prompt=query_prompt, passage_prompt=passage_prompt)
        self.prompts = settings.prompts
        self.similarity: Similarity = settings.similarity
        self.device, self._bf16, self._piece_tokens = device, bf16, piece_tokens
        self.model: Any = load_model(folder, device)
        if pooling:
            set_pooling(self.model, pooling)
        own = self.model.max_seq_length or 512
        self._lengths: dict[Role, int] = {
            "query": min(query_length or own, own),
            "passage": min(passage_length or own, own),
        }
        self.model.similarity_fn_name = self.similarity
        if any(self.prompts.values()):
            self.model.prompts = {"query": self.prompts["query"], "document": self.prompts["passage"]}
        self.model.train()

    def pieces(self, texts: Sequence[str], role: Role, *, first: int = 0) -> list[Piece]:
        """Texts tokenized, sorted by length and padded in pieces; pieces are numbered from `first`."""
        import numpy as np

        tokenizer = self.model[0].tokenizer
        told = tokenizer([self.prompts[role] + text for text in texts], truncation=True, max_length=self._lengths[role])
        lengths = np.fromiter(map(len, told["input_ids"]), dtype=np.int64)
        pieces = []
        for number, rows in enumerate(plan_batches(lengths, self._piece_tokens), first):
            chosen = {key: [value[row] for row in rows] for key, value in told.items()}
            padded = tokenizer.pad(chosen, return_tensors="pt")
            features = {key: value.to(self.device) for key, value in padded.items()}
            pieces.append(Piece(features, torch.from_numpy(rows).to(self.device), number))
        return pieces

    def embed(self, piece: Piece, seed: int, step: int) -> torch.Tensor:
        """The vectors of a piece, fp32, shape (texts, dimension), with the dropout of (seed, step, piece)."""
        torch.manual_seed(int(hash_value([seed, step, piece.number])[:15], 16))
        with self._precision():
            out = self.model[0](dict(piece.features))
        out["token_embeddings"] = out["token_embeddings"].float()
        for module in list(self.model.children())[1:]:
            out = module(out)
        vectors: torch.Tensor = out["sentence_embedding"].float()
        return vectors

    def backward(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        seed: int,
        step: int,
        cached: bool,
    ) -> float:
        """Add the gradients of a loss over the batch's vectors to the weights; returns the loss.

        `cached` computes the vectors twice and holds the activations of one piece at a time (GradCache, Gao et al.
        2021): memory does not grow with the batch, and the gradients are those of the plain way. Nothing is added where
        the loss is not finite.
        """
        asked = self.pieces(queries, "query")
        found = self.pieces(passages, "passage", first=len(asked))
        with torch.no_grad() if cached else nullcontext():
            vectors = [[self.embed(piece, seed, step) for piece in side] for side in (asked, found)]
        if cached:
            vectors = [[one.requires_grad_() for one in side] for side in vectors]
        joined = [_in_order(side, pieces) for side, pieces in zip(vectors, (asked, found), strict=True)]
        loss = loss_of(joined[0], joined[1])
        if not torch.isfinite(loss):
            return float(loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        if cached:
            for piece, before in zip([*asked, *found], [*vectors[0], *vectors[1]], strict=True):
                self.embed(piece, seed, step).backward(before.grad)  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self._bf16 else nullcontext()

    def save(self, folder: Path) -> None:
        """Write the model as a sentence-transformers folder, weights as safetensors."""
        with no_bars():
            self.model.save_pretrained(str(folder), create_model_card=False)

    def named_weights(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trained weights by name."""
        return ((name, one) for name, one in self.model.named_parameters() if one.requires_grad)


def _in_order(vectors: Sequence[torch.Tensor], pieces: Sequence[Piece]) -> torch.Tensor:
    """The vectors of all pieces in the order of the texts."""
    places = torch.cat([piece.places for piece in pieces])
    return torch.cat(list(vectors))[torch.argsort(places)]


def load_model(folder: Path, device: torch.device) -> Any:
    """A sentence-transformers model in fp32; SlmxError when the folder is none, or one that cannot be trained here."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    require_weight_files(folder)
    hint = "Give a folder that sentence-transformers or save_pretrained wrote."
    model = load_folder(SentenceTransformer, folder, device=device, dtype=torch.float32, kind="text encoder", hint=hint)
    if not isinstance(model[0], Transformer) or not getattr(model[0].tokenizer, "is_fast", False):
        raise SlmxError(f"{folder} does not begin with a transformer; it cannot be trained here.")
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
