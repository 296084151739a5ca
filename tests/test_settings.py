from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from qwenproxy.settings import PLAIN, Settings, SettingsError, load, variable_of

NAMES = {variable_of(field) for field in Settings.model_fields} | set(PLAIN)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and an environment that says nothing."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_defaults_are_the_documented_ones() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.session_dir) == ("127.0.0.1", 3264, Path("session"))
    assert settings.upstream == "https://chat.qwen.ai"
    assert settings.auth_upstream == "https://auth.qwen.ai"
    assert settings.default_model == "qwen3.7-plus"
    assert (settings.slots_per_account, settings.max_in_flight, settings.max_prompt_bytes) == (2, 100, 90_000)
    assert (settings.queue_timeout_s, settings.first_byte_timeout_s, settings.idle_timeout_s) == (120, 60, 60)
    assert (settings.total_timeout_s, settings.drain_s, settings.heartbeat_s) == (1800, 20, 10)


def test_the_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", PLAIN)
def test_the_seeds_plain_names_work_and_the_prefixed_one_wins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, prefixed = {"PORT": ("81", "82"), "HOST": ("::1", "localhost")}.get(name, ("1", "0"))
    monkeypatch.setenv(name, plain)
    assert getattr(load(), name.lower()) == _typed(name, plain)
    monkeypatch.setenv("QWENPROXY_" + name, prefixed)
    assert getattr(load(), name.lower()) == _typed(name, prefixed)


def _typed(name: str, text: str) -> object:
    return {"PORT": int(text) if text.isdigit() else 0, "HOST": text, "DEFAULT_MODEL": text}.get(
        name, text == "1"
    )


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("QWENPROXY_PORT=81\nQWENPROXY_PACE_S=0.5\n")
    assert (load().port, load().pace_s) == (81, 0.5)
    monkeypatch.setenv("QWENPROXY_PORT", "82")
    assert load().port == 82
    assert load({"port": 83}).port == 83


def test_a_file_written_by_notepad_is_read(folder: Path) -> None:
    (folder / ".env").write_bytes(b"\xef\xbb\xbfPORT=81\r\nQWENPROXY_DEFAULT_MODEL=qwen-max\r\n")
    assert (load().port, load().default_model) == (81, "qwen-max")


def test_an_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENPROXY_PORT", "")
    assert load().port == 3264


def test_lists_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENPROXY_ALLOWED_HOSTS", "nas.local, box ,")
    assert load().allowed_hosts == ("nas.local", "box")


def test_an_origin_loses_its_last_slash_and_a_folder_its_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENPROXY_UPSTREAM", "http://127.0.0.1:8000/")
    monkeypatch.setenv("QWENPROXY_SESSION_DIR", "~/qwen")
    assert load().upstream == "http://127.0.0.1:8000"
    assert load().session_dir == Path.home() / "qwen"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "abc", "an integer from 0 to 65535"),
        ("QWENPROXY_PORT", "70000", "an integer from 0 to 65535"),
        ("QWENPROXY_MAX_PROMPT_BYTES", "10", "an integer of 1000 or more"),
        ("QWENPROXY_PACE_S", "-1", "a number of seconds from 0 to 86400"),
        ("QWENPROXY_IDLE_TIMEOUT_S", "nan", "a number of seconds from 0 to 86400"),
        ("QWENPROXY_HEARTBEAT_S", "0", "a number of seconds from more than 0 to 3600"),
        ("QWENPROXY_HEADLESS", "maybe", "1 or 0"),
        ("SKIP_ACCOUNT_MENU", "perhaps", "1 or 0"),
        ("QWENPROXY_UNKNOWN_MODEL", "guess", "refuse or default"),
        ("QWENPROXY_UPSTREAM", "chat.qwen.ai", "an origin such as https://chat.qwen.ai"),
        ("QWENPROXY_UPSTREAM", "https://chat.qwen.ai/path", "an origin such as https://chat.qwen.ai"),
        ("QWENPROXY_AUTH_UPSTREAM", "https://a:99999", "an origin such as https://chat.qwen.ai"),
        ("QWENPROXY_AUTH_UPSTREAM", "http://[x", "an origin such as https://chat.qwen.ai"),
    ],
)
def test_a_bad_value_is_one_line_with_variable_value_and_what_is_allowed(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load()
    assert str(refused.value) == f"{name}={value} cannot be used; allowed: {allowed}"


def test_a_bad_value_of_the_command_line_names_the_option() -> None:
    with pytest.raises(SettingsError, match=r"^--port=70000 cannot be used; allowed: an integer from 0"):
        load({"port": "70000"})


def test_a_bad_value_of_the_file_names_the_variable(folder: Path) -> None:
    (folder / ".env").write_text("QWENPROXY_PORT=x\n")
    with pytest.raises(SettingsError, match=r"^QWENPROXY_PORT=x cannot be used"):
        load()


LIMITED = sorted(
    name
    for name, field in Settings.model_fields.items()
    if field.annotation not in {str, Path, tuple[str, ...]}
)


@pytest.mark.parametrize("field", LIMITED)
def test_every_limited_field_says_what_it_takes(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable_of(field), "∞ no such value")
    with pytest.raises(SettingsError, match=r"allowed: (an integer|a number of seconds|1 or 0|refuse or)"):
        load()


def test_a_file_that_cannot_be_read_is_one_line(folder: Path) -> None:
    (folder / ".env").write_bytes(b"PORT=\xff\xfe\n")
    with pytest.raises(SettingsError, match=r"^\.env cannot be read"):
        load()
