"""What `her2cache embed` shows while it works."""

from __future__ import annotations

from cluster.cli.embed import PatchPace
from cluster.job import Progress


def test_pace_counts_patches_and_expects_those_of_slides_to_come() -> None:
    job, work = Progress(slides=4), PatchPace()
    assert work.after(job, 0.0) == ""
    job.planned_patches = 1000
    assert work.after(job, 5.0) == ""  # embedders load
    job.planned_patches = 3000
    assert work.after(job, 6.0) == ""
    job.written_patches = 200
    assert work.after(job, 10.0) == ""  # from here on
    job.written_patches = 700
    # 2,300 of the two slides under way, and 1,500 of each to come
    assert work.after(job, 15.0) == "100 patches/s, 53 s left"
    job.failed, job.finished = 1, 1  # before it was looked at
    assert work.after(job, 15.0) == "100 patches/s, 38 s left"
    job.planned_patches = 1000  # a slide is dropped, to be tried again
    assert work.after(job, 15.0) == "100 patches/s, 23 s left"


def test_pace_of_the_next_job_starts_anew() -> None:
    work = PatchPace()
    for start in (0.0, 100.0):
        job = Progress(slides=1, planned_patches=500, written_patches=100)
        assert work.after(job, start) == ""
        job.written_patches = 300
        assert work.after(job, start + 10) == "20.0 patches/s, 10 s left"
