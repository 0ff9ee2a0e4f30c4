from pathlib import Path

from proxy.contain.outside import switched_off


def test_the_switch_that_is_off_is_named_and_how_to_turn_it(tmp_path: Path) -> None:
    switches = [
        (str(tmp_path / "absent"), "0", "kernel.absent=1"),
        (str(tmp_path / "on"), "0", "kernel.on=1"),
        (str(tmp_path / "restricts"), "1", "kernel.restricts=0"),
    ]
    (tmp_path / "on").write_text("1\n")
    (tmp_path / "restricts").write_text("0\n")
    assert switched_off(switches) == ""
    (tmp_path / "restricts").write_text("1\n")
    told = switched_off(switches)
    assert told == "kernel.restricts is 1; type: sudo sysctl -w kernel.restricts=0"
