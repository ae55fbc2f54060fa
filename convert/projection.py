"""`AudioLDM2ProjectionModel` of diffusers -> `audioldm2.models.projection.Projection`."""

from audioldm2.models.projection import ProjectionConfig

from .configs import demand, field
from .keymap import Row


def rows(config: ProjectionConfig) -> list[Row]:
    return [
        Row("projection", "clap_linear"),
        Row("projection_1", "t5_linear"),
        Row("sos_embed", "clap_sos"),
        Row("eos_embed", "clap_eos"),
        Row("sos_embed_1", "t5_sos"),
        Row("eos_embed_1", "t5_eos"),
    ]


def config_from(source: dict) -> ProjectionConfig:
    demand(source, "_class_name", "AudioLDM2ProjectionModel")
    demand(source, "use_learned_position_embedding", None, False)
    return ProjectionConfig(
        clap_dim=field(source, "text_encoder_dim", int),
        t5_dim=field(source, "text_encoder_1_dim", int),
        gpt2_dim=field(source, "langauge_model_dim", int),  # misspelt in the source
    )
