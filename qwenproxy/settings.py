"""Every knob once: its name with its unit, its default, what it does.

A value comes from the environment or from `.env` beside the start script, as `QWENPROXY_<NAME>`; the five
names that the older proxies used plain (`PORT`, `HOST`, `SKIP_ACCOUNT_MENU`, `NON_INTERACTIVE`,
`DEFAULT_MODEL`) are understood plain too. Nothing else in the package reads the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

PREFIX = "QWENPROXY_"
PLAIN = ("PORT", "HOST", "SKIP_ACCOUNT_MENU", "NON_INTERACTIVE", "DEFAULT_MODEL")
ORIGIN = "an origin such as https://chat.qwen.ai"
THINKING_PATIENCE = 3
"""First-byte and idle limits are this many times longer while a model thinks (protocol §13)."""


class SettingsError(ValueError):
    """A value that cannot be used, in one line: the variable, the value, what is allowed."""


def _plain(name: str) -> AliasChoices:
    return AliasChoices(PREFIX + name, name)


Seconds = Annotated[float, Field(ge=0, le=86_400)]
Names = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8-sig",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    host: str = Field(
        "127.0.0.1",
        validation_alias=_plain("HOST"),
        description="Address to listen on; others than loopback need an API key.",
    )
    port: int = Field(
        3264, ge=0, le=65_535, validation_alias=_plain("PORT"), description="Port to listen on."
    )
    session_dir: Path = Field(Path("session"), description="Accounts, chats and logs; private.")
    upstream: str = Field("https://chat.qwen.ai", description="The service.")
    auth_upstream: str = Field("https://auth.qwen.ai", description="The service's sign-in host.")
    browser: str = Field("", description="Chromium: a path, or chrome, msedge or chromium. Empty: found.")
    headless: bool = Field(True, description="0 shows the browser window.")
    proxy: str = Field("", description="Proxy server to the service, e.g. socks5://127.0.0.1:1080.")
    default_model: str = Field(
        "qwen3.7-plus",
        validation_alias=_plain("DEFAULT_MODEL"),
        description="What the model name qwen means.",
    )
    unknown_model: Literal["refuse", "default"] = Field(
        "refuse", description="default: a model name nobody knows means the default model."
    )
    slots_per_account: int = Field(2, ge=1, le=1000, description="Answers at once per account.")
    pace_s: Seconds = Field(0, description="Least time between two requests of one account.")
    max_in_flight: int = Field(100, ge=1, le=10_000, description="Requests inside at once; more are refused.")
    max_prompt_bytes: int = Field(
        90_000, ge=1_000, description="Largest request body; a longer prompt goes as a text document."
    )
    max_tools_bytes: int = Field(
        40_000,
        ge=1_000,
        description="Largest text that tells a model its tools; what does not fit is shortened.",
    )
    max_history: int = Field(
        100, ge=1, le=100_000, description="Messages of a kept chat that go to the model, at most."
    )
    remember_answers: int = Field(
        1000, ge=0, le=100_000, description="Answers of each key that can be continued for a day; 0: none."
    )
    max_file_bytes: int = Field(
        104_857_600, ge=1_000, le=2_000_000_000, description="Largest file that is taken in."
    )
    max_files: int = Field(10, ge=1, le=100, description="Pictures, documents and the like in one message.")
    keep_files_days: int = Field(
        30, ge=0, le=36_500, description="How long what came inside messages is kept unused; 0: for ever."
    )
    fetch_urls: bool = Field(True, description="0 fetches no addresses that stand in requests.")
    fetch_allow: Names = Field(
        (), description="host:port of private addresses that may be fetched all the same, comma-separated."
    )
    storage_endpoint: str = Field(
        "", description="Where files are uploaded to, as an origin. Empty: where the service says."
    )
    queue_timeout_s: Seconds = Field(120, description="Longest wait for a free account.")
    first_byte_timeout_s: Seconds = Field(
        60, description="Longest wait for an answer's start; 3 times that while thinking."
    )
    idle_timeout_s: Seconds = Field(
        60, description="Longest silence inside an answer; 3 times that while thinking."
    )
    total_timeout_s: Seconds = Field(1800, description="Longest answer.")
    parse_timeout_s: Seconds = Field(120, description="Longest wait until the service has read a document.")
    video_timeout_s: Seconds = Field(1200, description="Longest wait of a request for its video.")
    drain_s: Seconds = Field(20, description="Time that running answers get when the proxy stops.")
    heartbeat_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        10, description="Between comments on a silent stream."
    )
    keep_chats: bool = Field(False, description="1 keeps the chats of completions in the web account.")
    allowed_hosts: Names = Field((), description="Further host names clients may use, comma-separated.")
    allowed_origins: Names = Field((), description="Web origins that may call, comma-separated, exact.")
    passthrough_tokens: bool = Field(
        False, description="1 takes `Authorization: Bearer TOKEN1,TOKEN2` for a request's own sign-ins."
    )
    sign_in_timeout_s: Seconds = Field(600, description="Longest wait for somebody to sign in.")
    stay_up: bool = Field(False, description="1 serves even while no account is usable.")
    skip_account_menu: bool = Field(
        False,
        validation_alias=_plain("SKIP_ACCOUNT_MENU"),
        description="1 serves at once instead of showing the menu.",
    )
    non_interactive: bool = Field(
        False, validation_alias=_plain("NON_INTERACTIVE"), description="1 never asks anything."
    )

    @field_validator("allowed_hosts", "allowed_origins", "fetch_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(p.strip() for p in value.split(",") if p.strip()) if isinstance(value, str) else value

    @field_validator("session_dir")
    @classmethod
    def _home(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("storage_endpoint")
    @classmethod
    def _origin_or_none(cls, value: str) -> str:
        return cls._origin(value) if value else ""

    @field_validator("upstream", "auth_upstream")
    @classmethod
    def _origin(cls, value: str) -> str:
        url = urlsplit(value.rstrip("/"))
        odd = url.path or url.query or url.fragment or url.username or url.port == 0
        if url.scheme not in {"http", "https"} or not url.hostname or odd:
            raise ValueError(ORIGIN)
        return value.rstrip("/")


def load(overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of this start; `overrides` (the command line's) win over environment and `.env`.

    Raises:
        SettingsError: the first value that cannot be used.
    """
    given = dict(overrides or {})
    try:
        return Settings(**given)
    except ValidationError as exc:
        raise SettingsError(_complaint(exc.errors()[0], given)) from None
    except UnicodeDecodeError:
        raise SettingsError(".env cannot be read: it is not UTF-8 text") from None
    except OSError as exc:
        raise SettingsError(f".env cannot be read: {exc.strerror}") from None


def has_screen() -> bool:
    """Whether a window can be shown: on Linux, where the environment names a display."""
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    return not sys.platform.startswith("linux") or any(map(os.getenv, displays))


def variable_of(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def _complaint(error: ErrorDetails, overrides: Mapping[str, Any]) -> str:
    field = str(error["loc"][0]).removeprefix(PREFIX).lower()
    value = " ".join(str(error["input"]).split())[:80]
    allowed = _allowed(Settings.model_fields[field])
    return f"{_source(field, overrides)}={value} cannot be used; allowed: {allowed}"


def _source(field: str, overrides: Mapping[str, Any]) -> str:
    """Where the value of a field came from, as the person wrote it."""
    if field in overrides:
        return "--" + field.replace("_", "-")
    known = {**DotEnvSettingsSource(Settings).env_vars, **EnvSettingsSource(Settings).env_vars}
    return variable_of(field) if known.get(variable_of(field).lower()) else field.upper()


def _allowed(field: FieldInfo) -> str:
    """What a field takes, in words."""
    limits = {type(limit).__name__: limit for limit in field.metadata}
    low = limits["Ge"].ge if "Ge" in limits else f"more than {limits['Gt'].gt}" if "Gt" in limits else ""
    span = f"from {low} to {limits['Le'].le}" if "Le" in limits else f"of {low} or more"
    if field.annotation is bool:
        return "1 or 0"
    if field.annotation is int:
        return f"an integer {span}"
    if field.annotation is float:
        return f"a number of seconds {span}"
    return " or ".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else ORIGIN
