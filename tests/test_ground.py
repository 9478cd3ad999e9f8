"""Floors 0 and 1 as their users meet them: concurrent writers, killed writers, tampering, bad files, a full disk."""
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
from datetime import datetime

import pandas as pd
import pytest
import sqlalchemy as sa
from conftest import DATABASE, store_url
from hypothesis import given
from hypothesis import strategies as st

from within.clock import FrozenClock, iso, parse_time
from within.context import Context
from within.errors import ConfigError, Conflict, InvalidInput, UnknownDataset, UnknownModel, WithinError
from within.files import file_digest, write_text
from within.ledger import append, entries, verify
from within.policies import load_alerts, load_policy, models_configured, policy_digest, read_yaml
from within.settings import Settings
from within.store import Store
from within.verdicts import Decision, Phase, Verdict, plain, worst
from within.warehouse import DatasetInfo
from within.windows import parse_duration, parse_window

SPAWN = mp.get_context("spawn")


@pytest.fixture
def ground(tmp_path):
    context = Context.open(home=tmp_path / "home", clock=FrozenClock("2023-10-01"), user="engineer@example.com")
    yield context
    context.close()


# Windows and times

@pytest.mark.parametrize("text", [
    "", "30d_last", "last_30_day", "2023-06-30_to_2023-06-01", "2023-13-01_to_2023-14-01", "-7d", "last_0_days", "'; drop table", "7D", None, 7,
])
def test_a_window_nobody_can_mean_is_refused(text):
    with pytest.raises(InvalidInput): parse_window(text, parse_time("2023-10-01"))


@given(st.integers(1, 3000), st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)))
def test_last_days_is_that_many_days_and_ends_at_midnight(days, now):
    w = parse_window(f"last_{days}_days", now)
    assert w.days == days and w.end <= parse_time(now) and iso(w.end).endswith("T00:00:00+00:00")


@given(st.text(max_size=12))
def test_durations_are_read_or_refused_never_half_read(text):
    try: assert parse_duration(text).total_seconds() > 0
    except InvalidInput as e: assert "not a duration" in str(e)


# Verdicts

def test_plain_survives_what_people_put_into_evidence():
    evil = {"frame": pd.Series([1.0, float("nan")]).to_numpy(), "when": pd.Timestamp("2023-10-01", tz="UTC"), 3: {"set"}, "inf": float("inf"), "html": "<b>"}
    read = json.loads(json.dumps(plain(evil), allow_nan=False))
    assert read == {"frame": [1.0, None], "when": "2023-10-01T00:00:00+00:00", "3": ["set"], "inf": None, "html": "<b>"}


@given(st.lists(st.sampled_from(list(Phase)), min_size=1))
def test_only_all_passed_sums_up_to_passed(phases):
    assert (worst(*phases) is Phase.PASSED) == all(p is Phase.PASSED for p in phases)


def test_a_table_escapes_html():
    page = Verdict("<img src=x onerror=alert(1)>", Phase.FAILED, "a | b\n<script>")._repr_markdown_()
    assert "<img" not in page and "<script" not in page and "a &#124; b" in page
    assert Decision.from_dict(Decision("failed", "no", verdicts=(Verdict("g", Phase.ERROR, "broke"),)).to_dict()).verdicts[0].phase is Phase.ERROR


# Policies

def policies(folder, own="", common=""):
    folder.mkdir(exist_ok=True)
    (folder / "policies.yml").write_text(common)
    (folder / "ads.yml").write_text("model: ads\nclass: within.ml.ad_score:AdScorePredictor\ndataset: ads\ntarget: score\nunit: account_id\n" + own)
    return folder


@pytest.mark.parametrize(("own", "said"), [
    ("triggers:\n  js_divergence: -0.2\n", r"ads.yml:7: triggers.js_divergence: .*greater than or equal to 0.*-0.2"),
    ("trigers:\n  js_divergence: 0.2\n", r"ads.yml:6: trigers: unknown key 'trigers'; did you mean 'triggers'"),
    ("gates:\n  improvment: 0.05\n", r"ads.yml:7: gates.improvment: unknown key 'improvment'; did you mean 'improvement'"),
    ("minimums: {samples: 0}\n", r"ads.yml:6: minimums.samples: .*greater than or equal to 1"),
    ("minimums: {samples: many}\n", r"ads.yml:6: minimums.samples: .*integer"),
    ("gates: {required_suites: [performence]}\n", r"ads.yml:6: gates.required_suites.0: "),
    ("release: {shadow: {duration: forever}}\n", r"ads.yml:6: release.shadow.duration: .*not a duration"),
    ("alpha: .nan\n", r"ads.yml:6: alpha: "),
    ("release: {rollout: {approve_from: 101}}\n", r"ads.yml:6: release.rollout.approve_from: .*less than or equal to 100"),
    ("release: {rollout: {max_holds: 0}}\n", r"ads.yml:6: release.rollout.max_holds: .*greater than or equal to 1"),
    ("release: {rollout: {max_holds: 2.5}}\n", r"ads.yml:6: release.rollout.max_holds: "),
    ("time: a\ntime: b\n", r"ads.yml:7: time: written twice"),
    ("segments: [a\n", r"ads.yml:\d+: not YAML"),
    ("description: !!python/object/apply:os.system ['true']\n", r"ads.yml:6: the tag .* is not allowed"),
])
def test_a_policy_error_names_file_line_key_and_what_is_allowed(tmp_path, own, said):
    with pytest.raises(ConfigError, match=said): load_policy("ads", policies(tmp_path / "c", own))


def test_a_rollout_asks_nobody_unless_its_policy_says_so(tmp_path):
    plain = load_policy("ads", policies(tmp_path / "c")).release.rollout
    assert (plain.max_holds, plain.approve_from) == (14, None)
    own = load_policy("ads", policies(tmp_path / "d", "release: {rollout: {approve_from: 50, max_holds: 3}}\n")).release.rollout
    assert (own.max_holds, own.approve_from, own.interval) == (3, 50, "1d")


def test_the_line_of_a_common_policy_error_is_in_the_common_file(tmp_path):
    configs = policies(tmp_path / "c", common="gates:\n  improvement: 7\n")
    with pytest.raises(ConfigError, match=r"policies.yml:2: gates.improvement"): load_policy("ads", configs)


@pytest.mark.parametrize("name", ["../ads", "ads/../ads", "/etc/passwd", "ADS", "", "ads.yml", "ads'; drop table state", "<b>", None])
def test_a_models_name_is_never_a_path(tmp_path, name):
    with pytest.raises(UnknownModel, match="known: ads"): load_policy(name, policies(tmp_path / "c"))


def test_the_projects_own_policies_are_the_guides_tables():
    configs = Settings.from_env().configs
    policy = load_policy("ad_score_predictor", configs)
    assert models_configured(configs) == ["account_health_predictor", "ad_score_predictor", "ad_sentiment_analyzer"]
    fires = policy.triggers
    assert (fires.js_divergence, fires.accuracy_drop, fires.volume_growth, fires.correlation_shift, fires.domain_auc) == (0.2, 0.05, 0.2, 0.3, 0.65)
    assert (policy.gates.improvement, policy.gates.noise_degradation, policy.gates.fairness_variation, policy.minimums.samples) == (0.05, 0.1, 0.1, 50_000)
    assert [load_policy(m, configs).triggers.schedule for m in models_configured(configs)] == ["monthly", "quarterly", "bi-annual"]
    assert set(load_alerts(configs).channels) == {"slack-ml-team", "email-ml-engineers"}


def test_a_policys_digest_ignores_layout_and_sees_values(tmp_path):
    a = policy_digest(load_policy("ads", policies(tmp_path / "a", "alpha: 0.05 # comment\n")))
    b = policy_digest(load_policy("ads", policies(tmp_path / "b")))
    assert a == b != policy_digest(load_policy("ads", policies(tmp_path / "d", "alpha: 0.06\n")))


def test_a_huge_or_binary_policy_is_refused(tmp_path):
    (tmp_path / "big.yml").write_text("a: " + "x" * 1_000_001)
    (tmp_path / "bin.yml").write_bytes(b"\xff\xfe\x00")
    for name in ("big.yml", "bin.yml", "none.yml"):
        with pytest.raises(ConfigError, match=name): read_yaml(tmp_path / name)


# Settings

def test_explicit_beats_variable_beats_default(tmp_path, monkeypatch):
    monkeypatch.setenv("WITHIN_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("WITHIN_SEED", "3")
    assert Settings.from_env().home == tmp_path / "a" and Settings.from_env(seed=4).seed == 4
    assert oct((tmp_path / "a").stat().st_mode & 0o777) == "0o700"
    monkeypatch.setenv("WITHIN_ENGINE", "raye")
    with pytest.raises(InvalidInput, match="did you mean 'ray'"): Settings.from_env()


# The store under several processes

def _put_many(url, times, out):
    store, won = Store(url), 0
    for _ in range(times):
        row = store.get("route", "production/ads")
        try:
            store.put("route", "production/ads", {"count": row.body["count"] + 1}, row.revision)
            won += 1
        except Conflict: pass
    out.put(won)


def test_concurrent_changes_are_never_lost(tmp_path):
    url = store_url(tmp_path)
    store = Store(url)
    store.put("route", "production/ads", {"count": 0}, None)
    out = SPAWN.Queue()
    writers = [SPAWN.Process(target=_put_many, args=(url, 40, out)) for _ in range(3)]
    for w in writers: w.start()
    won = sum(out.get(timeout=60) for _ in writers)
    for w in writers: w.join()
    row = store.get("route", "production/ads")
    assert row.body["count"] == won == row.revision - 1 >= 40
    assert [r.revision for r in store.history("route", "production/ads")] == list(range(1, won + 2))
    store.close()


def _append_many(home, times):
    context = Context.open(home=home, clock=FrozenClock("2023-10-01"))
    for n in range(times): append(context, "event", "load", {"n": n, "by": os.getpid()})


def test_concurrent_appends_make_one_chain(ground):
    writers = [SPAWN.Process(target=_append_many, args=(str(ground.settings.home), 30)) for _ in range(3)]
    for w in writers: w.start()
    for w in writers: w.join(60)
    audit = verify(ground)
    assert audit.ok and audit.entries == 90 == len(entries(ground, kind="event"))


def test_a_writer_killed_in_its_transaction_leaves_nothing_and_blocks_nobody(tmp_path):
    url = store_url(tmp_path)
    store = Store(url)
    store.put("run", "r1", {"phase": "running"}, None)
    code = ("import sys,time; from within.store import Store, _put; from within.clock import parse_time; s=Store(sys.argv[1])\n"
            "with s.transaction() as c:\n  _put(c,'run','r1',{'phase':'passed'},1,parse_time('2023-10-01')); print('in', flush=True); time.sleep(60)")
    child = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE)
    assert child.stdout.readline().strip() == b"in"
    assert store.get("run", "r1").body["phase"] == "running"  # a reader does not wait
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert store.put("run", "r1", {"phase": "failed"}, 1) == 2
    store.close()


def test_put_all_is_all_or_nothing(tmp_path):
    store = Store(store_url(tmp_path))
    store.put("deployment", "d1", {"status": "running"}, None)
    with pytest.raises(Conflict): store.put_all([("deployment", "d2", {}, None), ("deployment", "d1", {}, 7)])
    assert store.get("deployment", "d2") is None and store.get("deployment", "d1").revision == 1
    with pytest.raises(InvalidInput, match="kind of state"): store.put("deploiment", "d3", {}, None)
    store.close()


@pytest.mark.parametrize("hostile", ["'; DROP TABLE state; --", "../../etc", "<script>alert(1)</script>", "ü" * 500, "\x00"])
def test_hostile_text_is_only_text(tmp_path, hostile):
    store = Store(store_url(tmp_path))
    if "\x00" in hostile and DATABASE == "postgresql":
        with pytest.raises(InvalidInput, match="cannot keep this"): store.put("event", hostile, {"name": hostile}, None)
        return store.close()
    store.put("event", hostile, {"name": hostile}, None)
    assert store.get("event", hostile).body["name"] == hostile and len(store.find("event", name=hostile)) == 1
    store.close()


# The ledger

@pytest.mark.parametrize("field", ["at", "kind", "subject", "actor", "body", "previous", "hash"])
def test_every_changed_field_is_found(ground, field):
    for n in range(4): append(ground, "decision", f"run/{n}", {"outcome": "passed", "n": n})
    assert verify(ground).ok
    new = {"at": "2023-10-02T00:00:00+00:00", "body": '{"n": 9, "outcome": "passed"}'}.get(field, "0" * 64)
    with ground.store.transaction() as c: c.execute(sa.text(f"UPDATE ledger SET {field} = :new WHERE seq = 2"), {"new": new})
    assert "entry 2" in verify(ground).first_fault


def test_removed_and_swapped_entries_are_found(ground):
    for n in range(4): append(ground, "decision", f"run/{n}", {"n": n})
    with ground.store.transaction() as c: c.execute(sa.text("UPDATE ledger SET seq = CASE seq WHEN 2 THEN 33 WHEN 3 THEN 2 ELSE seq END"))
    with ground.store.transaction() as c: c.execute(sa.text("UPDATE ledger SET seq = 3 WHERE seq = 33"))
    assert not verify(ground).ok
    with ground.store.transaction() as c: c.execute(sa.text("DELETE FROM ledger WHERE seq = 2"))
    assert "entry 2 is missing" in verify(ground).first_fault


def test_a_vouched_file_that_was_changed_or_removed_is_found(ground):
    page = ground.path("runs", "r1", "index.html")
    write_text(page, "passed")
    append(ground, "decision", "r1/train", {}, files={"runs/r1/index.html": file_digest(page)})
    assert verify(ground).ok
    page.write_text("Passed")
    assert "runs/r1/index.html" in verify(ground).first_fault
    page.unlink()
    assert "is gone" in verify(ground).first_fault


# The warehouse

def test_the_future_is_invisible_and_outcomes_arrive_late(ground):
    frame = pd.DataFrame({"unit": [1, 2, 3], "at": pd.to_datetime(["2023-09-01", "2023-09-30", "2023-10-01"], utc=True), "y": [1.0, 2.0, 3.0],
                          "known": pd.to_datetime(["2023-09-02", "2023-10-01", "2023-10-03"], utc=True)})
    ground.warehouse.write("d", frame, "p", DatasetInfo("d", time="at", unit="unit", target="y", outcome_time="known"))
    assert ground.warehouse.table("d").execute().y.tolist() == [1.0, 2.0]
    assert ground.warehouse.table("d", as_of=parse_time("2023-09-30T12:00:00")).execute().y.isna().tolist() == [False, True]
    ground.clock.advance_to(parse_time("2023-10-02"))
    assert ground.warehouse.table("d").execute().y.isna().tolist() == [False, False, True]


@pytest.mark.parametrize("name", ["../d", "d/..", "", "D", "a'b"])
def test_a_dataset_is_not_a_path(ground, name):
    with pytest.raises((InvalidInput, UnknownDataset)): ground.warehouse.write(name, pd.DataFrame({"a": [1]}), "p", DatasetInfo(name, time="a", unit="a"))
    with pytest.raises(UnknownDataset): ground.warehouse.table(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tiny disk needs root")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        write_text(disk / "decision.json", '{"outcome": "passed"}')
        with pytest.raises(WithinError, match="free some space"): write_text(disk / "decision.json", "x" * 200_000)
        assert (disk / "decision.json").read_text() == '{"outcome": "passed"}' and [p.name for p in disk.iterdir()] == ["decision.json"]
    finally: subprocess.run(["umount", str(disk)], check=True)
