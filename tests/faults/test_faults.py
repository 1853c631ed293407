"""Faults, not simulated: processes are killed, disks filled, files cut; what is left is whole or is not there."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from makers import environment, files_of, normal, python, read_model, same_bytes, write_model

import merganser as mg
from merganser.errors import CheckpointError, MerganserError, NonFiniteError, OutputError, RequestError

LAYERS = 60
MERGE = """
import sys, json
import merganser as mg
from merganser.errors import MerganserError
home, out, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
base, a, b = (mg.open(f"{home}/{n}") for n in ("base", "a", "b"))
vectors = [mg.trim(m - base, 0.3) for m in (a, b)]
merged = base + float(options.pop("amount", 1.0)) * mg.disjoint_mean(vectors, mg.elect_sign(vectors))
print("planned", flush=True)
try:
    report = merged.save(out, **options)
except MerganserError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_status)
found = {"resumed": report.resumed, "tensors": report.tensors}
sizes = ("bytes_read", "bytes_read_in_all", "bytes_written", "bytes_resumed")
print(json.dumps({name: getattr(report, name) for name in sizes}))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Parents of many tensors, some larger than a tile: about 0.2 s of work."""
    home = tmp_path_factory.mktemp("source")
    part = normal(90_000)
    for k, name in enumerate(("base", "a", "b")):
        tensors = {
            f"layers.{i}.w": np.roll(part, 977 * i + 31 * k) * np.float32(k + 1) for i in range(LAYERS)
        }
        write_model(home / name, tensors | {"embed": np.tile(np.roll(part, k), 14)})
    return home


@pytest.fixture(scope="module")
def reference(source):
    done = run(source, source / "reference")
    assert done.returncode == 0, done.stdout + done.stderr
    return files_of(source / "reference")


@pytest.fixture
def home(source, tmp_path):
    """Parents of its own for a test that harms them (hard links are not enough: it writes into them)."""
    for name in ("base", "a", "b"):
        shutil.copytree(source / name, tmp_path / name)
    return tmp_path


def run(home, out, limit=None, **options):
    code = MERGE if limit is None else f"import resource\n{limit}\n{MERGE}"
    return python(code, home, out, json.dumps({"threads": 1, "sync": False} | options))


def hear_interrupts():
    """A job that a shell put in the background hands down deaf ears for Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(home, out, **options):
    """The same in the background, past its imports and its plan."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            MERGE,
            str(home),
            str(out),
            json.dumps({"threads": 1, "sync": False} | options),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "planned\n"
    return process


def partial_of(out):
    return out.parent / f".{out.name}.merganser-partial"


def journal(out):
    path = partial_of(out) / "journal.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_lines(process, out, lines):
    """Wait until the journal has so many lines. False when the run ended before."""
    while process.poll() is None:
        if len(journal(out)) >= lines:
            return True
        time.sleep(0.0005)
    return False


def stopped(home, out, lines=20, how=signal.SIGKILL, **options):
    """Start a merge and kill it when its journal has so many lines. Tries until it was caught."""
    for _ in range(10):
        process = started(home, out, **options)
        caught = wait_for_lines(process, out, lines)
        process.send_signal(how)
        told = process.communicate(timeout=600)
        if caught and not out.exists():
            return process, told
        shutil.rmtree(out, ignore_errors=True)
    pytest.fail("the merge always ended before it was stopped")


# killed


def test_killed_at_random_moments_it_ends_with_the_same_bytes(source, reference, tmp_path):
    """Killed again and again in one output's life, it never shows a half-made one, and resumes."""
    out = tmp_path / "out"
    rng = random.Random(1)
    resumed = killed = 0
    for _ in range(6):
        before = len(journal(out))
        process = started(source, out)
        wait_for_lines(process, out, before + rng.randint(0, 9))
        time.sleep(rng.random() * 0.01)
        process.kill()
        process.communicate()
        if out.exists():
            break
        killed += 1
    if not out.exists():
        done = run(source, out)
        assert done.returncode == 0, done.stdout + done.stderr
        resumed = json.loads(done.stdout.splitlines()[-1])["resumed"]
    assert killed >= 2 and (resumed > 0 or out.exists())
    assert files_of(out) == reference
    assert not partial_of(out).exists()


def test_a_killed_run_is_resumed_at_the_last_finished_tensor(source, reference, tmp_path):
    out = tmp_path / "out"
    stopped(source, out, lines=30)
    finished = sum('"tensor": "' in line and line.endswith("}") for line in journal(out))
    done = run(source, out)
    sizes, found = map(json.loads, done.stdout.splitlines()[-2:])
    assert found == {"resumed": finished, "tensors": LAYERS + 1}
    assert finished >= 25 and files_of(out) == reference
    # `embed`, 14 parts, is planned first; what is left are layers of one part each, whatever the passes over one are
    held, layers = sizes["bytes_resumed"] // (4 * 90_000), LAYERS + 1 - finished
    assert sizes["bytes_written"] == 4 * 90_000 * (LAYERS + 14)
    assert held == finished + 13, "the large tensor was finished"
    share = layers / (LAYERS + 14)
    assert sizes["bytes_read"] == pytest.approx(share * sizes["bytes_read_in_all"], rel=1e-6)
    run_of = json.loads((out / "merganser.json").read_text())["run"]
    assert {name: run_of[name] for name in sizes} == sizes


def test_killed_before_the_rename_it_resumes_everything(source, reference, tmp_path):
    out = tmp_path / "out"
    code = "import os, signal\nimport merganser.engine.workspace as w\n" + MERGE.replace(
        "try:", "w.Workspace.seal = lambda self: os.kill(os.getpid(), signal.SIGKILL)\ntry:", 1
    )
    done = python(code, source, out, json.dumps({"sync": False}))
    assert done.returncode == -signal.SIGKILL and not out.exists()
    done = run(source, out)
    assert json.loads(done.stdout.splitlines()[-1])["resumed"] == LAYERS + 1
    assert files_of(out) == reference


def test_a_killed_run_is_not_resumed_when_told_so(source, reference, tmp_path):
    out = tmp_path / "out"
    stopped(source, out)
    assert json.loads(run(source, out, resume=False).stdout.splitlines()[-1])["resumed"] == 0
    assert files_of(out) == reference


def test_a_changed_recipe_starts_over(source, tmp_path):
    out = tmp_path / "out"
    stopped(source, out)
    done = run(source, out, amount=0.5)
    assert json.loads(done.stdout.splitlines()[-1])["resumed"] == 0
    run(source, tmp_path / "straight", amount=0.5)
    assert files_of(out) == files_of(tmp_path / "straight")


@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"recipe": {"a": 1}}, {"shard_size": 10**6}])
def test_changed_options_that_matter_start_over(source, tmp_path, options):
    out = tmp_path / "out"
    stopped(source, out, lines=5)
    assert json.loads(run(source, out, **options).stdout.splitlines()[-1])["resumed"] == 0


def test_options_that_do_not_matter_resume(source, reference, tmp_path):
    out = tmp_path / "out"
    stopped(source, out)
    done = run(source, out, threads=2, tile=2**18, memory=2**29)
    assert json.loads(done.stdout.splitlines()[-1])["resumed"] >= 15
    assert files_of(out) == reference


@pytest.mark.parametrize("change", ["touched", "rewritten"])
def test_a_changed_parent_starts_over(home, change):
    out = home / "out"
    stopped(home, out)
    path = home / "a/model.safetensors"
    if change == "touched":
        os.utime(path)
    else:
        write_model(home / "a", {n: t + np.float32(1) for n, t in read_model(home / "a").items()})
    assert json.loads(run(home, out).stdout.splitlines()[-1])["resumed"] == 0
    run(home, home / "straight")
    assert files_of(out) == files_of(home / "straight")


def test_a_finished_tensor_that_was_damaged_is_computed_again(source, reference, tmp_path):
    """As after a power failure: the journal says it is there, the disk does not."""
    out = tmp_path / "out"
    stopped(source, out, lines=20)
    names = [json.loads(line)["tensor"] for line in journal(out)[1:] if line.endswith("}")]
    victim = next(name for name in names if name.startswith("layers"))
    path = partial_of(out) / "model/model.safetensors"
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin, _ = json.loads(raw[8 : 8 + length])[victim]["data_offsets"]
    with path.open("r+b") as file:
        file.seek(8 + length + begin + 1000)
        file.write(bytes([raw[8 + length + begin + 1000] ^ 1]))
    done = run(source, out)
    assert json.loads(done.stdout.splitlines()[-1])["resumed"] == len(names) - 1
    assert files_of(out) == reference


@pytest.mark.parametrize("damage", ["cut", "rubbish", "empty", "not objects", "lost"])
def test_a_damaged_journal_costs_time_only(source, reference, tmp_path, damage):
    out = tmp_path / "out"
    stopped(source, out)
    path = partial_of(out) / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "lost":
        path.unlink()
    else:
        path.write_text(
            {
                "cut": "".join(lines[:9]) + lines[9][:17],
                "rubbish": "".join(lines[:5]) + "\x00\x00\x00\n" + "".join(lines[6:]),
                "empty": "",
                "not objects": lines[0] + "[1]\n7\n" + '{"tensor": "embed"}\n',
            }[damage]
        )
    done = run(source, out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_of(out) == reference


def test_the_last_line_of_a_killed_run_does_not_swallow_the_next(source, reference, tmp_path):
    """Killed while it wrote a line, resumed, killed again: what the second run noted still counts."""
    out = tmp_path / "out"
    stopped(source, out, lines=10)
    path = partial_of(out) / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:8]) + lines[8][:11])
    stopped(source, out, lines=30)
    done = run(source, out)
    assert json.loads(done.stdout.splitlines()[-1])["resumed"] >= 20
    assert files_of(out) == reference


# interrupted


def test_ctrl_c_keeps_what_is_finished(source, reference, tmp_path):
    out = tmp_path / "out"
    process, (_, error) = stopped(source, out, how=signal.SIGINT)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in error
    assert not out.exists() and partial_of(out).exists()
    assert json.loads(run(source, out).stdout.splitlines()[-1])["resumed"] >= 15
    assert files_of(out) == reference


# disks


def test_a_file_size_limit_is_a_clear_error(source, reference, tmp_path):
    out = tmp_path / "out"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, resource.RLIM_INFINITY))"
    done = run(source, out, limit)
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith("OutputError: ")
    assert "size limit" in done.stdout and not out.exists()
    done = run(source, out, limit, shard_size=6_000_000)
    assert done.returncode == 0 and len(list(out.glob("*.safetensors"))) > 3
    assert all(same_bytes(t, u) for t, u in zip(*(models(out, source / "reference")), strict=True))


def models(*directories):
    found = [read_model(d) for d in directories]
    assert all(f.keys() == found[0].keys() for f in found)
    return [[f[name] for name in sorted(f)] for f in found]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB, smaller than the result."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_too_small_is_refused_before_anything_is_written(source, small_disk):
    done = run(source, small_disk / "out")
    assert done.returncode == 1 and "OutputError" in done.stdout
    assert "GB are free" in done.stdout and "nothing was written" in done.stdout
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_is_a_clear_error_and_can_be_resumed(source, reference, small_disk):
    """Room is asked for first, so someone else takes it: the check is told that there is enough."""
    out = small_disk / "out"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(6_000_000))
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    blind = "import shutil\nshutil.disk_usage = lambda path: type('Room', (), {'free': 10**12})\n"
    done = python(blind + MERGE, source, out, json.dumps({"threads": 1, "sync": False}))
    assert done.returncode == 1, done.stderr
    assert "OutputError" in done.stdout and "disk is full" in done.stdout and "again" in done.stdout
    assert not out.exists()
    ballast.unlink()
    done = run(source, out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["resumed"] > 0
    assert files_of(out) == reference


def test_a_device_that_is_always_full_is_a_clear_error(opened, tmp_path, monkeypatch):
    """/dev/full answers every write with ENOSPC, mount or no mount."""
    real = os.pwrite
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(full if at > 0 else fd, data, at))
    with pytest.raises(OutputError, match="disk is full"):
        opened("m", w=normal(1000)).save(tmp_path / "out", sync=False)
    assert not (tmp_path / "out").exists()
    os.close(full)


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only for root")
def test_a_place_that_cannot_be_written_is_a_clear_error(opened, tmp_path):
    place = tmp_path / "locked"
    place.mkdir(mode=0o500)
    with pytest.raises(OutputError, match=f"cannot be written: {os.strerror(errno.EACCES)}"):
        opened("m", w=normal(10)).save(place / "out")


def test_a_place_under_a_file_is_a_clear_error(opened, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=f"cannot be written: {os.strerror(errno.ENOTDIR)}"):
        opened("m", w=normal(10)).save(tmp_path / "file" / "out")


# parents that change


def test_a_parent_cut_after_it_was_opened_is_an_error(home):
    a, b = mg.open(home / "a"), mg.open(home / "b")
    os.truncate(home / "b/model.safetensors", 1_000_000)
    with pytest.raises(
        CheckpointError, match=r"b/model\.safetensors: ends before byte .* cut while it was read"
    ):
        (0.5 * a + 0.5 * b).save(home / "out", sync=False)
    assert not (home / "out").exists()


@pytest.mark.parametrize("how", ["written", "removed", "replaced"])
def test_a_parent_changed_during_the_run_is_an_error(home, how):
    a, b = mg.open(home / "a"), mg.open(home / "b")
    path = home / "b/model.safetensors"
    done = []

    def harm(*_):
        if not done:
            done.append(True)
            if how == "written":
                with path.open("r+b") as file:
                    file.seek(-8, os.SEEK_END)
                    file.write(b"12345678")
                os.utime(path, ns=(1, 1))
            elif how == "removed":
                path.unlink()
            else:
                shutil.copy(path, home / "copy")
                os.replace(home / "copy", path)

    with pytest.raises(
        CheckpointError, match=r"b/model\.safetensors: was (changed|lost) while it was in use"
    ):
        (0.5 * a + 0.5 * b).save(home / "out", sync=False, progress=harm)
    assert done and not (home / "out").exists()


def test_a_parent_lost_before_it_was_read_is_an_error(home):
    a, b = mg.open(home / "a"), mg.open(home / "b")
    b.checkpoints[0].files[0].close()
    (home / "b/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors"):
        (0.5 * a + 0.5 * b).save(home / "out", sync=False)
    assert not (home / "out").exists()


# what is already there


def test_what_is_there_is_not_touched_unless_asked(opened, tmp_path):
    a, b = opened("a", w=normal(50, seed=1)), opened("b", w=normal(50, seed=2))
    a.save(tmp_path / "out", sync=False)
    before = files_of(tmp_path / "out")
    with pytest.raises(RequestError, match=r"already exists.*--overwrite"):
        b.save(tmp_path / "out", sync=False)
    assert files_of(tmp_path / "out") == before and not partial_of(tmp_path / "out").exists()
    b.save(tmp_path / "out", overwrite=True, sync=False)
    assert same_bytes(read_model(tmp_path / "out")["w"], normal(50, seed=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "parents"]


def test_what_is_there_stays_when_the_replacement_fails(opened, tmp_path):
    a = opened("a", w=normal(50), v=normal(50))
    bad = normal(50)
    bad[7] = np.nan
    b = opened("b", v=normal(50), w=bad)
    a.save(tmp_path / "out", sync=False)
    (tmp_path / "out/notes.txt").write_text("mine")
    before = files_of(tmp_path / "out")
    with pytest.raises(NonFiniteError):
        b.save(tmp_path / "out", overwrite=True, sync=False)
    assert files_of(tmp_path / "out") == before


def test_killed_while_replacing_the_old_one_stays(source, tmp_path):
    out = tmp_path / "out"
    write_model(out, {"old": normal(5)})
    before = files_of(out)
    process = started(source, out, overwrite=True)
    assert wait_for_lines(process, out, 5)
    process.kill()
    process.communicate()
    assert files_of(out) == before or (out / "merganser.json").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_checkpoint_is_never_replaced(opened, tmp_path, overwrite):
    model = opened("m", w=normal(5))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/diary.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for name in ("home", "file", "link"):
        with pytest.raises(MerganserError):
            model.save(tmp_path / name, overwrite=overwrite, sync=False)
    assert (tmp_path / "home/diary.txt").read_text() == "dear" and (tmp_path / "file").read_text() == "x"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("place", ["a", "a/inside", ".", "link"])
def test_a_parent_is_never_the_output(tmp_path, place):
    a = mg.open(write_model(tmp_path / "p/a", {"w": normal(5)}))
    (tmp_path / "p/link").symlink_to(tmp_path / "p/a")
    before = files_of(tmp_path / "p")
    with pytest.raises(RequestError, match=r"parent 'a'; choose another place"):
        (a * 1.0).save(tmp_path / "p" / place, overwrite=True, sync=False)
    assert files_of(tmp_path / "p") == before


# two at once


def test_two_processes_at_once_one_gets_a_clear_error(source, reference, tmp_path):
    out = tmp_path / "out"
    code = MERGE.replace(
        "report = merged.save(out, **options)", "report = merged.save(out, **options, progress=slow)"
    )
    slow = "import time\ndef slow(*_):\n    time.sleep(1.5)\n"
    first = subprocess.Popen(
        [sys.executable, "-c", slow + code, str(source), str(out), json.dumps({"sync": False})],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert wait_for_lines(first, out, 1)
    second = run(source, out)
    assert second.returncode == 1 and "OutputError" in second.stdout
    assert "another process is writing it" in second.stdout
    told, _ = first.communicate(timeout=600)
    assert first.returncode == 0, told
    assert files_of(out) == reference


def test_an_output_that_appears_meanwhile_is_not_replaced(source, tmp_path):
    out = tmp_path / "out"
    base, a = mg.open(source / "base"), mg.open(source / "a")

    def other(*_):
        if not out.exists():
            write_model(out, {"theirs": normal(3)})

    with pytest.raises(MerganserError, match="already exists"):
        (0.5 * base + 0.5 * a).save(out, sync=False, progress=other)
    assert list(read_model(out)) == ["theirs"]


def test_no_thread_is_left_behind(opened, tmp_path):
    before = threading.active_count()
    bad = normal(50)
    bad[0] = np.inf
    with pytest.raises(NonFiniteError):
        opened("m", w=bad).save(tmp_path / "out", threads=3)
    assert threading.active_count() == before


def test_the_limits_of_this_process_are_as_before():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
