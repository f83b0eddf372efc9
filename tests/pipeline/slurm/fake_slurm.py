"""Slurm's commands for tests, over a folder `$FAKE_SLURM`: as much of them as submitit and the executor use.

jobs/ID/state   as squeue shows it          jobs/ID/pid     of the process group that srun started
hold            jobs stay PENDING           refuse          sbatch fails with this text
forget          finished jobs are known neither to squeue nor sacct
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])
JOBS = HOME / "jobs"
FINISHED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "TIMEOUT")


def state(job, new=None):
    place = JOBS / job / "state"
    if new:
        place.with_suffix(".new").write_text(new)
        place.with_suffix(".new").replace(place)
    return place.read_text() if place.exists() else None


def sbatch(arguments):
    if (HOME / "refuse").exists():
        sys.exit((HOME / "refuse").read_text())
    script = Path(arguments[-1])
    job = str(1000 + len(list(JOBS.iterdir())))
    (JOBS / job).mkdir()
    (JOBS / job / "script").write_text(script.read_text())
    (JOBS / job / "name").write_text(re.search(r"--job-name=(\S+)", script.read_text())[1])
    state(job, "PENDING")
    subprocess.Popen(
        [sys.executable, "-SE", __file__, "controller", job], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"Submitted batch job {job}")


def controller(arguments):
    (job,) = arguments
    while True:
        while (HOME / "hold").exists() and state(job) == "PENDING":
            time.sleep(0.02)
        if state(job) == "CANCELLED":
            return
        state(job, "RUNNING")
        environment = {**os.environ, "SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
        status = subprocess.run(["bash", str(JOBS / job / "script")], env=environment, check=False).returncode
        (JOBS / job / "pid").unlink(missing_ok=True)
        if state(job) != "PENDING":  # not requeued
            if state(job) == "RUNNING":
                state(job, "FAILED" if status else "COMPLETED")
            return


def srun(arguments):
    job, files = os.environ["SLURM_JOB_ID"], {}
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in ("--output", "--error", "--cpus-per-task"):
            files[option] = arguments.pop(0).replace("%j", job).replace("%t", "0")
    with open(files["--output"], "a") as output, open(files["--error"], "a") as error:  # noqa: PTH123
        process = subprocess.Popen(arguments, stdout=output, stderr=error, start_new_session=True)
    (JOBS / job / "pid").write_text(str(process.pid))
    sys.exit(process.wait() and 1)


def end(job, number):
    place = JOBS / job / "pid"
    if place.exists():
        os.kill(int(place.read_text()), number)


def scancel(arguments):
    job = arguments[-1]
    with (HOME / "cancelled").open("a") as stream:
        stream.write(f"{' '.join(arguments)}\n")
    if "--state=PENDING" in arguments:
        if state(job) == "PENDING":
            state(job, "CANCELLED")
    elif arguments[0].startswith("--signal="):
        end(job, signal.Signals[f"SIG{arguments[0].partition('=')[2]}"])
    elif state(job) not in FINISHED:
        state(job, "CANCELLED")
        end(job, signal.SIGTERM)


def scontrol(arguments):
    _, job = arguments
    state(job, "PENDING")


def squeue(arguments):
    options = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments)
    if "jobs" in options:
        found = state(options["jobs"])
        if found is None or ((HOME / "forget").exists() and found in FINISHED):
            sys.exit("slurm_load_jobs error: Invalid job id specified")
        print(found)
        return
    for place in sorted(JOBS.iterdir()):
        if state(place.name) in options["states"].split(",") and (place / "name").read_text() == options["name"]:
            print(place.name)


def sacct(arguments):
    found = state(arguments[-1].partition("=")[2])
    if found and not (HOME / "forget").exists():
        print(f"{found} by 1000" if found == "CANCELLED" else found)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2:])
