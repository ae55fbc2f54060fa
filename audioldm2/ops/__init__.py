"""The few operations that have more than one kernel, and what chooses between them (`dispatch`).

Networks call these functions; nothing else knows about kernels. README.md beside this file lists what each
kernel brings on which processor.
"""

from audioldm2.ops import trial_file
from audioldm2.ops.attention_kernels import _attention, attention
from audioldm2.ops.convolution_kernels import _conv1d, _conv2d, conv1d, conv2d, conv_transpose1d
from audioldm2.ops.dispatch import MODES, Choice, mode, using
from audioldm2.ops.linear_kernels import linear
from audioldm2.ops.whole_batch import batch_norm, dropout, share_of_batch

OPERATIONS = (linear, _attention, _conv1d, _conv2d)


def choices() -> list[Choice]:
    """What this process has chosen so far, in order."""
    return [choice for operation in OPERATIONS for _, choice in operation.choices.values()]


def report() -> str:
    """`choices` as a table: operation, dtype, class of shapes, kernel, and the milliseconds of each."""
    rows = [("operation", "dtype", "shapes", "kernel", "milliseconds in the trial")]
    for each in choices():
        times = ", ".join(f"{name} {milliseconds:.3f}" for name, milliseconds in each.milliseconds.items())
        times = times or f"none: read from {trial_file.path()}"
        rows.append(
            (each.operation, str(each.dtype).removeprefix("torch."), str(each.shape), each.kernel, times)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


__all__ = [
    "MODES",
    "Choice",
    "attention",
    "batch_norm",
    "choices",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "dropout",
    "linear",
    "mode",
    "report",
    "share_of_batch",
    "using",
]
