"""Configuration: defaults < TOML < environment (`MHPC_...`, nested by `__`) < flags. Imports no torch."""

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from worker.errors import ConfigurationError

ENV_PREFIX = "MHPC_"
LINE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")  # "$" would let a newline pass
MIB = 1024 * 1024
EXPECTED = {"model_type": "expected a table of keys", "tuple_type": "expected a list; of tables: [[key]]"}

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RedisSettings(Section):
    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")  # it may carry a password

    @field_validator("url")
    @classmethod
    def _is_a_redis_url(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        if re.search("://[^/?#]*[/?#].*@", url.get_secret_value()):
            raise ValueError("has an @ behind / ? or #; percent-encode those in user and password (/ is %2F)")
        return url


class ProcessSettings(Section):
    name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=128)  # stable across restarts
    device: str = "auto"  # "auto": CUDA where there is one; else "cpu", "cuda", "cuda:1", ...


class ModelSettings(Section):
    backbone: str = "tiny"
    weights: str | None = None  # left out: "bundled" for tiny, "pretrained" for torchvision's, none with a function
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("layer2", "layer3")
    input_shape: tuple[Annotated[int, Field(ge=32, le=4096)], Annotated[int, Field(ge=32, le=4096)]] = (224, 224)
    bank_size: Positive = 6000
    pca_variance_ratio: Rate = 0.9  # more keeps noise that textures pay for: tiles 0.960 against 0.928 (bench one_pass)
    max_batch: Annotated[int, Field(gt=0, multiple_of=8)] = 32  # images in one forward pass; learning steps by 8

    @model_validator(mode="after")
    def _weights_fit_the_backbone(self) -> "ModelSettings":
        if ":" in self.backbone and self.weights is not None:
            raise ValueError(
                f"weights {self.weights!r} with a function: {self.backbone} brings its own, leave them out"
            )
        if self.weights == "bundled" and self.backbone != "tiny":
            raise ValueError(f'weights "bundled" are for backbone "tiny" alone, not {self.backbone!r}')
        return self

    @property
    def weights_source(self) -> str | None:
        """What load_backbone is given."""
        if self.weights is None and ":" not in self.backbone:
            return "bundled" if self.backbone == "tiny" else "pretrained"
        return self.weights


class LearningSettings(Section):
    images: Positive = 1000  # at most
    min_images: Positive = 200  # at least, before convergence may end learning
    converge: bool = True  # whether it may
    forgetting: Annotated[float, Field(gt=0, le=1)] = (
        1.0  # share of the past's weight left after 1,000 relearned images
    )
    relearn_on_drift: bool = False


class CalibrationSettings(Section):
    images: Annotated[int, Field(ge=20)] = 500
    false_positive_rate: Rate = 0.001


class ScoringSettings(Section):
    top_k: Positive = 20  # an image's score is the mean of its top_k largest patch scores
    heat_map: bool = True  # results carry the patch scores
    track_threshold: bool = True  # it follows a slow change of the normal scores,
    track_bound: Rate = 0.2  # at most this far from calibration's


class SnapshotSettings(Section):
    directory: Path = Path("snapshots")
    every_images: Positive = 500
    every_seconds: Annotated[float, Field(gt=0)] = 30.0
    keep: Annotated[int, Field(ge=2)] = 3


class StreamSettings(Section):
    scores_max: Positive = 100_000
    dead_max: Positive = 10_000
    review_max: Positive = 500
    payload_bytes: Positive = 1 * MIB  # of a dead letter; what is longer is cut


class LimitSettings(Section):
    entry_bytes: Positive = 64 * MIB
    images_per_entry: Positive = 256
    image_side: Positive = 16_384
    image_pixels: Positive = 40_000_000
    meta_bytes: Positive = 16_384


class HttpSettings(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9108  # 0: any free port


class LineSettings(Section):
    name: str
    bank_size: Positive | None = None
    learning: LearningSettings | None = None
    calibration: CalibrationSettings | None = None
    scoring: ScoringSettings | None = None

    @field_validator("name")
    @classmethod
    def _fits_a_key(cls, name: str) -> str:
        if not LINE_NAME.match(name):
            raise ValueError(f"line name {name!r}: 1 to 63 of a-z 0-9 _ -, the first a letter or a digit")
        return name


class Settings(BaseSettings):
    """All that a worker is told; `line_configs` lays the lines' overrides over it."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__")

    redis: RedisSettings = RedisSettings()
    worker: ProcessSettings = Field(default_factory=ProcessSettings)
    model: ModelSettings = ModelSettings()
    learning: LearningSettings = LearningSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    scoring: ScoringSettings = ScoringSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    streams: StreamSettings = StreamSettings()
    limits: LimitSettings = LimitSettings()
    http: HttpSettings = HttpSettings()
    log_format: Literal["auto", "console", "json"] = "auto"  # auto: console on a terminal, else JSON
    lines: tuple[LineSettings, ...] = ()

    @field_validator("lines")
    @classmethod
    def _names_differ(cls, lines: tuple[LineSettings, ...]) -> tuple[LineSettings, ...]:
        names = [line.name for line in lines]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"line {twice[0]!r} stands twice; give each line a name of its own")
        return lines

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(init_settings, InitSettingsSource)  # noqa: S101 - narrows the type of pydantic's own source
        layers = dict(init_settings.init_kwargs)
        flags, toml = layers.pop("_flags", {}), layers.pop("_toml", {})
        return (
            InitSettingsSource(settings_cls, init_kwargs={**layers, **flags}),
            env_settings,
            InitSettingsSource(settings_cls, init_kwargs=toml),
        )


SectionT = TypeVar("SectionT", bound=Section)


def _laid_over(base: SectionT, override: SectionT | None) -> SectionT:
    return base if override is None else base.model_copy(update=override.model_dump(exclude_unset=True))


class LineConfig(BaseModel):
    """One line's settings with the overrides applied."""

    model_config = ConfigDict(frozen=True)

    name: str
    bank_size: int
    learning: LearningSettings
    calibration: CalibrationSettings
    scoring: ScoringSettings


def line_configs(settings: Settings) -> list[LineConfig]:
    """The worker's lines, each override laid key by key over the worker's own sections."""
    return [
        LineConfig(
            name=line.name,
            bank_size=line.bank_size or settings.model.bank_size,
            learning=_laid_over(settings.learning, line.learning),
            calibration=_laid_over(settings.calibration, line.calibration),
            scoring=_laid_over(settings.scoring, line.scoring),
        )
        for line in settings.lines
    ]


def load_settings(
    config: Path | None, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Read the configuration.

    Raises:
        ConfigurationError: a file that cannot be read, an unknown key or environment name, or a value of the wrong
            kind; one line that names the key, what came and what is expected.
    """
    toml = _read_toml(config) if config else {}
    _refuse_unknown_environment(environ)
    layers: dict[str, Any] = {"_toml": toml, "_flags": dict(flags or {})}
    try:
        return Settings(**layers)
    except ValidationError as error:
        problem, *others = error.errors(include_url=False)
        source = _source(problem["loc"], config, layers["_flags"], environ)
        more = f" (and {len(others)} more)" if others else ""
        raise ConfigurationError(f"{source}: {_told(problem)}{more}") from None
    except SettingsError as error:  # its text names the section, not the variable
        section = str(error).split('"')[1]
        names = [name for name in environ if name.upper().startswith((ENV_PREFIX + section).upper())]
        raise ConfigurationError(
            f"environment {', '.join(sorted(names))}: lists and tables are given as JSON, such as "
            'MHPC_MODEL__LAYERS=\'["layer2", "layer3"]\''
        ) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file; copy config.example.toml and name it by --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: not readable as TOML: {error}") from None


def _refuse_unknown_environment(environ: Mapping[str, str]) -> None:
    """pydantic-settings ignores unknown names at the top level and indices into lists; a typo must not go unseen."""
    for name in sorted(environ):
        if not name.upper().startswith(ENV_PREFIX):
            continue
        table: Any = Settings
        for part in name[len(ENV_PREFIX) :].lower().split("__"):
            fields = table.model_fields if isinstance(table, type) and issubclass(table, BaseModel) else {}
            if part not in fields:
                known = ", ".join(sorted(fields)) or "nothing below it (give a list as JSON)"
                raise ConfigurationError(f"environment {name}: {part!r} is unknown; known here: {known}")
            table = fields[part].annotation


def _told(problem: ErrorDetails) -> str:
    """The key, what is expected and what came, on one line."""
    loc, kind, came = problem["loc"], problem["type"], problem["input"]
    key = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        return f"{key}: unknown key; known here: {', '.join(_keys_beside(loc))}"
    text = EXPECTED.get(kind, problem["msg"].removeprefix("Value error, "))
    secret = "redis" in loc or isinstance(came, dict)  # an address may carry a password
    return f"{key}: {text}" if secret else f"{key}: {text} (came: {came!r})"


def _source(
    loc: tuple[int | str, ...], config: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> str:
    """The topmost layer that has the value at loc, or the table that holds it."""
    if loc and loc[0] in flags:
        return "command line"
    by_path = {name.upper(): name for name in environ}
    for depth in range(len(loc), 0, -1):
        path = ENV_PREFIX + "__".join(str(part) for part in loc[:depth]).upper()
        if path in by_path:
            return f"environment {by_path[path]}"
    return str(config) if config else "configuration"


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    table: Any = Settings
    for part in loc[:-1]:
        if isinstance(part, int):
            table = LineSettings
        else:
            annotation = table.model_fields[part].annotation
            arms = [arm for arm in getattr(annotation, "__args__", ()) if isinstance(arm, type)]
            table = next((a for a in [annotation, *arms] if isinstance(a, type) and issubclass(a, BaseModel)), table)
    return sorted(table.model_fields)
