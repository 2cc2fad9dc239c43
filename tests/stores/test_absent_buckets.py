"""A bucket that does not exist is no empty study."""

import pytest
import yaml
from typer.testing import CliRunner

import bdflow
from bdflow.cli.main import app
from bdflow.stores import NotReady, StoreError, Study
from bdflow.stores.remote import Patience, credentials


def test_a_bucket_that_does_not_exist_is_said_by_every_command(s3, settings, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path, study="s3://nobody-has-this/lab/s.zarr")), encoding="utf-8")
    for command in ("status", "verify", "report", "maps"):
        done = CliRunner().invoke(app, [command, str(file)])
        assert isinstance(done.exception, StoreError), done.output
        assert "no such bucket" in str(done.exception)
        assert "absent" not in done.output
    with pytest.raises(StoreError, match="no such bucket"):
        bdflow.open_study("s3://nobody-has-this/lab/s.zarr")
    elsewhere = settings(tmp_path, dataset={"root": "s3://nobody-has-this/nsd", "sessions": 3})
    file.write_text(yaml.safe_dump(elsewhere), encoding="utf-8")
    done = CliRunner().invoke(app, ["run", str(file), "--only", "ingest"])
    assert "no such bucket" in str(done.exception)


def test_an_empty_place_in_a_bucket_is_absent(s3, settings, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path, study=f"{s3.bucket}/lab/s.zarr")), encoding="utf-8")
    done = CliRunner().invoke(app, ["status", str(file)])
    assert (done.exit_code, done.output.count("absent") > 10) == (0, True)
    assert not Study(f"{s3.bucket}/lab/s.zarr").exists
    with pytest.raises(NotReady, match="no study there"):
        bdflow.open_study(f"{s3.bucket}/lab/s.zarr")


@pytest.mark.parametrize(
    ("name", "value"),
    [("ATTEMPTS", "many"), ("TIMEOUT", "long"), ("TIMEOUT", "nan"), ("TIMEOUT", "-1"), ("TIMEOUT", "inf")],
)
def test_bounds_that_are_no_numbers(name, value, monkeypatch):
    monkeypatch.setenv(f"BDFLOW_STORE_{name}", value)
    with pytest.raises(StoreError, match=f"BDFLOW_STORE.*{name}"):
        Patience.usual()


@pytest.mark.parametrize("content", [b"[default\nx", b"a = 1", b"[default]\n[default]\n", "[déf]".encode("latin-1")])
def test_profiles_that_cannot_be_read(content, monkeypatch, tmp_path):
    (tmp_path / "config").write_bytes(content)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(StoreError, match=str(tmp_path / "config")):
        credentials()
