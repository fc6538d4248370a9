import json
import math
import os
import stat

import numpy as np
import pytest

from common_core.records import (
    Record,
    RecordError,
    environment,
    read_json,
    to_jsonable,
    write_bytes_atomic,
    write_json_atomic,
)
from common_core.stats import Estimate


def test_a_record_survives_the_disk(tmp_path):
    record = Record({"d": 3, "names": ["a", "b"]}, {"loss": Estimate(0.5, 0.4, 0.6), "steps": 7}, (1, 2), duration=1.5)
    record.save(tmp_path / "deep" / "record.json")
    back = Record.load(tmp_path / "deep" / "record.json")
    assert back.config == record.config
    assert back.seeds == (1, 2)
    assert back.duration == 1.5
    assert Estimate.from_json(back.metrics["loss"]) == record.metrics["loss"]
    assert back.environment == record.environment


def test_numbers_that_json_lacks_come_back():
    text = json.dumps(to_jsonable({"a": math.nan, "b": [math.inf, -math.inf], "c": np.float32(0.5), "d": np.arange(2)}))
    back = json.loads(text)
    assert math.isnan(float(back["a"]))
    assert [float(item) for item in back["b"]] == [math.inf, -math.inf]
    assert back["c"] == 0.5
    assert back["d"] == [0, 1]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json_atomic(path, {"version": "old"})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json_atomic(path, {"version": "new"})
    assert json.loads(path.read_text()) == {"version": "old"}
    assert [item.name for item in tmp_path.iterdir()] == ["file.json"]


def test_files_get_the_permissions_that_open_would_give(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_bytes_atomic(tmp_path / "ours", b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "not a repertory.record file"),
        ('{"schema": "other/1"}', "not a repertory.record file"),
        ('{"schema": "repertory.record/99"}', "newer version"),
        ('{"schema": "repertory.record/1", "config": {}}', "incomplete record"),
    ],
)
def test_files_that_are_not_records_are_named(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=message) as caught:
        Record.load(path)
    assert "file.json" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecordError, match="no such file"):
        read_json(tmp_path / "absent.json", "repertory.record/1")


def test_the_environment_names_no_host_and_no_user():
    import getpass
    import platform

    text = json.dumps(to_jsonable(environment()))
    assert platform.node() not in text.split('"')
    assert getpass.getuser() not in text.split('"')
    assert json.loads(text)["versions"]["numpy"] == np.__version__
