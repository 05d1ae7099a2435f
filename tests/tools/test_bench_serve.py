"""The serving benchmark: its clients understand a real company, and its meter sees every process of it."""

from __future__ import annotations

import os
import pathlib

from tools.actorctl.serve import DEMO_MODEL
from tools.bench import overlap, serve
from tools.bench.load import HttpDialogue, Receipt, SocketDialogue, Workload
from tools.bench.processor import Meter


def test_a_round_of_serving() -> None:
    figures = serve.measure(
        model=pathlib.Path(DEMO_MODEL),
        clients=3,
        requests=6,
        words=4,
        output=5,
        repeats=1,
        dtype="auto",
        alone=True,
        options=("--executor", "hash"),
    )
    (round_,) = figures["rounds"]
    for name in ("http", "websocket"):
        assert round_[name]["tokens_per_s"] > 0 and round_[name]["prompt_tokens"] > 4
        actors = {"executor.0", "scheduler.0", "tokenizer.0", "frontend.0", "supervisor", "load"}
        assert set(round_[name]["processor"]) == actors
        assert round_[name]["processor"]["frontend.0"]["us"] > 0
    assert any(line.startswith("| websocket |") for line in serve.table(figures))


def test_what_planning_ahead_hides() -> None:
    workload = Workload("bench", 2, ["a b", "c"], 3)
    assert overlap.rate(pathlib.Path(DEMO_MODEL), workload, 2, 1.0) > 0


def test_an_http_answer_in_any_pieces() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    text = b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
    answer = head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (text, text, usage))
    answer += b"0\r\n\r\n"
    for size in (3, 50, len(answer)):
        dialogue, receipt = HttpDialogue(), Receipt(0.0)
        pieces = [answer[:20]] + [answer[at : at + size] for at in range(20, len(answer), size)]
        ended = [dialogue.take(piece, receipt) for piece in pieces]
        assert ended == [False] * (len(pieces) - 1) + [True]
        assert (receipt.tokens, receipt.prompt_tokens, receipt.error) == (2, 7, "")


def test_frames_in_any_pieces() -> None:
    delta = b'{"type":"response.output_text.delta","delta":"' + b"x" * 200 + b'"}'
    last = b'{"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":1}}}'
    frames = b"\x81\x7e" + len(delta).to_bytes(2, "big") + delta + bytes((0x81, len(last))) + last
    for size in (1, 7, len(frames)):
        dialogue, receipt = SocketDialogue(), Receipt(0.0)
        pieces = [frames[at : at + size] for at in range(0, len(frames), size)]
        ended = [dialogue.take(piece, receipt) for piece in pieces]
        assert ended == [False] * (len(pieces) - 1) + [True]
        assert (len(receipt.arrivals), receipt.tokens, receipt.prompt_tokens) == (1, 1, 3)


def test_a_meter_counts_what_a_process_takes() -> None:
    meter = Meter({"self": os.getpid()})
    sum(range(5_000_000))
    used = meter.read()["self"]
    assert used.seconds > 0 and used.waited >= 0
