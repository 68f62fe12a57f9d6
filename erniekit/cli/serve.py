"""`erniekit serve`: a small server with OpenAI's API, to try a model."""

import functools
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from erniekit.serving.service import ChatService

Host = Annotated[
    str,
    typer.Option(
        "--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0: all addresses of this machine."
    ),
]
Port = Annotated[
    int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on; 0: any free port.")
]
Name = Annotated[
    str,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Model name in requests. Default: the directory's name.",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar="ERNIEKIT_API_KEY",
        help="API key that clients must send as a bearer token. Visible in the list of processes: prefer the variable.",
        show_default=False,
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", metavar="FILE", help="File that holds the API key.", show_default=False),
]
AllowUrls = Annotated[
    bool,
    typer.Option(
        "--allow-urls", help="Fetch images and videos from http(s) URLs in requests, at public addresses."
    ),
]
AllowPrivateUrls = Annotated[
    bool,
    typer.Option(
        "--allow-private-urls",
        help="Like --allow-urls, but also from this machine and private networks, which clients can then reach.",
    ),
]
Cors = Annotated[
    list[str] | None,
    typer.Option(
        "--cors",
        metavar="ORIGIN",
        help="Origin of web pages that may use the server, such as http://localhost:3000; *: all. Can be repeated.",
        show_default=False,
    ),
]
Commands = Annotated[
    bool,
    typer.Option(
        "--commands", help="Print the commands that serve the model in vLLM and FastDeploy, and exit."
    ),
]


def on_command_line(context: typer.Context, name: str) -> bool:
    """Whether a parameter is given on the command line, not by an environment variable."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def serve(
    context: typer.Context,
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = "",
    api_key: ApiKey = "",
    api_key_file: ApiKeyFile = None,
    allow_urls: AllowUrls = False,
    allow_private_urls: AllowPrivateUrls = False,
    cors: Cors = None,
    commands: Commands = False,
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
    """Serve a model through an OpenAI-compatible API (/v1/chat/completions), to try it out.

    Supports streaming, images and videos as data: URIs, tools, reasoning and usage. Generates one answer at a time.
    The sampling options are defaults for requests. Ctrl-C stops the server. For production, use the vLLM and FastDeploy
    commands that it prints.

    Examples:

    \b
      erniekit serve runs/digits
      erniekit serve exports/ernie --port 9000 --name ernie --temperature 0.8 --top-p 0.8
      erniekit serve exports/ernie --cors http://localhost:3000
      erniekit serve exports/ernie --host 0.0.0.0 --api-key-file key.txt
      erniekit serve exports/ernie --commands
    """
    from erniekit.generation.load import find_model
    from erniekit.serving.engines import command_lines, engine_commands

    source = find_model(model)
    encoder = source.encoder(template)
    production = command_lines(engine_commands(model, source, encoder.template))
    if commands:
        typer.echo("\n".join(production))
        return

    from erniekit.data.media.access import MediaAccess
    from erniekit.generation.detokenizer import Detokenizer
    from erniekit.generation.sampling import Sampling
    from erniekit.runtime import compute_dtype, configure
    from erniekit.serving.access import read_key
    from erniekit.serving.cors import parse_origins
    from erniekit.serving.server import listen
    from erniekit.serving.service import ChatService

    computed = compute_dtype(dtype, configure(device, threads, seed=0))
    defaults = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
    )
    shown = name or model.resolve().name
    key, origins = read_key(api_key, api_key_file), parse_origins(cors or ())
    listener = listen(host, port)
    detokenizer = Detokenizer.from_checkpoint(source.directory)
    access = MediaAccess("any" if allow_private_urls else "public" if allow_urls else "none")
    service = ChatService(shown, source.load(computed), encoder, detokenizer, defaults, access=access)
    typer.echo(f'{source.title} as "{shown}": template {encoder.template.name}')
    visible = on_command_line(context, "api_key")
    _run(listener, service, production, key=key, key_on_command_line=visible, origins=origins)


def _run(
    listener: socket.socket,
    service: "ChatService",
    production: Sequence[str],
    *,
    key: str,
    key_on_command_line: bool,
    origins: Sequence[str],
) -> None:
    """Prints how to use the server and the commands for production, and runs it until Ctrl-C."""
    from erniekit.serving.access import access_notes
    from erniekit.serving.app import make_app
    from erniekit.serving.server import curl_command, listens_locally, run_server, server_url

    url, log = server_url(listener), functools.partial(typer.echo, err=True)
    typer.echo("\n".join(["try it:", f"  {curl_command(url, service.name, key)}", *production]))
    address = listener.getsockname()[0]
    for note in access_notes(address, key, origins, on_command_line=key_on_command_line):
        typer.echo(f"warning: {note}")
    typer.echo(f"listening on {url}/v1; Ctrl-C stops it")
    local_only = not key and listens_locally(listener)
    app = make_app(service, api_key=key, local_only=local_only, cors_origins=origins, log=log)
    run_server(listener, app, service, log)
