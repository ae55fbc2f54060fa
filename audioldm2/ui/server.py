"""Starts the page: where it listens, where its files lie, and what it refuses before Gradio sees it."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from audioldm2.files import remove_drafts
from audioldm2.ops import trial_file
from audioldm2.ui.components import Page
from audioldm2.ui.limits import Limits

LARGEST_BODY = 4_000_000  # bytes of a request that is no upload
FORM = 100_000  # bytes that surround an upload
SESSIONS = 1000  # whose earlier sounds are kept in memory
LOCAL = ("127.0.0.1", "localhost", "::1")
VARIABLE = "GRADIO_TEMP_DIR"
# The system's fonts: the default theme fetches fonts from the web.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
STYLE = """
#title h1 { margin-bottom: 0 }
#earlier label { width: 100% }
.ends-level { align-items: flex-end }
.entry label.container, .entry .container { height: 100% }
footer { margin-top: 0.5rem }
"""


class Guard:
    """Refuses bodies that are too large, and web addresses that Gradio would fetch for a client."""

    def __init__(self, app: Callable[..., Any], upload_bytes: int):
        self.app, self.upload_bytes = app, upload_bytes

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        refusal = self.refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def refusal(self, scope: dict[str, Any]) -> PlainTextResponse | None:
        path, headers = scope["path"], dict(scope["headers"])
        if "file=" in path and "://" in path.partition("file=")[2]:
            return PlainTextResponse("This server fetches no files from the web.", 403)
        if scope["method"] in ("GET", "HEAD"):
            return None
        length = headers.get(b"content-length", b"").decode("latin-1")
        if b"transfer-encoding" in headers or not length.isdigit():
            return PlainTextResponse("The request has to say how long it is (Content-Length).", 411)
        most = self.upload_bytes if path.rstrip("/").endswith("/upload") else LARGEST_BODY
        if int(length) > most:
            words = f"The request has {int(length):,} bytes; it has to have at most {most:,}."
            return PlainTextResponse(words, 413)
        return None


@contextmanager
def files() -> Iterator[Path]:
    """A folder for uploads and sounds, deleted at the end; those that killed servers left are deleted first.

    It lies in the user's cache folder. Gradio finds it by an environment variable, which is restored.
    """
    parent = trial_file.path().parent / "ui"
    parent.mkdir(parents=True, exist_ok=True)
    remove_drafts(parent)
    home = parent / f".audioldm2-{os.getpid()}-{secrets.token_hex(4)}-page"
    home.mkdir(mode=0o700)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(home)
    try:
        yield home
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
        shutil.rmtree(home, ignore_errors=True)


def launch(page: Page, limits: Limits, *, host: str, port: int, share: bool) -> str:
    """Serve a page from threads of its own; returns its address. OSError where the port is taken."""
    page.queue(max_size=limits.waiting, default_concurrency_limit=1, api_open=False)
    upload = int(limits.upload_mb * 1e6)
    guard = Middleware(Guard, upload_bytes=upload + FORM)  # type: ignore[arg-type]
    _, local, public = page.launch(
        server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True,
        show_error=False, max_file_size=upload, app_kwargs={"middleware": [guard]},
        state_session_capacity=SESSIONS, footer_links=["api", "settings"], run_history=False,
        ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
        theme=gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", **FONTS), css=STYLE,
    )  # fmt: skip
    return public or local
