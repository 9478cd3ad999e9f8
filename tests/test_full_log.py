"""A log that cannot be written: nothing is acknowledged, what was torn harms nobody, and service is back when there is room again."""
from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading

import pytest
from bare_gateway import bare, eventually

from within.context import Context
from within.observations import AppendFile, PredictionLog
from within.serving.routes import Share, point

def day(place) -> str: return place.ctx.now().strftime("%Y-%m-%d")


def test_a_disk_that_fills_in_the_middle_of_a_line_costs_503s_and_no_acknowledged_prediction(tmp_path):
    with bare(tmp_path / "home") as place:
        place.host("1.0.0")
        place.route("1.0.0")
        place.start()
        answers = {f"a{i}": place.infer(f"a{i}", i) for i in range(5)}
        file = max(place.ctx.path("log", "production").iterdir())
        unbounded = resource.prlimit(place.gateway.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(place.gateway.pid, resource.RLIMIT_FSIZE, (file.stat().st_size + 700, unbounded[1]))
        answers |= {f"b{i}": place.infer(f"b{i}", i) for i in range(12)}
        codes = [answers[f"b{i}"][0] for i in range(12)]
        assert set(codes) == {200, 503} and codes == sorted(codes) and "could not be logged" in answers["b11"][1]["error"]
        resource.prlimit(place.gateway.pid, resource.RLIMIT_FSIZE, unbounded)
        answers |= {f"c{i}": place.infer(f"c{i}", i) for i in range(5)}
        assert all(answers[f"c{i}"][0] == 200 for i in range(5))
        log = PredictionLog(place.ctx, "production").predictions()
        assert {id for id, (code, _) in answers.items() if code == 200} <= set(log["id"]) and log.attrs["bad_lines"] == 1


def test_a_request_fails_when_any_of_its_rows_was_not_logged(tmp_path):
    with bare(tmp_path / "home") as place:
        place.host("1.0.0")
        place.host("2.0.0")
        place.route("1.0.0", shares=[Share("treatment", "2.0.0", 50)])
        place.start()
        quick = next(f"u{i}" for i in range(99) if point(f"u{i}", "") >= 50)
        slow = next(f"u{i}" for i in range(99) if point(f"u{i}", "") < 50)
        folder = place.ctx.path("log", "production")
        folder.mkdir(parents=True)
        (file := folder / f"{day(place)}.jsonl").symlink_to("/dev/full")
        place.signal("2.0.0", signal.SIGSTOP)
        got = {}
        asking = threading.Thread(target=lambda: got.update(r=place.infer("r", 1, 2, unit=[quick, slow])))
        asking.start()
        assert eventually(lambda: any(h["waiting"] for h in standing(place)["hosts"].values()) and standing(place)["hosts"]["1.0.0"]["waiting"] == 0)
        file.unlink()   # there is room again before the second row is back
        place.signal("2.0.0", signal.SIGCONT)
        asking.join()
        assert got["r"][0] == 503 and "could not be logged" in got["r"][1]["error"]
        assert place.infer("later", 3, 4, unit=[quick, slow])[0] == 200


def standing(place) -> dict:
    from within.serving.wire import ask

    return ask(place.url, "/routes")[1]["routes"]["toy"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small tmpfs")
def test_a_small_disk_that_is_really_full(tmp_path):
    with bare(tmp_path / "home") as place:
        folder = place.ctx.path("log", "production")
        folder.mkdir(parents=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
        if mounted.returncode: pytest.skip("mounting is not allowed here")
        try:
            place.host("1.0.0")
            place.route("1.0.0")
            place.start()
            answers = {f"r{i}": place.infer(f"r{i}", i) for i in range(400)}
            codes = {code for code, _ in answers.values()}
            assert codes == {200, 503}
            log = PredictionLog(place.ctx, "production").predictions()
            assert {id for id, (code, _) in answers.items() if code == 200} <= set(log["id"])
            subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
            assert place.infer("room", 1)[0] == 200 and "room" in set(PredictionLog(place.ctx, "production").predictions()["id"])
        finally:
            place.gateway.kill()
            place.gateway.wait()
            subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_torn_end_never_swallows_the_next_line(tmp_path):
    file = tmp_path / "2023-10-01.jsonl"
    for tail in (b"", b'{"id":"tor', b'{"id":"torn"}', b"\n", b"\xff\xfe"):
        file.write_bytes(b'{"id":"a","at":"2023-10-01T00:00:00+00:00"}\n' + tail)
        log = AppendFile(file)
        for _ in range(2): log.append(b'{"id":"b","at":"2023-10-01T00:00:00+00:00"}\n')
        log.close()
        assert file.read_bytes().splitlines()[-2:] == [b'{"id":"b","at":"2023-10-01T00:00:00+00:00"}'] * 2


def test_an_append_after_an_error_opens_the_file_again(tmp_path):
    ctx = Context.open(home=tmp_path / "home")
    log, folder = PredictionLog(ctx, "production"), ctx.path("log", "production")
    folder.mkdir(parents=True)
    (file := folder / "2023-10-01.jsonl").symlink_to("/dev/full")
    line = {"id": "a", "at": "2023-10-01T00:00:00+00:00"}
    with pytest.raises(OSError): log.append([line])
    file.unlink()
    assert log.append([line]) == 1 and log.predictions()["id"].tolist() == ["a"]
    log.close()
    ctx.close()
