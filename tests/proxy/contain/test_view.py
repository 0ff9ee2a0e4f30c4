from pathlib import Path

from proxy.contain.view import everywhere, is_hidden, listening, outermost

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 27 254:0 {inner} {alias} rw,relatime shared:1 - ext4 /dev/vda rw
32 27 0:9 / {other} rw,relatime - tmpfs tmpfs rw
33 27 254:0 {elsewhere} {strange} rw,relatime - ext4 /dev/vda rw
"""


def test_a_directory_is_found_at_every_place_where_its_file_system_shows(tmp_path: Path) -> None:
    data = tmp_path / "home" / "data"
    alias, other = tmp_path / "with a blank", tmp_path / "other"
    for path in (data, alias / "data", other):
        path.mkdir(parents=True)
    mounts = MOUNTS.format(
        inner=tmp_path / "home",
        alias=str(alias).replace(" ", "\\040"),
        other=other,
        elsewhere="/somewhere/else",
        strange=tmp_path / "strange",
    )
    assert everywhere(data, mounts) == (data, alias / "data")
    assert everywhere(other / "data", mounts) == (other / "data",)


def test_a_place_that_is_covered_there_is_not_counted(tmp_path: Path) -> None:
    mounts = f"27 1 254:0 / / rw - ext4 a rw\n31 27 254:0 {tmp_path} /nowhere rw - ext4 a rw\n"
    assert everywhere(tmp_path / "data", mounts) == (tmp_path / "data",)


def test_sockets_that_somebody_listens_on_are_those_with_a_path() -> None:
    table = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000: 00000002 00000000 00010000 0001 01 17 /run/user/1000/bus
0000: 00000002 00000000 00010000 0001 01 18 @abstract
0000: 00000003 00000000 00000000 0001 03 19 /run/connected
0000: 00000003 00000000 00000000 0001 03 20
0000: 00000002 00000000 00010000 0005 01 21 /home/u/with a blank
0000: 00000002 00000000 00010000 0005 01 22 /home/u/with a blank
"""
    assert listening(table) == (Path("/run/user/1000/bus"), Path("/home/u/with a blank"))


def test_of_directories_in_each_other_the_outermost_stay() -> None:
    paths = [Path("/a/b/c"), Path("/a/b"), Path("/a/bc"), Path("/a/b")]
    assert outermost(paths) == (Path("/a/b"), Path("/a/bc"))


def test_what_is_hidden_is_told() -> None:
    assert is_hidden(Path("/tmp/x/data"))
    assert not is_hidden(Path("/temporary"))
