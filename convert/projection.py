"""`AudioLDM2ProjectionModel` of diffusers -> `audioldm2.models.projection.Projection`."""

from collections.abc import Mapping

from torch import Size

from audioldm2.models.projection import ProjectionConfig

from .configs import field, need, require_value
from .keymap import Row, Transform, row

positions = Transform("(1, dim, seq) to (seq, dim)", lambda w: w.squeeze(0).t(), lambda w: w.t().unsqueeze(0))
POSITIONS = Row("learnable_positional_embedding", "t5_positions", positions)


def rows(config: ProjectionConfig) -> list[Row]:
    """Return the rows of the diffusers layout."""
    return [
        *([POSITIONS] if config.positions else []),
        Row("projection", "clap_linear"),
        Row("projection_1", "t5_linear"),
        Row("sos_embed", "clap_sos"),
        Row("eos_embed", "clap_eos"),
        Row("sos_embed_1", "t5_sos"),
        Row("eos_embed_1", "t5_eos"),
    ]


def config_from(source: dict) -> ProjectionConfig:
    """Return our config for the source\'s."""
    require_value(source, "_class_name", "AudioLDM2ProjectionModel")
    learned = field(source, "use_learned_position_embedding", bool | None, None)
    if learned is False:  # ambiguous: the reference checks for None, and creates a table
        require_value(source, "use_learned_position_embedding", None, True)
    return ProjectionConfig(
        clap_dim=field(source, "text_encoder_dim", int),
        t5_dim=field(source, "text_encoder_1_dim", int),
        gpt2_dim=field(source, "langauge_model_dim", int),  # misspelt in the source
        positions=field(source, "max_seq_length", int) if learned else 0,
    )


def config_to(config: ProjectionConfig) -> dict:
    """Return the source\'s config for ours."""
    return {
        "_class_name": "AudioLDM2ProjectionModel",
        "text_encoder_dim": config.clap_dim,
        "text_encoder_1_dim": config.t5_dim,
        "langauge_model_dim": config.gpt2_dim,
        "use_learned_position_embedding": True if config.positions else None,
        "max_seq_length": config.positions or None,
    }


# The original files: two tables hold the vectors that begin and end a sequence, a row for each encoder ------

ORIGINAL_ROWS = [
    Row("input_sequence_embed_linear.0", "clap_linear"),
    Row("input_sequence_embed_linear.1", "t5_linear"),
    Row("start_of_sequence_tokens.weight", "clap_sos", row(0)),
    Row("end_of_sequence_tokens.weight", "clap_eos", row(0)),
    Row("start_of_sequence_tokens.weight", "t5_sos", row(1)),
    Row("end_of_sequence_tokens.weight", "t5_eos", row(1)),
]


def original_config(shapes: Mapping[str, Size], positions: int) -> ProjectionConfig:
    """Return the config that the shapes of the original\'s tensors imply."""
    gpt2_dim, clap_dim = need(shapes, "input_sequence_embed_linear.0.weight", 2)
    return ProjectionConfig(
        clap_dim, need(shapes, "input_sequence_embed_linear.1.weight", 2)[1], gpt2_dim, positions
    )
