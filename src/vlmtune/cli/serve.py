"""`vlmtune serve`: a model behind an HTTP API and a web page."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.console import stderr_console
from vlmtune.cli.options import LabelsOption, read_labels
from vlmtune.errors import MissingExtraError, UserError


def serve(
    model: Annotated[
        str, typer.Argument(help="A run, checkpoint, exported or model folder, a hub id, or builtin:tiny.")
    ],
    labels: LabelsOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What clients call the model. Default: the folder's name.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLMTUNE_API_KEY", help="Clients must send it. Better set in the environment.")
    ] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch images from public addresses.")] = False,
    examples: Annotated[Path | None, typer.Option(help="Folder of images to try on the page.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Images in one prefix tree; 1 does not batch.")] = 64,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="A batch waits so long for images being decoded.")] = 2.0,
    max_requests: Annotated[int, typer.Option(min=1, help="Accepted and unanswered; more get 429.")] = 256,
    max_body_mib: Annotated[float, typer.Option(min=0.001, help="Of one request.")] = 20.0,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Of one image.")] = 25.0,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="For one answer.")] = 120.0,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Serve a model: OpenAI-compatible chat, exact label probabilities, a page to try it, Prometheus metrics.

    Requests that arrive together are computed as one prefix tree. SIGTERM and Ctrl-C stop taking requests, finish
    what was accepted, and exit with 0.
    """
    for package in ("starlette", "uvicorn", "httptools", "orjson", "prometheus_client", "python_multipart"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--dtype {dtype}: expected auto, float32 or bfloat16.")
    from vlmtune.runs.open import open_adapted
    from vlmtune.serve.examples import example_images
    from vlmtune.serve.server import run_server
    from vlmtune.serve.service import Service
    from vlmtune.serve.settings import MIB, ServeSettings

    settings = ServeSettings(
        max_batch=max_batch,
        max_wait_s=max_wait_ms / 1000,
        max_requests=max_requests,
        max_body_bytes=round(max_body_mib * MIB),
        max_pixels=round(max_megapixels * 1e6),
        request_timeout_s=timeout_s,
        allow_urls=allow_urls,
        api_key=api_key,
    )
    service = Service(open_adapted(model, dtype=dtype), model, labels=read_labels(labels), name=name, settings=settings)
    images = example_images(service.prompts.labels, examples)

    def tell(url: str) -> None:
        console = stderr_console()
        console.print(f"{service.name} is served at {url} (page), {url}/v1 (API), {url}/docs", soft_wrap=True)
        if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
            console.print("Anybody who reaches this address may ask: no --api-key is set.", soft_wrap=True)

    run_server(service, host, port, examples=images, on_ready=tell)
