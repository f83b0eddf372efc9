"""The board that is folded from events, and the amounts on it."""

import io

from rich.console import Console

from speculators.amounts import age_text, size_text, time_text
from speculators.cli.live import Board, Lines


def at(second, **event):
    return {"t": f"2026-08-24T14:02:{second:06.3f}Z", "run": "7f3a", **event}


PLAN = [{"name": "shards", "state": "run", "why": "new", "seconds": 4.0}, {"name": "old", "state": "skipped"}]


def shown(board):
    console = Console(file=io.StringIO(), width=120)
    console.print(board.render(moment=1787580130.0))
    return console.file.getvalue()


def test_a_running_step_shows_how_far_how_fast_and_how_long_yet():
    board = Board()
    board.hear(at(0, event="planned", steps=PLAN))
    board.hear(at(1, event="step_started", step="shards", resumed=True))
    assert "continued" in shown(board)
    board.hear(at(1, event="progress", step="shards", done=0, total=1000, unit="tokens"))
    board.hear(at(3, event="progress", step="shards", done=400, total=1000, unit="tokens"))
    board.hear(at(3, event="metric", step="shards", at=1, values={"loss": 1.25, "odd": None}))
    text = shown(board)
    assert "400/1\u202f000 tokens  200/s  3.0 s left" in text
    assert "loss 1.25" in text
    board.hear(at(5, event="step_finished", step="shards", seconds=4.0))
    assert "✓" in shown(board)
    assert "4.0 s" in shown(board)


def test_what_finishes_in_bursts_has_a_steady_rate_and_a_changed_pace_is_followed():
    board = Board()
    board.hear({**at(0, event="planned", steps=PLAN), "t": "2026-08-24T13:00:00.000Z"})
    board.hear({**at(0, event="step_started", step="shards"), "t": "2026-08-24T13:00:00.000Z"})
    for minute in range(20):  # a burst of 600 every minute, a trickle between
        for second, done in ((0, 0), (30, 10), (55, 600)):
            told = f"2026-08-24T13:{minute:02}:{second:02}.000Z"
            event = at(0, event="progress", step="shards", done=600 * minute + done, total=24000, unit="tokens")
            board.hear({**event, "t": told})
    assert 9.5 < board.rows["shards"].rate < 10.5
    for minute in range(20, 60):
        event = at(0, event="progress", step="shards", done=12000 + 60 * (minute - 19), total=24000, unit="tokens")
        board.hear({**event, "t": f"2026-08-24T13:{minute:02}:55.000Z"})
    assert 0.9 < board.rows["shards"].rate < 1.1


def test_a_stopped_run_leaves_no_step_running():
    board = Board()
    board.hear(at(0, event="planned", steps=PLAN))
    board.hear(at(1, event="step_started", step="shards"))
    board.hear(at(2, event="run_finished", status="interrupted"))
    assert board.rows["shards"].status == "stopped"
    assert board.rows["old"].status == "skipped"


def test_plain_progress_is_told_every_ten_seconds_and_at_the_end():
    stream, board = io.StringIO(), Board()
    lines = Lines(stream)
    board.hear(at(0, event="planned", steps=PLAN))
    for second in range(0, 22, 2):
        event = at(second, event="progress", step="shards", done=second, total=20, unit="files")
        board.hear(event)
        lines.tell(event, board)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["0/20", "10/20", "20/20"]


def test_amounts_read_well():
    assert [size_text(size) for size in (None, 0, 999, 1500, 12e3, 999.6e6, 1.9e12)] == [
        "", "0 B", "999 B", "1.5 kB", "12 kB", "1.0 GB", "1.9 TB",
    ]  # fmt: skip
    assert [time_text(seconds) for seconds in (None, 0.44, 12, 185, 18600)] == [
        "", "0.4 s", "12 s", "3 min 05 s", "5 h 10 min",
    ]  # fmt: skip
    assert [age_text(seconds) for seconds in (3, 61, 7300, 200000)] == [
        "just now", "1 min ago", "2 h ago", "2 days ago",
    ]  # fmt: skip


def test_what_comes_out_of_a_remote_store_is_shown_while_it_comes_and_after():
    board = Board()
    steps = [{"name": "train", "state": "remote"}, {"name": "states", "state": "remote"}]
    board.hear(at(0, event="planned", steps=steps))
    assert {row.status for row in board.rows.values()} == {"skipped"}
    board.hear(at(1, event="progress", step="train", done=40, total=1000, unit="MB"))
    assert "40/1\u202f000 MB" in shown(board)
    board.hear(at(9, event="message", step="train", text="fetched 1,000.0 MB from s3://team in 8.0 s"))
    board.hear(at(9, event="planned", steps=[{"name": "train", "state": "cached"}, steps[1]]))
    board.hear(at(9, event="step_cached", step="train"))
    assert "cached fetched 1,000.0 MB from s3://team in 8.0 s" in " ".join(shown(board).split())
    assert board.rows["states"].status == "skipped"
