"""Homes: the living are left alone, the dead are claimed once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agenticmail_enterprise.gateway.spool import Home, Segment, claim_orphans


def test_a_living_workers_home_is_not_claimed(tmp_path: Path) -> None:
    home = Home.create(tmp_path)
    assert claim_orphans(tmp_path) == []
    home.release()
    claimed = claim_orphans(tmp_path)
    assert [orphan.name for orphan in claimed] == [home.name]
    assert claim_orphans(tmp_path) == []
    claimed[0].remove()
    assert claim_orphans(tmp_path) == []


def test_orphans_come_oldest_first(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        home = Home.create(tmp_path)
        names.append(home.name)
        home.release()
    claimed = claim_orphans(tmp_path)
    assert [orphan.name for orphan in claimed] == names
    for orphan in claimed:
        orphan.remove()


def test_a_folder_whose_lock_was_never_made_is_claimed(tmp_path: Path) -> None:
    """Its maker died between two system calls."""
    (tmp_path / "half").mkdir()
    claimed = claim_orphans(tmp_path)
    assert [orphan.name for orphan in claimed] == ["half"]
    claimed[0].remove()
    assert not (tmp_path / "half").exists()


def test_no_folder_no_orphans(tmp_path: Path) -> None:
    assert claim_orphans(tmp_path / "none") == []


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    home = Home.create(tmp_path)
    (home.path / "notes.txt").write_text("mine")
    Segment.create(home.path, 3, 65536).close()
    Segment.create(home.path, 2, 65536).close()
    segments = home.segments()
    assert [segment.number for segment in segments] == [2, 3]
    for segment in segments:
        segment.close()
    home.remove()


CLAIMANT = """
import sys
from pathlib import Path
from agenticmail_enterprise.gateway.spool import claim_orphans
print(len(claim_orphans(Path(sys.argv[1]))), flush=True)
sys.stdin.read()
"""


def test_of_many_claimants_one_gets_it(tmp_path: Path) -> None:
    Home.create(tmp_path).release()
    command = [sys.executable, "-c", CLAIMANT, str(tmp_path)]
    claimants = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    counts = [int(claimant.stdout.readline()) for claimant in claimants if claimant.stdout]
    for claimant in claimants:
        claimant.communicate()
    assert sorted(counts) == [0, 0, 0, 1]


def test_a_spool_is_closed_to_others(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "data" / "spool")
    assert os.stat(home.path).st_mode & 0o777 == 0o700
    assert os.stat(home.path.parent).st_mode & 0o777 == 0o700
    home.remove()


def test_a_disk_without_room_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    """Under a limit of file size, as the kernel enforces it."""
    program = """
import resource, signal, sys
from pathlib import Path
from agenticmail_enterprise.gateway.spool import Segment
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Path(sys.argv[1])
Segment.create(folder, 1, 65536).close()
try:
    Segment.create(folder, 2, 1 << 20)
except OSError as error:
    print(error.errno, len(list(folder.iterdir())))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["27", "1"]


def test_a_name_is_made_once(tmp_path: Path) -> None:
    homes = [Home.create(tmp_path) for _ in range(20)]
    assert len({home.name for home in homes}) == 20
    for home in homes:
        home.remove()
    with pytest.raises(FileNotFoundError):
        os.stat(homes[0].path)
