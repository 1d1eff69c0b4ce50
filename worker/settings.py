"""What can be configured, with its defaults; `worker.configuration` reads it. Imports no torch."""

import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from worker.explained import explain

ENV_PREFIX = "MHPC_"
LINE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")  # "$" would let a newline pass
LINES_KEY = "mhpc:lines"  # in Redis: lines that a fleet serves, name -> JSON of LineSettings without the name
WORKERS_KEY = "mhpc:workers"  # and its workers, name -> JSON of what each says of itself
MIB = 1024 * 1024
REDIS_SCHEMES = (
    "redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://", "redis+cluster://",
    "rediss+cluster://",
)  # the s is for TLS  # fmt: skip

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=explain)


class RedisSettings(Section):
    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")  # it may carry a password
    username: str = ""  # here or in the url; likewise the password
    password_file: str = ""  # the password alone, as Docker and Kubernetes mount secrets
    ca_file: str = ""  # TLS: trusted beside the system's
    cert_file: str = ""  # TLS: this client's own
    key_file: str = ""

    @field_validator("url")
    @classmethod
    def _is_a_redis_url(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(REDIS_SCHEMES):
            scheme, colon, _ = url.get_secret_value().partition("://")  # what follows may be a password
            came = f"starts with {scheme}://" if colon else "has no ://"
            raise ValueError(f"{came}, must start with {', '.join(REDIS_SCHEMES[:-1])} or {REDIS_SCHEMES[-1]}")
        if re.search("://[^/?#]*[/?#].*@", url.get_secret_value()):
            raise ValueError("has an @ behind / ? or #; percent-encode those in user and password (/ is %2F)")
        return url

    @model_validator(mode="after")
    def _says_each_thing_once(self) -> "RedisSettings":
        url = self.url.get_secret_value()
        login, at, _ = url.partition("://")[2].rpartition("@")
        if self.password_file and (":" in login or re.search("[?&]password=", url)):
            raise ValueError("a password stands in url, and password_file is given; leave one of them out")
        if self.username and ((at and login.partition(":")[0]) or re.search("[?&]username=", url)):
            raise ValueError("a user stands in url, and username is given; leave one of them out")
        if (self.ca_file or self.cert_file or self.key_file) and not url.startswith("rediss"):
            raise ValueError("ca_file, cert_file and key_file are for TLS; url must start with rediss")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file go together; one of them is missing")
        return self


class ProcessSettings(Section):
    name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=128)  # stable across restarts
    device: str = "auto"  # "auto": CUDA where there is one; else "cpu", "cuda", "cuda:1", ...
    fleet: bool = False  # serve what LINES_KEY declares, too, and share out who keeps it
    capacity: Annotated[int, Field(ge=0)] = 1_000_000  # lines of the fleet kept at most
    rank_seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0  # a rank that is silent so long is gone


class ModelSettings(Section):
    backbone: str = "tiny"
    weights: str | None = None  # left out: "bundled" for tiny, "pretrained" for torchvision's, none with a function
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("layer2", "layer3")
    input_shape: tuple[Annotated[int, Field(ge=32, le=4096)], Annotated[int, Field(ge=32, le=4096)]] = (224, 224)
    bank_size: Positive = 6000
    pca_variance_ratio: Rate = 0.9  # more keeps noise that textures pay for: tiles 0.960 against 0.928 (bench one_pass)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the backbone; "auto": the faster, by a trial
    max_batch: Annotated[int, Field(ge=0, multiple_of=8)] = 0  # images in one pass; 0: 8 on a CPU, 64 on a GPU
    max_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 20.0  # that an image waits for others to fill its batch

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
    forgetting: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the past's weight, left by 1,000 relearned images
    relearn_on_drift: bool = False
    moments_share: Annotated[float, Field(gt=0, le=1)] = 0.125  # of the patches, that mean and covariance take


class CalibrationSettings(Section):
    images: Annotated[int, Field(ge=20)] = 500
    false_positive_rate: Rate = 0.001


class ScoringSettings(Section):
    top_k: Positive = 20  # an image's score is the mean of its top_k largest patch scores
    heat_map: bool = True  # results carry the patch scores
    track_threshold: bool = True  # it follows a slow change of the normal scores,
    track_bound: Rate = 0.2  # at most this far from calibration's


class SnapshotSettings(Section):
    directory: Path | str = Path("snapshots")  # a text is an address of an object store
    every_images: Positive = 500
    every_seconds: Annotated[float, Field(gt=0)] = 30.0
    keep: Annotated[int, Field(ge=2)] = 3
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    cache: Path = Path("snapshots-cache")

    @field_validator("directory", mode="before")
    @classmethod
    def _is_a_folder_or_an_address(cls, given: Any) -> Path | str:
        if not isinstance(given, str | Path):
            raise ValueError("expected a folder, or the address of an object store")
        if "://" not in (address := str(given)):
            return Path(given)
        scheme, _, rest = address.partition("://")
        if "@" in rest and ":" in rest.partition("@")[0]:
            raise ValueError("has a password in it; leave it out, the store's package takes one from the environment")
        if not re.fullmatch("[a-z][a-z0-9+.-]*", scheme) or re.search("[?#]|::", address) or not rest.strip("/"):
            raise ValueError("expected a folder, or SCHEME://BUCKET/PREFIX without options, such as s3://plant/models")
        if scheme != "file":
            return address.rstrip("/")
        if not rest.startswith("/"):
            raise ValueError("expected file:///FOLDER, from the root")
        return Path(rest)  # as a folder: there it is fsynced, too

    @property
    def on_this_machine(self) -> Path:
        """Where files of this machine alone belong."""
        return self.directory if isinstance(self.directory, Path) else self.cache


class StreamSettings(Section):
    scores_max: Positive = 100_000
    dead_max: Positive = 10_000
    review_max: Positive = 500
    review_bytes: Positive = 256 * MIB
    payload_bytes: Positive = 1 * MIB  # of a dead letter; what is longer is cut
    prefetch_bytes: Positive = 64 * MIB  # read ahead, shared by the lines; each may have one entry however large
    unique_ids: Annotated[int, Field(ge=0)] = 0  # an id that came among so many last images is a repeat; 0: none is
    claim_seconds: Annotated[float, Field(gt=0)] = 60.0  # unanswered for so long, an entry is taken from its consumer


class LimitSettings(Section):
    entry_bytes: Positive = 64 * MIB
    images_per_entry: Positive = 256
    image_side: Positive = 16_384
    image_pixels: Positive = 40_000_000
    meta_bytes: Positive = 16_384


class HttpSettings(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9108  # 0: any free port


class ConsoleSettings(HttpSettings):
    port: Annotated[int, Field(ge=0, le=65535)] = 9109
    tokens: dict[str, SecretStr] = {}  # by the name that is logged with what its bearer asks for
    tokens_file: str = ""  # the same, a line each: NAME TOKEN
    user_header: str = ""  # where a reverse proxy names its user, such as "X-Forwarded-User"
    proxies: tuple[str, ...] = ("127.0.0.1", "::1")  # believed as to who a user is
    hosts: tuple[str, ...] = ()  # names that the page is opened by, beside the loopback's

    @field_validator("tokens")
    @classmethod
    def _tokens_are_hard_to_guess(cls, tokens: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, token in tokens.items():
            check_token(name, token.get_secret_value())
        return tokens


def check_token(name: str, token: str) -> None:
    """Raises ValueError for a name or a token that a console takes none of; the text does not quote the token."""
    if not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise ValueError(f"token name {name!r:.80}: 1 to 64 letters, digits and _ . @ -")
    if not re.fullmatch(r"[!-~]{16,512}", token):
        raise ValueError(f"the token of {name}: 16 to 512 characters of ASCII without spaces; openssl rand -hex 32")


class LineSettings(Section):
    name: str
    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0  # its share of the worker where lines compete for it
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

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", json_schema_extra=explain
    )

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
    console: ConsoleSettings = ConsoleSettings()
    log_format: Literal["auto", "console", "json"] = "auto"  # auto: console on a terminal, else JSON
    lines: tuple[LineSettings, ...] = ()

    @field_validator("lines")
    @classmethod
    def _names_differ(cls, lines: tuple[LineSettings, ...]) -> tuple[LineSettings, ...]:
        names = [line.name for line in lines]
        if twice := sorted({name for name in names if names.count(name) > 1}):
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
    weight: float = 1.0
    bank_size: int
    learning: LearningSettings
    calibration: CalibrationSettings
    scoring: ScoringSettings


def line_configs(settings: Settings) -> list[LineConfig]:
    """The worker's lines, each override laid key by key over the worker's own sections."""
    return [
        LineConfig(
            name=line.name,
            weight=line.weight,
            bank_size=line.bank_size or settings.model.bank_size,
            learning=_laid_over(settings.learning, line.learning),
            calibration=_laid_over(settings.calibration, line.calibration),
            scoring=_laid_over(settings.scoring, line.scoring),
        )
        for line in settings.lines
    ]
