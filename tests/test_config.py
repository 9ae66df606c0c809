"""Settings: where they come from, and what a wrong one is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import inspect

from durable_streamsd.config import FLAGS, Secret, Settings
from durable_streamsd.core.retention import RetentionRule
from durable_streamsd.settings.loading import load_settings
from durable_streamsd.settings.sources import SettingsError
from durable_streamsd.settings.values import holds_secret


def test_defaults_are_the_documented_ones() -> None:
    """What README and design promise without any configuration."""
    settings = load_settings({}, {})
    assert settings == Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 4437)
    assert settings.long_poll_timeout_s == 20
    assert settings.body_bytes_max == 64 << 20
    assert settings.public_url is None
    assert settings.express_lane


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    """Each source overrides the one below it, setting by setting."""
    file = tmp_path / "daemon.toml"
    file.write_text("port = 1\nidle_timeout_s = 1.5\nhead_fields_max = 11\n")
    environment = {"DURABLE_STREAMSD_PORT": "2", "DURABLE_STREAMSD_IDLE_TIMEOUT_S": "2.5"}
    settings = load_settings({"port": "3", "host": None}, environment, file)
    assert settings.port == 3
    assert settings.idle_timeout_s == 2.5
    assert settings.head_fields_max == 11
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("word", "value"), [("off", False), ("ON", True), ("no", False), ("true", True), ("0", False)]
)
def test_switches_take_the_usual_words(word: str, value: bool) -> None:
    """The express lane is turned off with the words that people use."""
    settings = load_settings({}, {"DURABLE_STREAMSD_EXPRESS_LANE": word})
    assert settings.express_lane is value


def test_the_name_of_a_flag_works_everywhere(tmp_path: Path) -> None:
    """`--max-body` is `max_body` in a file and MAX_BODY in the environment, too."""
    file = tmp_path / "daemon.toml"
    file.write_text("max_body = 4096\n")
    settings = load_settings({}, {"DURABLE_STREAMSD_LONG_POLL_TIMEOUT": "2"}, file)
    assert settings.body_bytes_max == 4096
    assert settings.long_poll_timeout_s == 2


@pytest.mark.parametrize("name", ["sse-lifetime-s", "sse_lifetime_s", "sse-lifetime_s"])
def test_dashes_and_underscores_mean_the_same(tmp_path: Path, name: str) -> None:
    """Each setting can be written either way, in the file and in the environment."""
    file = tmp_path / "daemon.toml"
    file.write_text(f"{name} = 5\n")
    assert load_settings({}, {}, file).sse_lifetime_s == 5
    variable = f"DURABLE_STREAMSD_{name.upper()}"
    assert load_settings({}, {variable: "5"}).sse_lifetime_s == 5


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("16KiB", 16 << 10), ("64 MiB", 64 << 20), ("1GiB", 1 << 30)]
)
def test_sizes_take_units(tmp_path: Path, text: str, size_bytes: int) -> None:
    """A size is a number of bytes or has a unit, wherever it comes from."""
    file = tmp_path / "daemon.toml"
    file.write_text(f"max-body = '{text}'\n")
    assert load_settings({}, {}, file).body_bytes_max == size_bytes
    assert load_settings({"body_bytes_max": text}, {}).body_bytes_max == size_bytes
    assert load_settings({"body_bytes_max": str(size_bytes)}, {}).body_bytes_max == size_bytes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"log_level": "loud"}, 'one of debug, info, warning, error, not "loud"'),
        ({"port": "http"}, 'a whole number from 0 to 65535, not "http"'),
        ({"long_poll_timeout_s": "soon"}, 'a number of seconds from 0.05 to 86400, not "soon"'),
        (
            {"body_bytes_max": "1MB"},
            'a number of bytes from 1 to 1GiB, such as 64MiB, not "1MB"',
        ),
        ({"express_lane": "maybe"}, 'on or off, not "maybe"'),
        ({"port": True}, "a whole number from 0 to 65535, not true"),
        ({"host": 5}, "text, not 5"),
    ],
)
def test_a_bad_value_is_answered_with_what_is_expected(flags: dict[str, object], said: str) -> None:
    """The sentence says in plain words what the setting takes and what it was given."""
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, {})
    assert str(caught.value).partition(": ")[2] == f"expected {said}"


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_every_setting_can_say_what_it_expects(name: str) -> None:
    """No setting is without words for what it takes."""
    with pytest.raises(SettingsError, match=r"expected .+, not \{\}"):
        load_settings({name: {}}, {})


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    """A misspelt name is answered with the one that was probably meant, as it is written there."""
    file = tmp_path / "daemon.toml"
    file.write_text("log-poll-timeout = 5\n")
    with pytest.raises(SettingsError, match=r"no such setting; is it long-poll-timeout\?$"):
        load_settings({}, {}, file)
    with pytest.raises(SettingsError, match=r"; is it DURABLE_STREAMSD_PORT\?$"):
        load_settings({}, {"DURABLE_STREAMSD_PROT": "1"})
    with pytest.raises(SettingsError, match=r"there is no such setting$"):
        load_settings({}, {"DURABLE_STREAMSD_QWXZ": "1"})


def test_every_flag_sets_a_setting() -> None:
    """The table of flags names settings that exist."""
    assert set(FLAGS.values()) <= set(Settings.__struct_fields__)


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [
        ({"port": "http"}, {}, "--port"),
        ({"port": "70000"}, {}, "--port"),
        ({"port": "-1"}, {}, "--port"),
        ({"body_bytes_max": "0"}, {}, "--max-body"),
        ({"body_bytes_max": "1MB"}, {}, "--max-body"),
        ({"long_poll_timeout_s": "nan"}, {}, "--long-poll-timeout"),
        ({"long_poll_timeout_s": "-2"}, {}, "--long-poll-timeout"),
        ({"public_url": "example.org"}, {}, "--public-url"),
        ({"public_url": "http://example.org/base"}, {}, "--public-url"),
        ({"public_url": "http://example.org?a"}, {}, "--public-url"),
        ({"public_url": "http://[::1"}, {}, "--public-url"),
        ({"public_url": "http://ex\u00e4mple.org"}, {}, "--public-url"),
        ({"data_dir": "a\0b"}, {}, "--data-dir"),
        ({"log_level": "loud"}, {}, "--log-level"),
        ({}, {"DURABLE_STREAMSD_EXPRESS_LANE": "maybe"}, "DURABLE_STREAMSD_EXPRESS_LANE"),
        ({}, {"DURABLE_STREAMSD_HEAD_BYTES_MAX": "1"}, "DURABLE_STREAMSD_HEAD_BYTES_MAX"),
        ({}, {"DURABLE_STREAMSD_PROT": "4437"}, "DURABLE_STREAMSD_PROT"),
        ({}, {"DURABLE_STREAMSD_PUBLIC_URL": "ftp://x"}, "DURABLE_STREAMSD_PUBLIC_URL"),
    ],
)
def test_a_bad_value_is_answered_with_a_sentence_that_names_it(
    flags: dict[str, object], environment: dict[str, str], named: str
) -> None:
    """Whoever reads the sentence knows where to look."""
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, environment)
    sentence = str(caught.value)
    assert sentence.startswith(f"{named}: ")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("port = 'x'", "1: port: "),
        ("# first\n\nport = true", "3: port: "),
        ('host = """\nport = 1\n"""\nprot = 1', "4: prot: "),
        ("port = 1\n[storage]\nx = 1", "2: storage: "),
        ("max-body = 1\nbody_bytes_max = 2", "2: body_bytes_max: "),
        ("port = 1\npublic-url = 'x'", "2: public-url: "),
        ("port = 1\nhost = ", "2: it is not valid TOML: "),
        ("port = 1\nhost = '''\nx\n", "2: it is not valid TOML: "),
        ("port = 1\nport = 2", "2: it is not valid TOML: "),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    """A wrong key, value or syntax in the file is reported with the file's name and the line."""
    file = tmp_path / "daemon.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings({}, {}, file)
    assert str(caught.value).startswith(f"{file}:{named}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A configuration file that was asked for has to be there."""
    with pytest.raises(SettingsError, match=r"--config: cannot read .*missing\.toml"):
        load_settings({}, {}, tmp_path / "missing.toml")


def test_other_variables_are_let_be() -> None:
    """Only variables with the prefix are looked at."""
    assert load_settings({}, {"PORT": "1", "STREAM_URL": "x", "DURABLE_X": "1"}) == Settings()


def test_retention_rules_come_from_the_file(tmp_path: Path) -> None:
    """Rules are tables, in their order; sizes may be words, in them too."""
    file = tmp_path / "daemon.toml"
    file.write_text(
        '[[retention]]\npattern = "logs/**"\nbytes = "1MiB"\n'
        '[[retention]]\npattern = "*"\nbytes = 5\nseconds = 60\n'
    )
    assert load_settings({}, {}, file).retention == (
        RetentionRule("logs/**", bytes=1 << 20),
        RetentionRule("*", bytes=5, seconds=60),
    )


@pytest.mark.parametrize(
    "text",
    [
        "retention = 5",
        'retention = "**"',
        '[[retention]]\npattern = "**"',
        "[[retention]]\nbytes = 5",
        '[[retention]]\npattern = "a*"\nbytes = 5',
        '[[retention]]\npattern = ""\nbytes = 5',
        '[[retention]]\npattern = "**"\nbytes = 0',
        '[[retention]]\npattern = "**"\nseconds = 1.5',
        '[[retention]]\npattern = "**"\nbytes = "5 apples"',
        '[[retention]]\npattern = "**"\nbytes = 5\nage = 7',
    ],
)
def test_wrong_retention_rules(tmp_path: Path, text: str) -> None:
    """A rule that is not one is refused with its place and what was expected."""
    file = tmp_path / "daemon.toml"
    file.write_text(text)
    with pytest.raises(
        SettingsError, match=r":\d+: retention.*: expected tables \[\[retention\]\]"
    ):
        load_settings({}, {}, file)


def test_retention_rules_are_no_words(tmp_path: Path) -> None:
    """The environment has no place for tables, and says so."""
    with pytest.raises(SettingsError, match="DURABLE_STREAMSD_RETENTION: expected tables"):
        load_settings({}, {"DURABLE_STREAMSD_RETENTION": "logs/**"})


@pytest.mark.parametrize(
    ("kind", "hidden"),
    [(Secret, True), (Secret | None, True), (tuple[Secret, ...], True), (str | None, False)],
)
def test_secrets_are_known_by_their_type(kind: Any, hidden: bool) -> None:
    """A setting whose type has `Secret` in it is shown to nobody."""
    assert holds_secret(inspect.type_info(kind)) is hidden
