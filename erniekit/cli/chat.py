"""`erniekit chat`: chat with a model in the terminal."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.cli.options import (
    Device,
    Dtype,
    MaxNewTokens,
    MinP,
    Model,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    Template,
    Threads,
    TopK,
    TopP,
)


def chat(
    model: Model,
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="System message.")] = "",
    tools: Annotated[
        Path | None,
        typer.Option(
            "--tools",
            metavar="FILE",
            help="JSON list of the tools that the model may call. You enter their results.",
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 1024,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    template: Template = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Chat with a model in the terminal, or with messages from a file.

    Answers are streamed, with reasoning dimmed. /image FILE and /video FILE attach to the next message, /save FILE
    appends the chat to a training file; /help lists all commands. Ctrl-C ends an answer, Ctrl-D the chat.

    Examples:

    \b
      erniekit chat runs/digits
      erniekit chat exports/ernie --system "Be brief." --temperature 0.8 --top-p 0.8
      erniekit chat runs/calls --tools tools.json
      printf '/image seven.png\\nWhich digit is this?\\n' | erniekit chat runs/digits
    """
    from erniekit.runtime import compute_dtype, configure

    computed = compute_dtype(dtype, configure(device, threads, seed=0))

    from rich.console import Console

    from erniekit.chat.console import ChatConsole, line_reader
    from erniekit.chat.session import Chat, load_tools
    from erniekit.generation.detokenizer import Detokenizer
    from erniekit.generation.load import find_model
    from erniekit.generation.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
    )
    functions = load_tools(tools) if tools is not None else ()
    source = find_model(model)
    encoder, detokenizer = source.encoder(template), Detokenizer.from_checkpoint(source.directory)
    session = Chat(source.load(computed), encoder, detokenizer, sampling, functions)
    session.set_system(system)
    typer.echo(f"{source.title}: template {encoder.template.name}; /help lists the commands")
    ChatConsole(session, Console(), line_reader()).run()
