"""Where settings come from, which source wins, and what is said about one that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.errors import SettingsError
from agenticmail_enterprise.gateway.settings import Settings
from agenticmail_enterprise.gateway.settings_load import DEFAULT, LEAVES, VARIABLES, load, variable_of


def problems(**sources: Any) -> list[dict[str, str]]:
    with pytest.raises(SettingsError) as caught:
        load(**{"environ": {}, **sources})
    for problem in caught.value.details["problems"]:
        assert problem["message"] in caught.value.message
        assert problem["origin"] in caught.value.message
    return list(caught.value.details["problems"])


def toml(folder: Path, text: str, name: str = "agenticmail.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_without_any_source_everything_is_default(tmp_path: Path) -> None:
    loaded = load(environ={}, folder=tmp_path)
    assert loaded.settings == Settings()
    assert loaded.file is None
    assert set(loaded.origins) == set(LEAVES)
    assert set(loaded.origins.values()) == {DEFAULT}


def test_file_then_environment_then_flags(tmp_path: Path) -> None:
    file = toml(tmp_path, 'database = "sqlite:///file.db"\n[server]\nport = 1\nhost = "file"\nworkers = 2\n')
    environ = {"AGENTICMAIL_SERVER_PORT": "2", "AGENTICMAIL_SERVER_WORKERS": "3", "UNRELATED": "x"}
    loaded = load(environ=environ, folder=tmp_path, flags={"server.workers": 4, "database": None})
    assert loaded.file == file
    assert loaded.settings.database == "sqlite:///file.db"
    assert (loaded.settings.server.host, loaded.settings.server.port, loaded.settings.server.workers) == ("file", 2, 4)
    assert loaded.origins["database"] == str(file)
    assert loaded.origins["server.port"] == "environment AGENTICMAIL_SERVER_PORT"
    assert loaded.origins["server.workers"] == "flag --workers"
    assert loaded.origins["log.level"] == DEFAULT


def test_config_names_another_file_by_flag_or_variable(tmp_path: Path) -> None:
    toml(tmp_path, "server.port = 1")
    toml(tmp_path, "server.port = 2", "other.toml")
    toml(tmp_path, "server.port = 3", "third.toml")
    environ = {"AGENTICMAIL_CONFIG": "third.toml"}
    assert load(environ={}, folder=tmp_path).settings.server.port == 1
    assert load("other.toml", environ=environ, folder=tmp_path).settings.server.port == 2
    assert load(environ=environ, folder=tmp_path).settings.server.port == 3


def test_relative_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    file = toml(home, 'database = "sqlite:///gw.db"\ndata_dir = "./data"')
    near = load(environ={}, folder=home).settings
    assert (near.database, near.data_dir) == ("sqlite:///gw.db", "./data")
    far = load(file, environ={}, folder=elsewhere).settings
    assert far.database == f"sqlite:///{home}/gw.db"
    assert Path(far.data_dir) == home / "data"


@pytest.mark.parametrize(
    "url", ["sqlite:////abs/gw.db", "sqlite://", "sqlite:///:memory:", "memory://", "postgres://h/db"]
)
def test_urls_without_a_relative_path_stay_as_they_are(tmp_path: Path, url: str) -> None:
    (tmp_path / "sub").mkdir()
    assert load(toml(tmp_path / "sub", f'database = "{url}"'), environ={}, folder=tmp_path).settings.database == url


@pytest.mark.parametrize(
    ("text", "path", "nearest"),
    [
        ("[server]\nprot = 1", "server.prot", "server.port"),
        ("port = 1", "port", "server.port"),
        ("databse = 'x'", "databse", "database"),
        ("[journl]\nsync = 'none'", "journl", "journal"),
        ("[server.extra]\na = 1", "server.extra", ""),
        ("zzzzzz = 1", "zzzzzz", ""),
    ],
)
def test_an_unknown_key_names_its_path_file_and_what_was_meant(
    tmp_path: Path, text: str, path: str, nearest: str
) -> None:
    file = toml(tmp_path, text)
    (problem,) = problems(folder=tmp_path)
    assert (problem["path"], problem["origin"], problem["nearest"]) == (path, str(file), nearest)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("AGENTICMAIL_DATABSE", "AGENTICMAIL_DATABASE"),
        ("AGENTICMAIL_PORT", "AGENTICMAIL_SERVER_PORT"),
        ("AGENTICMAIL_SERVER__PORT", "AGENTICMAIL_SERVER_PORT"),
        ("AGENTICMAIL_CONFG", "AGENTICMAIL_CONFIG"),
        ("AGENTICMAIL_QQQQQQQ", ""),
    ],
)
def test_an_unknown_variable_is_an_error_too(tmp_path: Path, name: str, nearest: str) -> None:
    (problem,) = problems(folder=tmp_path, environ={name: "1"})
    assert (problem["path"], problem["origin"], problem["nearest"]) == (name, "environment", nearest)


def test_variables_of_the_mail_server_itself_are_none_of_ours(tmp_path: Path) -> None:
    loaded = load(environ={"AGENTICMAIL_API_KEY": "ak_1", "AGENTICMAIL_DEBUG": "1"}, folder=tmp_path)
    assert loaded.settings == Settings()


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    toml(tmp_path, "prot = 1\n[server]\nport = 70000\nworkers = 'two'\n[log]\nlevel = 'loud'\n")
    found = problems(folder=tmp_path, environ={"AGENTICMAIL_JOURNAL_SYNC": "often"})
    assert {problem["path"] for problem in found} == {
        "prot",
        "server.port",
        "server.workers",
        "log.level",
        "journal.sync",
    }
    level = next(problem for problem in found if problem["path"] == "log.level")
    assert "debug, info, warning, error" in level["message"]


def test_a_wrong_value_of_a_secret_or_a_database_is_not_repeated(tmp_path: Path) -> None:
    toml(tmp_path, "secret_key = 1234567\ndatabase = 7654321")
    text = " ".join(problem["message"] for problem in problems(folder=tmp_path))
    assert "1234567" not in text
    assert "7654321" not in text


def test_lists_are_separated_by_commas_and_plugin_tables_are_json(tmp_path: Path) -> None:
    environ = {"AGENTICMAIL_PLUGINS_GUARDS": "a, b,,c ", "AGENTICMAIL_PLUGINS_CONFIG": '{"a": {"x": [1]}}',
               "AGENTICMAIL_SERVER_ALLOWED_HOSTS": ""}  # fmt: skip
    settings = load(environ=environ, folder=tmp_path).settings
    assert settings.plugins.guards == ("a", "b", "c")
    assert settings.plugins.config == {"a": {"x": [1]}}
    assert settings.server.allowed_hosts == ()
    (problem,) = problems(folder=tmp_path, environ={"AGENTICMAIL_PLUGINS_CONFIG": "{nonsense"})
    assert problem["path"] == "plugins.config"


def test_a_table_of_a_plugin_keeps_its_own_keys(tmp_path: Path) -> None:
    toml(tmp_path, "[plugins.config.my-guard]\nanything = {goes = 'here'}")
    assert load(environ={}, folder=tmp_path).settings.plugins.config == {"my-guard": {"anything": {"goes": "here"}}}


def test_a_section_must_be_a_table(tmp_path: Path) -> None:
    toml(tmp_path, "server = 3000")
    (problem,) = problems(folder=tmp_path)
    assert problem["path"] == "server"
    assert "table" in problem["message"]


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"[x]\n[x]\n"])
def test_a_file_that_is_no_toml_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "agenticmail.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"agenticmail\.toml cannot be read"):
        load(environ={}, folder=tmp_path)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no settings file nowhere\.toml"):
        load("nowhere.toml", environ={}, folder=tmp_path)
    with pytest.raises(SettingsError, match="no settings file"):
        load(tmp_path, environ={}, folder=tmp_path)


def test_every_setting_has_one_variable_and_no_two_share_one() -> None:
    assert len(VARIABLES) == len(LEAVES)
    assert all(variable_of(path) == name for name, path in VARIABLES.items())


@given(st.dictionaries(st.from_regex(r"AGENTICMAIL_[A-Z_]{1,20}", fullmatch=True), st.text(max_size=20), max_size=4))
def test_whatever_is_in_the_environment_loads_or_is_a_settings_error(environ: dict[str, str]) -> None:
    environ.pop("AGENTICMAIL_CONFIG", None)
    try:
        loaded = load(environ=environ, folder=Path("/nonexistent"))
    except SettingsError:
        return
    assert isinstance(loaded.settings, Settings)
