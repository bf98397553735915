from pathlib import Path

import pytest

from goco_mpi import hardware


def describe(folder: Path, *caches: tuple[str, str, str]) -> Path:
    for index, values in enumerate(caches):
        cache = folder / f"index{index}"
        cache.mkdir()
        for name, value in zip(("type", "level", "size"), values, strict=True):
            (cache / name).write_text(value + "\n")
    return folder


def test_caches_are_those_that_the_system_describes(tmp_path):
    folder = describe(
        tmp_path,
        ("Instruction", "1", "64K"),
        ("Data", "1", "48K"),
        ("Unified", "2", "1024K"),
        ("Unified", "3", "32M"),
    )
    assert [hardware.cache_bytes(level, folder) for level in (1, 2, 3)] == [48 << 10, 1 << 20, 32 << 20]


@pytest.mark.parametrize("size", ["", "large", "0K"])
def test_a_size_that_is_none_is_not_believed(tmp_path, monkeypatch, size):
    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(hardware.os, "sysconf", unknown)
    folder = describe(tmp_path, ("Unified", "2", size))
    assert hardware.cache_bytes(2, folder) is None


def test_where_there_is_no_description_the_c_library_is_asked(tmp_path, monkeypatch):
    asked = {"SC_LEVEL2_CACHE_SIZE": 1 << 19, "SC_LEVEL3_CACHE_SIZE": 0, "SC_LEVEL1_DCACHE_SIZE": 1 << 15}
    monkeypatch.setattr(hardware.os, "sysconf", asked.__getitem__)
    assert [hardware.cache_bytes(level, tmp_path / "none") for level in (1, 2, 3)] == [1 << 15, 1 << 19, None]


def test_blocks_are_as_large_as_the_cache_within_bounds():
    assert [hardware.block_bytes(size) for size in (None, 0, 1 << 19, 1 << 30)] == [None, 1 << 18, 1 << 19, 1 << 21]
