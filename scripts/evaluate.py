"""Check a model of the demo world: do its sounds have what their prompts say?

    python scripts/evaluate.py --model runs/demo/model

One check is whether "a high beep" is higher than "a low beep", in wordings that training has not seen; see
demo_world/model_checks.py. `audioldm2 evaluate` judges any model by prompts and sounds of reference.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/ is in the clone, not in the package
from audioldm2.checkpoints.load import load
from audioldm2.cli import evaluate
from audioldm2.cli.arguments import Parser, new_parser
from audioldm2.cli.main import Command, execute
from audioldm2.cli.output_files import require_place
from audioldm2.cli.streams import report
from audioldm2.errors import require_whole
from audioldm2.evaluation import Judge
from scripts.demo_world import model_checks


def parser() -> Parser:
    made = new_parser("python scripts/evaluate.py", __doc__ or "")
    made.add_argument("--model", required=True, metavar="NAME", help="folder, .pth file or hub id")
    made.add_argument("--judge", metavar="NAME", help="whose CLAP judges (default: the model's own)")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    made.add_argument("--device", default="auto", metavar="NAME", help="(default: %(default)s)")
    evaluate.add_generation(made.add_argument_group("how sounds are generated"))
    return made


def run(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    require_whole("seeds", given.seeds, 1)
    if given.json is not None:
        require_place(given.json)
    model = load(given.model, device=given.device, dtype="float32")
    judge = Judge(load(given.judge, device=given.device, dtype="float32") if given.judge else model)
    evaluate.generation_options(given)  # raises what is wrong with them
    settings = {
        name: getattr(given, name) for name in ("audio_length_in_s", "num_inference_steps", "guidance_scale")
    }
    figures = model_checks.run_all(model, judge, range(given.seeds), settings, report)
    evaluate.write_figures(figures, given.json)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    return execute(lambda: Command(parser, run, evaluate.OUT_OF_MEMORY), arguments)


if __name__ == "__main__":
    sys.exit(main())
