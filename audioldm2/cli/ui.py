"""`audioldm2 ui`: a page in the browser, its queue, and its API."""

import threading
from collections.abc import Sequence
from functools import partial

import audioldm2
from audioldm2.checkpoints import hub
from audioldm2.cli.arguments import Parser, new_parser, nonempty, number, whole_number
from audioldm2.cli.failures import in_words
from audioldm2.cli.streams import print_result, report
from audioldm2.errors import require_number, require_whole
from audioldm2.ui.limits import Limits

INTERRUPTED = 130
OUT_OF_MEMORY = "Ask for a shorter sound or fewer candidates, or start with --offload or --dtype float16."

DESCRIPTION = """\
Open a page in the browser that makes sounds, speech, and new sounds from your own. It needs Gradio:
pip install "gradio>=6"."""

EPILOG = """\
examples:
  audioldm2 ui                                      the demo model, at http://127.0.0.1:7860
  audioldm2 ui --model ./base --host 0.0.0.0        for everyone who can reach this computer

One request runs at a time, the others wait in a queue. The page is an API too: see audioldm2/ui/README.md.
Ctrl-C ends the page and deletes its files: download what you want to keep.

exit codes: 130 Ctrl-C; 2 error.
"""


def parser() -> Parser:
    made = new_parser("audioldm2 ui", DESCRIPTION, epilog=EPILOG)
    limits = Limits()
    # fmt: off
    add = made.add_argument
    add("--model", type=nonempty, metavar="NAME", default=hub.DEMO,
        help="folder, .pth file or hub id; the page offers the demo and published models too (default: demo)")
    add("--host", default="127.0.0.1", metavar="NAME",
        help="the address to listen on; 0.0.0.0 for all of this computer's (default: %(default)s)")
    add("--port", type=whole_number, default=7860, metavar="N",
        help="the port to listen on (default: %(default)s)")
    add("--share", action="store_true", help="make a public link through Gradio's servers, for a week")
    add = made.add_argument_group("limits of a request").add_argument
    add("--max-duration", dest="seconds", type=number, default=limits.seconds, metavar="S",
        help="seconds of a sound, also of an uploaded one (default: %(default)g)")
    add("--max-steps", dest="steps", type=whole_number, default=limits.steps, metavar="N",
        help="denoising steps (default: %(default)s)")
    add("--max-candidates", dest="candidates", type=whole_number, default=limits.candidates, metavar="N",
        help="sounds per prompt (default: %(default)s)")
    add("--max-upload", dest="upload_mb", type=number, default=limits.upload_mb, metavar="MB",
        help="size of an uploaded file (default: %(default)g)")
    add("--queue", dest="waiting", type=whole_number, default=limits.waiting, metavar="N",
        help="requests that may wait while one runs; more are refused (default: %(default)s)")
    add = made.add_argument_group("more about the model").add_argument
    add("--device", default="auto", metavar="NAME",
        help="cpu, cuda, cuda:1, mps (default: %(default)s, a GPU if there is one)")
    add("--dtype", default="auto", metavar="NAME",
        help="float32, float16, bfloat16 (default: %(default)s, float16 on CUDA, the faster one on a CPU)")
    memory = made.add_mutually_exclusive_group()
    memory.add_argument("--offload", action="store_true", help="keep only the running network on the GPU")
    memory.add_argument("--low-memory", action="store_true",
        help="read each network from disk for its stage only")
    # fmt: on
    return made


def run(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    limits = Limits(
        seconds=require_number("seconds", given.seconds, 0.1),
        steps=require_whole("steps", given.steps, 1),
        candidates=require_whole("candidates", given.candidates, 1),
        waiting=require_whole("waiting", given.waiting, 1),
        upload_mb=require_number("upload_mb", given.upload_mb, 0.001),
    )
    port = require_whole("port", given.port, 1, 65535)
    require_gradio()
    from audioldm2.ui import models, page, server

    load = partial(
        audioldm2.load,
        device=given.device,
        dtype=given.dtype,
        offload=given.offload,
        low_memory=given.low_memory,
    )
    offered = models.Models([given.model, *models.IN_PACKAGE, *models.PUBLISHED], load)
    explain = partial(in_words, parser=parser(), out_of_memory=OUT_OF_MEMORY)
    with server.files() as folder:
        shared = page.Server(offered, limits, folder, explain)
        shared.worker.submit(lambda job: offered.get(given.model)).outcome.result()
        address = server.launch(page.build(shared), limits, host=given.host, port=port, share=given.share)
        if given.host not in server.LOCAL:
            report(f"note: --host {given.host}: everyone who can reach this computer can use the page.")
        if given.share:
            report("note: --share: everyone who has the link can use the page.")
        report("Ctrl-C ends the page.")
        print_result(address)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            report("the page has ended, and its files are deleted")
        finally:
            shared.close()
    return INTERRUPTED


def require_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the page needs Gradio ({error}); run: pip install 'gradio>=6,<7'") from None
