"""What the server allows: every limit in one place, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class ServeSettings:
    """Defaults suit one model on one machine. `vlmtune serve --help` shows those that a command line can change."""

    max_batch: int = 64
    """Images in one prefix tree. 1 answers every request by itself."""
    max_batch_tokens: int = 8192
    """Tokens in one tree, whatever the number of images: what bounds the memory of a batch."""
    max_wait_s: float = 0.002
    """How long a batch waits for images that are being decoded at that moment; an idle server never waits."""
    max_requests: int = 256
    """Requests accepted and not yet answered; the next one gets 429."""
    max_generations: int = 4
    """Batches of open answers that are written side by side."""
    max_body_bytes: int = 20 * MIB
    max_buffered_bytes: int = 256 * MIB
    """All request bodies together; beyond it 429."""
    max_pixels: int = 25_000_000
    """Of one image, read from its header before anything is decoded. Phones make 12 or 24 million."""
    max_images: int = 8
    """In one chat request."""
    max_labels: int = 2000
    max_text_chars: int = 20_000
    """All text of one request, its labels included."""
    max_prompt_tokens: int = 8192
    max_new_tokens: int = 1024
    max_header_bytes: int = 64 * 1024
    header_timeout_s: float = 10.0
    """For the request's headers to arrive."""
    body_timeout_s: float = 20.0
    """For its body to arrive."""
    request_timeout_s: float = 120.0
    """From a complete request to a complete answer."""
    shutdown_timeout_s: float = 60.0
    """For accepted requests to be answered after SIGTERM."""
    max_connections: int = 1024
    decode_threads: int = 2
    """Images decoded at once: with `max_pixels`, what bounds the memory of decoding."""
    max_cached_prompts: int = 16
    """Label lists and system prompts whose shared prefix stays in memory; the least recently used one goes first."""
    allow_urls: bool = False
    """Fetch images from public web addresses."""
    api_key: str | None = None
    """If set, /v1 and /metrics require `Authorization: Bearer KEY`."""
