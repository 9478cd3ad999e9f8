"""Data-parallel jobs: one curve for any number of workers, killed workers and owners, buckets, results that any process reads, nothing left running."""
from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import parallel_model
import psutil
import pytest
from conftest import on_path

from within.context import Context
from within.errors import ConfigError, Conflict, DigestMismatch, InvalidInput, UnknownModel, WithinError
from within.files import read_json, write_json
from within.ml.data_parallel import LoopPolicy, Place, Plan, attempt_of, load_training_config, rate_at, set_up, work
from within.ml.distributed import DistributedTrainer, asked_for
from within.ml.distributed_runner import bring_rows
from within.ml.job_rows import MappedRows, copy_rows, find_rows
from within.ml.jobs import curve_of, job_events, job_result, new_job, runs
from within.verdicts import Phase

TESTS, ROOT = Path(__file__).parent, Path(__file__).parent.parent
CONFIG = """
model: tiny_text
parameters: {dropout: 0.2, pause: PAUSE}
loop: {batch_size: 32, micro_batch: 8, max_steps: 24, learning_rate: 0.01, warmup_steps: 2}
validate_every: 8
checkpoint_every: 4
validation_rows: 100
"""


def texts(rows: int, seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    good = draw.random(rows) < 0.5
    words = ["".join(draw.choice(list("aeioubcd" if g else "xyzbcdaq"), draw.integers(5, 40))) for g in good]
    return pd.DataFrame({"text": words, "label": np.where(good, "positive", "negative")})


def parts(frame: pd.DataFrame, folder: Path, files: int = 2) -> Path:
    folder.mkdir(parents=True)
    for i in range(files): frame.iloc[i::files].to_parquet(folder / f"part-{i}.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    "Rows, a home, configs that name the tiny model, and a path on which fresh processes find its class."
    folder = tmp_path_factory.mktemp("parallel")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shipped = (folder / "configs" / "ad_sentiment_analyzer.yml").read_text()
    (folder / "configs" / "tiny_text.yml").write_text(shipped.replace("model: ad_sentiment_analyzer", "model: tiny_text").replace(
        "within.ml.ad_sentiment:AdSentimentAnalyzer", "parallel_model:TinyText"))
    for name, pause in (("quick", "0.0"), ("slow", "0.1")): (folder / f"{name}.yml").write_text(CONFIG.replace("PAUSE", pause))
    parts(texts(800, 1), folder / "train")
    parts(texts(200, 2), folder / "val")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", on_path(TESTS))
        yield folder


@pytest.fixture(scope="module")
def home(place) -> Iterator[Context]:
    ctx = Context.open(home=place / "home", configs=place / "configs")
    yield ctx
    ctx.close()
    assert not living(place / "home"), "a job's processes end with it"


def living(home: Path, seconds: float = 10) -> list[str]:
    "Processes other than this one that carry the home, after a moment."
    until, mine = time.monotonic() + seconds, {os.getpid()}
    while True:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid not in mine and process.status() != psutil.STATUS_ZOMBIE and process.environ().get("WITHIN_HOME") == str(home):
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
        if not found or time.monotonic() > until: return found
        time.sleep(0.2)


def start(ctx: Context, place: Path, workers: int, config: str = "quick", mixed: bool = False, train: str | None = None):
    trainer = DistributedTrainer(workers, "mirrored", mixed, ctx=ctx)
    return trainer, trainer.train("TinyText", train or str(place / "train"), str(place / "val"), str(place / f"{config}.yml"))


@pytest.fixture(scope="module")
def undisturbed(home, place):
    "One worker's job, and what it left."
    trainer, job = start(home, place, 1)
    return job, trainer.monitor(job.id, verbose=False)


def wait_for(job, kind: str, count: int, seconds: float = 120) -> list[dict]:
    "The first so-many events of a kind."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = [e for e in job_events(job.folder)[0] if e["event"] == kind]
        if len(found) >= count or not runs(job.folder): break
        time.sleep(0.02)
    assert len(found) >= count, (job.folder / "log.txt").read_text()[-2000:]
    return found


# --- in this process -------------------------------------------------------------------------------------------------------------------------------

def asked_in(place: Path, ctx: Context, **changes) -> Path:
    "A job's folder with its rows, without processes."
    asked = asked_for("TinyText", str(place / "train"), str(place / "val"), str(place / "quick.yml"), 1, False, ctx)
    asked["config"] |= changes
    folder = new_job(ctx, "tiny_text", asked)
    bring_rows(folder, asked)
    return folder


def losses(folder: Path) -> dict[int, float]: return curve_of(job_events(folder)[0])


def test_going_on_from_a_checkpoint_is_bit_for_bit_the_undisturbed_way(place, home, monkeypatch):
    whole, cut = asked_in(place, home), asked_in(place, home)
    seat = Place(0, 1, "cpu", False)
    work(set_up(whole, parallel_model.TinyText, seat, 0, home))
    calls = []
    with monkeypatch.context() as patch:
        first = parallel_model.TinyText.batch
        def stops(self, rows):
            calls.append(1)
            if len(calls) == 4 * 11: raise KeyboardInterrupt
            return first(self, rows)
        patch.setattr(parallel_model.TinyText, "batch", stops)
        with pytest.raises(KeyboardInterrupt): work(set_up(cut, parallel_model.TinyText, seat, 0, home))
    assert max(losses(cut)) < 11
    work(set_up(cut, parallel_model.TinyText, seat, 1, home))
    assert losses(cut) == losses(whole) and read_json(cut / "outcome.json") == read_json(whole / "outcome.json")
    assert (cut / "model" / "weights.safetensors").read_bytes() == (whole / "model" / "weights.safetensors").read_bytes()


def test_a_checkpoint_of_another_job_is_refused_and_a_damaged_one_passed_over(place, home):
    one, other = asked_in(place, home), asked_in(place, home, seed=7)
    seat = Place(0, 1, "cpu", False)
    work(set_up(one, parallel_model.TinyText, seat, 0, home))
    shutil.copytree(one / "checkpoints", other / "checkpoints")
    with pytest.raises(DigestMismatch, match="start a new job"): work(set_up(other, parallel_model.TinyText, seat, 0, home))
    last = sorted((one / "checkpoints").iterdir())[-1]
    (last / "network.safetensors").write_bytes((last / "network.safetensors").read_bytes()[:-3])
    work(set_up(one, parallel_model.TinyText, seat, 1, home))
    assert [e["step"] for e in job_events(one)[0] if e["event"] == "resumed"] == [20]
    for broken in (one / "checkpoints").iterdir(): (broken / "state.json").write_text("[]")
    work(set_up(one, parallel_model.TinyText, seat, 2, home))
    assert [e["step"] for e in job_events(one)[0] if e["event"] == "resumed"] == [20, 0]


def test_bfloat16_changes_the_loss_little(place, home):
    plain, mixed = asked_in(place, home), asked_in(place, home)
    for folder, of in ((plain, False), (mixed, True)): work(set_up(folder, parallel_model.TinyText, Place(0, 1, "cpu", of), 0, home))
    gap = [abs(losses(plain)[s] - losses(mixed)[s]) for s in losses(plain)]
    assert 0 < max(gap) < 0.05


def test_a_loss_that_is_no_number_ends_it(place, home):
    folder = asked_in(place, home, loop=LoopPolicy(batch_size=32, micro_batch=8, learning_rate=10, max_steps=24).model_dump())
    bench = set_up(folder, parallel_model.TinyText, Place(0, 1, "cpu", False), 0, home)
    for p in bench.network.parameters(): p.data.fill_(float("nan"))
    with pytest.raises(InvalidInput, match="the loss of step 1 is nan; lower loop.learning_rate"): work(bench)


@pytest.mark.parametrize("rows, batch, micro, steps", [(100, 8, 2, 60), (64, 8, 8, 5), (9, 8, 1, 7), (5000, 32, 8, 300)])
def test_a_plan_uses_every_row_once_an_epoch(rows, batch, micro, steps):
    plan, numbers = Plan(rows, batch, micro, steps, 3), np.arange(rows) * 7919 % 101
    for epoch in range(-(-steps // plan.each)):
        drawn, by_length = plan.draw(epoch), plan.order(epoch, lambda n: numbers[n])
        assert len(np.unique(drawn)) == drawn.size and sorted(drawn.ravel()) == sorted(by_length.ravel())
        assert len(drawn) == min(plan.each, steps - epoch * plan.each)
    if rows == 5000: assert np.ptp(numbers[plan.order(0, lambda n: numbers[n])], axis=1).mean() < np.ptp(numbers[plan.draw(0)], axis=1).mean() / 5


def test_rates_rise_and_fall():
    loop = LoopPolicy(learning_rate=1.0, warmup_steps=10)
    rates = [rate_at(s, 100, loop) for s in range(1, 101)]
    assert np.argmax(rates) == 10 and rates[9] < 1 and 0 < rates[-1] < 0.02 and min(rates) > 0
    assert {rate_at(s, 100, LoopPolicy(learning_rate=1.0, schedule="constant")) for s in range(1, 101)} == {1.0}


# --- what is refused before anything starts --------------------------------------------------------------------------------------------------------

def refused(home, place, error, match, model="TinyText", train=None, val=None, config="quick.yml", workers=2):
    before = sorted((place / "home" / "jobs").glob("*")) if (place / "home" / "jobs").exists() else []
    trainer, path = DistributedTrainer(workers, ctx=home), config if "/" in config else str(place / config)
    with pytest.raises(error, match=match): trainer.train(model, train or str(place / "train"), val or str(place / "val"), path)
    assert sorted((place / "home" / "jobs").glob("*")) == before, "a job that is refused leaves no folder"


def test_paths_that_hold_no_rows(home, place, tmp_path):
    parts(texts(40, 3).rename(columns={"label": "sentiment"}), tmp_path / "other")
    parts(texts(40, 3).iloc[:0], tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "csv").mkdir()
    texts(40, 3).to_csv(tmp_path / "csv" / "a.csv")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.parquet").write_bytes(b"PAR1 no")
    for path, match in (("nowhere", "do not exist"), ("empty", "no Parquet files"), ("csv", r"no Parquet files \(1 others\)"), ("other", "lacks label"),
                        ("none", "no rows"), ("broken", "cannot be read")):
        refused(home, place, InvalidInput, match, train=str(tmp_path / path))
    refused(home, place, InvalidInput, "the validation data .* do not exist", val=str(tmp_path / "nowhere"))
    for odd in ("nosuch://bucket/x", "simplecache::s3://b/x", 5, ""): refused(home, place, InvalidInput, "path|opened|exist", train=odd or " ")


def test_models_and_configs_that_cannot_be_meant(home, place, tmp_path):
    refused(home, place, UnknownModel, "TinyText", model="TinyTxt")
    refused(home, place, InvalidInput, "cannot be trained data-parallel: it has no network", model="AdScorePredictor")
    refused(home, place, InvalidInput, "no training config", config="nothing.yml")
    refused(home, place, InvalidInput, "33 workers cannot share 4 micro-batches", workers=33)
    for text, error, match in (("loop: {batch: 3}", ConfigError, "batch_size"), ("loop: {batch_size: 10, micro_batch: 4}", ConfigError, "does not divide"),
                               ("model: ad_sentiment_analyzer", InvalidInput, "is for ad_sentiment_analyzer, not for tiny_text"),
                               ("loop: {learning_rate: fast}", ConfigError, "learning_rate"), ("parameters: {widht: 3}", InvalidInput, "width"),
                               ("loop: {batch_size: 4096, micro_batch: 8}", InvalidInput, "do not fill one batch"), ("- a", ConfigError, "mapping"),
                               ("max_restarts: -1", ConfigError, "max_restarts")):
        (tmp_path / "odd.yml").write_text(text)
        refused(home, place, error, match, config=str(tmp_path / "odd.yml"))


@pytest.mark.parametrize("wrong", [{"num_workers": 0}, {"num_workers": "4"}, {"num_workers": True}, {"num_workers": 2.0}, {"num_workers": 10**6},
                                   {"strategy": "mirorred"}])
def test_trainers_that_cannot_be_meant(wrong):
    with pytest.raises(InvalidInput): DistributedTrainer(**wrong)


def test_an_unknown_job_is_told_what_exists(home, place, undisturbed):
    for wrong in ("nothing", "../../etc/passwd", None, 7, undisturbed[0].id + "x"):
        with pytest.raises(InvalidInput, match=f"known: .*{undisturbed[0].id}"): DistributedTrainer(ctx=home).monitor(wrong)


def test_the_shipped_config_is_read_and_bounded():
    config = load_training_config(ROOT / "configs" / "sentiment_analyzer_v3.yml")
    assert config.model == "ad_sentiment_analyzer" and config.loop.max_steps and config.loop.batch_size // config.loop.micro_batch >= 4


# --- rows ------------------------------------------------------------------------------------------------------------------------------------------

def test_rows_keep_their_numbers(tmp_path):
    frame = texts(500, 4).assign(weight=np.arange(500))
    frame.loc[[3, 400], "label"] = None
    source = find_rows(str(parts(frame, tmp_path / "rows", files=3)), "label")
    facts = copy_rows(source, "label", tmp_path / "copy.arrow")
    rows, kept = MappedRows(tmp_path / "copy.arrow"), pd.concat([frame.iloc[i::3] for i in range(3)]).dropna()
    assert facts["rows"] == len(rows) == 498 and facts["dropped"] == 2
    pick = np.random.default_rng(0).integers(0, 498, 64)
    pd.testing.assert_frame_equal(rows.take(pick), kept.iloc[pick].reset_index(drop=True), check_dtype=False)
    assert copy_rows(source, "label", tmp_path / "again.arrow")["digest"] == facts["digest"]
    with pytest.raises(InvalidInput, match="no rows with a label"):
        copy_rows(find_rows(str(parts(frame.assign(label=pd.Series([None] * 500, dtype="str")), tmp_path / "bare")), "label"), "label", tmp_path / "no.arrow")


def test_files_of_other_types_are_named(tmp_path):
    folder = parts(texts(20, 5).assign(n=1), tmp_path / "mixed")
    texts(20, 5).assign(n="many").to_parquet(folder / "part-9.parquet", index=False)
    with pytest.raises(InvalidInput, match="part-9.parquet' has other types"): copy_rows(find_rows(str(folder), "label"), "label", tmp_path / "x.arrow")


@contextlib.contextmanager
def bucket(place: Path) -> Iterator[str]:
    "A loopback S3 with the rows of `place`, reached through the usual variables."
    import boto3
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                           "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1,localhost"}.items(): patch.setenv(key, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="rows")
        for file in sorted(place.glob("*/part-*.parquet")): client.upload_file(str(file), "rows", f"{file.parent.name}/{file.name}")
        try: yield "s3://rows"
        finally: server.stop()


def test_a_bucket_or_a_key_that_does_not_exist(home, place):
    with bucket(place) as s3:
        for path in (f"{s3}/nothing", "s3://no-such-bucket/train"): refused(home, place, InvalidInput, "do not exist|cannot be read", train=path)
        assert find_rows(f"{s3}/train", "label").rows == 800 and find_rows(f"{s3}/train/part-0.parquet", "label").rows == 400


# --- jobs ------------------------------------------------------------------------------------------------------------------------------------------

def test_one_worker_learns_and_leaves_a_model(undisturbed, home, place):
    job, result = undisturbed
    assert result.phase is Phase.PASSED and result.step == result.steps == 24 and result.metrics["accuracy"] > 0.9 and result.restarts == 0
    assert list(result.curve) == list(range(1, 25)) and set(result.validation_curve) == {8, 16, 24} and result.tracking_run_id
    assert job.model.predict(texts(50, 9)).shape == (50,) and job.model.lineage["rows"]["train"]["rows"] == 800
    again = DistributedTrainer(ctx=home).monitor(job.id, verbose=False)
    assert again == result and DistributedTrainer(ctx=home).job(job.id).result.digest == result.digest
    left = {p.name for p in job.folder.rglob("*") if p.is_file()}
    assert not {n for n in left if n.endswith((".pt", ".pth", ".pkl", ".bin", ".arrow"))} and "weights.safetensors" in left


def test_the_model_can_be_registered(undisturbed, home):
    from within.ml.registry import ModelRegistry
    job, result = undisturbed
    info = ModelRegistry(home).register_model(job.model, "tiny_text", "1.0.0", result.metrics)
    assert ModelRegistry(home).load("tiny_text", "1.0.0").predict(texts(5, 9)) == pytest.approx(job.model.predict(texts(5, 9)))
    assert info.lineage["job"] == job.id


def test_a_tampered_model_is_not_loaded(undisturbed, tmp_path, home, place):
    job, result = undisturbed
    copy = home.path("jobs", job.id[:-8] + "0000aaaa")
    shutil.copytree(job.folder, copy)
    write_json(copy / "job.json", {**read_json(copy / "job.json"), "id": copy.name})
    with open(copy / "model" / "weights.safetensors", "ab") as file: file.write(b"!")
    with pytest.raises(DigestMismatch): _ = DistributedTrainer(ctx=home).job(copy.name).model
    shutil.rmtree(copy)


@pytest.mark.slow
def test_four_workers_from_a_bucket_have_the_curve_of_one(undisturbed, home, place, capsys):
    with bucket(place) as s3:
        trainer, job = start(home, place, 4, mixed=False, train=f"{s3}/train")
        code = "import sys; from within.ml.distributed import DistributedTrainer as D; print(D().monitor(sys.argv[1]).phase)"
        env = {**os.environ, "WITHIN_HOME": str(place / "home"), "WITHIN_CONFIGS": str(place / "configs")}
        other = subprocess.run([sys.executable, "-c", code, job.id], env=env, capture_output=True, text=True, timeout=300)
        result = trainer.monitor(job.id)
    one = undisturbed[1]
    assert max(abs(result.curve[s] - one.curve[s]) for s in one.curve) < 1e-4 and result.workers == 4
    assert abs(result.validation_loss - one.validation_loss) < 1e-4
    assert "step 24/24: loss" in other.stdout and other.stdout.strip().endswith("passed"), other.stderr[-1000:]
    assert "validation loss" in capsys.readouterr().out
    assert len({e["pid"] for e in job_events(job.folder)[0] if e["event"] == "worker"}) == 4


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again_and_the_curve_goes_on(undisturbed, home, place):
    trainer, job = start(home, place, 2, config="slow")
    wait_for(job, "step", 10)
    victim = next(e["pid"] for e in job_events(job.folder)[0] if e["event"] == "worker" and e["rank"] == 1)
    os.kill(victim, signal.SIGKILL)
    result = trainer.monitor(job.id, verbose=False)
    one = undisturbed[1]
    assert result.phase is Phase.PASSED and result.restarts == 1 and attempt_of(job.folder) == 2
    assert max(abs(result.curve[s] - one.curve[s]) for s in one.curve) < 1e-4 and list(result.curve) == list(one.curve)
    went_on = [e["step"] for e in job_events(job.folder)[0] if e["event"] == "resumed"]
    assert len(went_on) == 1 and went_on[0] >= 8, "from a checkpoint, not from the beginning"


SCRIPT = """
import sys
from within.ml.distributed import DistributedTrainer
trainer = DistributedTrainer(2)
job = trainer.train("TinyText", *sys.argv[1:])
print(job.id, flush=True)
trainer.monitor(job.id, verbose=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_a_job_ends_with_its_owner_and_can_be_gone_on_with(how, undisturbed, home, place):
    env = {**os.environ, "WITHIN_HOME": str(place / "home"), "WITHIN_CONFIGS": str(place / "configs")}
    owner = subprocess.Popen([sys.executable, "-c", SCRIPT, str(place / "train"), str(place / "val"), str(place / "slow.yml")], env=env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))   # a job in the background inherits deaf ears
    trainer = DistributedTrainer(2, ctx=home)
    job = trainer.job(owner.stdout.readline().strip())
    wait_for(job, "step", 6)
    with pytest.raises(Conflict, match="is running"): trainer.resume(job.id)
    owner.send_signal(how)
    owner.wait(20)
    assert not living(place / "home")
    stopped = trainer.status(job.id)
    assert stopped.phase is Phase.ERROR and "owner let go" in stopped.reason
    with pytest.raises(WithinError, match="did not end well"): trainer.monitor(job.id, verbose=False)
    with pytest.raises(WithinError, match="has no model"): _ = job.model
    result = trainer.monitor(trainer.resume(job.id).id, verbose=False)
    one = undisturbed[1]
    assert result.phase is Phase.PASSED and max(abs(result.curve[s] - one.curve[s]) for s in one.curve) < 1e-4
    with pytest.raises(Conflict, match="has ended well"): trainer.resume(job.id)


@pytest.mark.slow
def test_a_killed_runner_takes_its_workers_along(home, place):
    trainer, job = start(home, place, 2, config="slow")
    wait_for(job, "step", 2)
    os.kill(read_json(job.folder / "runner.json")["pid"], signal.SIGKILL)
    with pytest.raises(WithinError, match="without a result"): trainer.monitor(job.id, verbose=False)
    assert not living(place / "home") and trainer.status(job.id).phase is Phase.ERROR


@pytest.mark.slow
def test_stopping_leaves_nothing(home, place):
    trainer, job = start(home, place, 2, config="slow")
    wait_for(job, "step", 1)
    assert trainer.stop(job.id).phase is Phase.ERROR and not living(place / "home")
    assert trainer.stop(job.id) == trainer.status(job.id)


@pytest.mark.slow
def test_rows_that_cannot_be_meant_end_a_job_without_restarts(home, place, tmp_path):
    frame = texts(200, 6)
    frame.loc[150:, "label"] = "meh"
    trainer, job = start(home, place, 2, train=str(parts(frame, tmp_path / "meh")))
    with pytest.raises(WithinError, match="label 'meh' cannot be meant"): trainer.monitor(job.id, verbose=False)
    result = trainer.status(job.id)
    assert result.phase is Phase.FAILED and result.restarts == 0 and not living(place / "home")


@pytest.mark.slow
def test_a_network_that_breaks_says_so_after_its_restarts(home, place, monkeypatch):
    monkeypatch.setenv("TINY_TEXT_BREAKS", "1")
    (place / "few.yml").write_text(CONFIG.replace("PAUSE", "0.0") + "max_restarts: 1\n")
    trainer, job = start(home, place, 2, config="few")
    with pytest.raises(WithinError, match="workers died 2 times"): trainer.monitor(job.id, verbose=False)
    assert "a wheel came off" in (job.folder / "log.txt").read_text() and not living(place / "home")


def test_a_linear_analyzer_is_refused_before_anything_starts(home, place, tmp_path):
    (tmp_path / "linear.yml").write_text("model: ad_sentiment_analyzer\nloop: {batch_size: 32, micro_batch: 8}\n")
    refused(home, place, InvalidInput, "set architecture: transformer", model="AdSentimentAnalyzer", config=str(tmp_path / "linear.yml"))
    (tmp_path / "weighted.yml").write_text("parameters: {architecture: transformer, class_weights: balanced}\n")
    refused(home, place, InvalidInput, "class_weights needs all rows", model="AdSentimentAnalyzer", config=str(tmp_path / "weighted.yml"))


@pytest.mark.slow
def test_the_analyzer_is_trained_by_two_workers(home, place, tmp_path):
    text = (ROOT / "configs" / "sentiment_analyzer_v3.yml").read_text()
    for key, value in (("max_steps", 2), ("batch_size", 8), ("micro_batch", 4), ("validation_rows", 16)):
        text = "\n".join(f"{line.partition(':')[0]}: {value}" if line.strip().startswith(f"{key}:") else line for line in text.splitlines())
    (tmp_path / "short.yml").write_text(text)
    trainer = DistributedTrainer(2, "mirrored", mixed_precision=True, ctx=home)
    job = trainer.train("AdSentimentAnalyzer", str(place / "train"), str(place / "val"), str(tmp_path / "short.yml"))
    result, model = trainer.monitor(job.id, verbose=False), job.model
    assert result.step == 2 and abs(result.curve[1] - np.log(2)) < 0.02 and 0.4 < model.target_mean < 0.6
    assert model.get_parameters()["architecture"] == "transformer" and ((p := model.predict(texts(3, 8))) > 0).all() and (p < 1).all()


@pytest.mark.slow
def test_ray_trains_the_same_curve_and_survives_a_killed_worker(undisturbed, place):
    pytest.importorskip("ray.train")
    ctx = Context.open(home=place / "ray-home", configs=place / "configs", engine="ray")
    trainer, job = start(ctx, place, 2, config="slow")
    wait_for(job, "step", 10, seconds=240)
    os.kill(next(e["pid"] for e in job_events(job.folder)[0] if e["event"] == "worker" and e["rank"] == 1), signal.SIGKILL)
    result = trainer.monitor(job.id, verbose=False)
    one = undisturbed[1]
    assert result.phase is Phase.PASSED and result.restarts >= 1 and json.loads((job.folder / "job.json").read_text())["engine"] == "ray"
    assert max(abs(result.curve[s] - one.curve[s]) for s in one.curve) < 1e-4
    ctx.close()
    assert not living(place / "ray-home", 20)


def test_a_job_nobody_runs_is_an_error_not_a_pass(home, place):
    folder = asked_in(place, home)
    found = job_result(folder)
    assert found.phase is Phase.ERROR and "without a result" in found.reason
