"""The signatures of `slmx models …`."""

from __future__ import annotations

from typing import Annotated

import typer

from slmx import options
from slmx.group import Group

app = Group("models", "The catalogue, and models in the terminal.")


@app.callback()
def group() -> None:
    """The catalogue, and models in the terminal."""


@app.command("chat")
def chat(
    model: Annotated[
        str,
        typer.Argument(
            help="A preset, a folder (such as a training's --save-dir) or a Hub id.",
            autocompletion=options.preset_names("models"),
        ),
    ],
    system: Annotated[str, typer.Option("--system", help="What the model is told first.")] = "",
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens an answer may have.")] = 256,
    chat_template: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the model's chat template.", show_default="if it has one"),
    ] = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Talk to a model: it answers as it writes. In a pipe, each line is a question and each answer a line.

    /reset begins anew, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer, and once more leaves. A model without a chat
    template writes on what it is given.

    Example: `slmx models chat smollm2-360m-instruct --system "Answer in one sentence."`
    """
    from slmx import settings
    from slmx.models import chat_terminal
    from slmx.models.chat import open_conversation

    known = settings.load_with_hub_token()
    chat_terminal.talk(
        lambda listen: open_conversation(
            model,
            system=system,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            chat=chat_template,
            seed=known.seed if seed is None else seed,
            device=device or known.device,
            dtype=dtype or known.dtype,
            listen=listen,
        )
    )
