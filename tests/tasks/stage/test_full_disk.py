"""What is said of a full disk. The kernel's own: /dev/full has no room for anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_lib.errors import DiskFull
from tasks.stage.full_disk import disk_full

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def test_the_folder_and_its_room_are_named(tmp_path):
    with pytest.raises(OSError) as error, FULL.open("w") as file:
        file.write("a checkpoint")
    found = disk_full(error.value, tmp_path)
    assert isinstance(found, DiskFull)
    assert "B free. Free some space and run the same command again" in str(found)
    later = RuntimeError("the checkpoint could not be written")
    later.__cause__ = error.value
    assert str(disk_full(later, tmp_path)) == str(found)
    assert "the disk of /dev is full" in str(disk_full(OSError(28, "No space left on device", "/dev/full"), tmp_path))
    assert disk_full(found, tmp_path) is None  # it has been told


def test_other_errors_are_not_it(tmp_path):
    with pytest.raises(RuntimeError) as error:
        torch.save({"weights": torch.zeros(3)}, tmp_path / "nowhere" / "file")
    assert disk_full(error.value, tmp_path) is None  # torch's words for it would be others
    assert disk_full(FileNotFoundError(2, "No such file", "x"), tmp_path) is None
    assert disk_full(ValueError("a bug"), tmp_path) is None
