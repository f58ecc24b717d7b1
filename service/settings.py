"""Every setting, its default and its environment variable; the only reader of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]

Runtime = Literal["auto", "torch", "openvino"]

DEFAULT_MODEL = "shapes-tiny"


def split(value: object) -> object:
    """A list as an environment variable writes it: separated by commas."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Names = Annotated[list[Annotated[str, StringConstraints(min_length=1)]], NoDecode, BeforeValidator(split)]

Secrets = Annotated[list[Annotated[SecretStr, Field(min_length=1)]], NoDecode, BeforeValidator(split)]
"""Names that no repr shows."""

Origin = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+)$")]
Origins = Annotated[list[Origin], NoDecode, BeforeValidator(split)]


class Settings(BaseSettings):
    """Flags win over the environment (VIT_ATTENTION_ and the name in capitals), which wins over these."""

    model_config = SettingsConfigDict(env_prefix="VIT_ATTENTION_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model_store: Path = Field(Path("model_store"), description="Folder of the model store.")
    model: Names = Field(
        [DEFAULT_MODEL],
        min_length=1,
        description="Models to serve, separated by commas: names in the store, or model folders; "
        "the first is the default.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    precision: Precision = Field(
        "auto",
        description="auto is the fastest that keeps labels and maps: int8 or bf16 where the device "
        "multiplies them natively, else fp32; fp32 is exact.",
    )
    runtime: Runtime = Field(
        "auto", description="auto is openvino for a ViT on a CPU where it is installed, else torch."
    )
    threads: int = Field(
        0, ge=0, description="CPU threads, model and pool together; 0 counts the CPUs allowed."
    )
    max_batch: int = Field(
        0, ge=0, description="Images in one forward pass; 0 picks 8 on a CPU, 64 on a GPU."
    )
    max_wait_ms: float = Field(
        5.0, ge=0, description="How long a small batch waits for images that are being decoded."
    )
    max_queue: int = Field(256, ge=1, description="Requests that may be accepted and unanswered at once.")
    max_queue_bytes: int = Field(
        512 * 2**20, ge=1, description="Bytes of bodies that may be held at once, those half read included."
    )
    max_queue_pixels: int = Field(
        128_000_000, ge=1, description="Decoded pixels that may be held at once, at 4 bytes each and more."
    )
    max_body_bytes: int = Field(20 * 2**20, ge=1, description="Largest request body.")
    max_image_pixels: int = Field(
        64_000_000,
        ge=1,
        description="Largest image, from its header; WebP a quarter of it, AVIF a third, progressive JPEG a "
        "half.",
    )
    max_canvas_pixels: int = Field(
        16_000_000, ge=1, description="Larger block canvases are scaled down to it."
    )
    timeout_s: float = Field(30.0, gt=0, description="Longest time from request to answer.")
    stall_s: float = Field(
        30.0, gt=0, description="Seconds in one batch after which the service says that it is not ready."
    )
    drain_s: float = Field(
        0.0,
        ge=0,
        description="Seconds for which a server that was told to stop still listens and says that it is "
        "not ready, so that a balancer notices.",
    )
    api_keys: Secrets = Field(
        [], description="Keys of which a request must carry one, separated by commas; none: open."
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with more of them, as secrets are mounted: one a line, # begins a comment line.",
    )
    cors_origins: Origins = Field(
        [],
        description="Other origins whose pages may call the service, separated by commas, as browsers write "
        "them: https://example.org, lower case, no path; * is any.",
    )
    traces: bool = Field(
        False,
        description="Whether to send OpenTelemetry traces, over OTLP/HTTP; OTEL_EXPORTER_OTLP_ENDPOINT and "
        "the SDK's other variables say where to. Needs the extra otel.",
    )
    log_format: Literal["console", "json"] = Field("console", description="How log lines look.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
