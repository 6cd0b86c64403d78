"""Claims about the page on which a person ranks answers, without and with a browser."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import browser
import pytest

from tasks.lib.annotation.page import Round, application, read_prompts
from tasks.lib.importers.cleaning import cleaned
from tasks.lib.importers.formats import read_export
from tasks.lib.stage import Problem

ROOT = Path(__file__).parents[3]
ANSWERS = ["good", "bad", "good. Happy to help!", "a rather long answer that says <b>little</b>, " * 6]


def write_candidates(path: Path, prompts: int = 10) -> Path:
    rows = [{"id": f"c{n}", "prompt": f"Review {n}: fine?", "answers": ANSWERS} for n in range(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> list[dict[str, Any]]:
    return read_prompts(write_candidates(tmp_path / "candidates.jsonl", 3))


def rankings(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    rows, dropped, _ = cleaned(read_export(path), "CC0-1.0")
    return rows, [item.rule for item in dropped]


def test_what_was_submitted_is_on_the_disk_and_is_gone_on_with(prompts, tmp_path):
    path = tmp_path / "ada.jsonl"
    first = Round(prompts, "ada", path)
    first.submit(0, [0, 1, 1, 2], 3.0)
    first.submit(1, None, 1.0)
    with pytest.raises(Problem, match="another annotation page is writing to it"):
        Round(prompts, "ada", path)
    first._file.close()
    with path.open("ab") as file:
        file.write(b'{"prompt": [{"ro')  # a crash in the middle of a line
    again = Round(prompts, "ada", path)
    assert again.progress() == {"annotator": "ada", "total": 3, "done": 2, "next": 2}
    assert again.task(0)["ranks"] == [0, 1, 1, 2] and again.task(1)["skipped"]
    again.submit(0, [3, 2, 1, 0], 2.0)  # a second thought
    (row,), dropped = rankings(path)
    assert row["ranks"] == [3, 2, 1, 0] and sorted(dropped) == ["annotator_twice", "cancelled"]
    assert row["annotator"] == "ada" and row["source"] == "annotation page"


def test_the_shown_order_differs_by_prompt_and_annotator_and_is_recorded(prompts, tmp_path):
    rounds = [Round(prompts, name, tmp_path / f"{name}.jsonl") for name in ("ada", "bo", "cleo")]
    orders = {tuple(each.shown(n)) for each, n in product(rounds, range(3))}
    assert len(orders) > 3 and {tuple(sorted(order)) for order in orders} == {tuple(sorted(ANSWERS))}
    rounds[0].submit(2, [0, 1, 2, 3], 1.0)
    assert json.loads((tmp_path / "ada.jsonl").read_text())["answers"] == rounds[0].shown(2)


def test_a_file_that_is_something_else_is_not_written_to(prompts, tmp_path):
    path = tmp_path / "ada.jsonl"
    path.write_text('{"prompt": "Q", "answers": ["x", "y"], "ranks": [0, 1]}\n')
    with pytest.raises(Problem, match=r"ada.jsonl:1: expected a line of an annotation page"):
        Round(prompts, "ada", path)


def test_requests_that_say_nonsense_or_come_from_elsewhere_change_nothing(prompts, tmp_path):
    from fastapi.testclient import TestClient

    rankings = Round(prompts, "ada", tmp_path / "ada.jsonl")
    client = TestClient(application(rankings), base_url="http://127.0.0.1:4300")
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
    for number, body in (
        (0, {"ranks": [0, 1], "seconds": 1}),
        (0, {"ranks": [0, 1, 2, -1], "seconds": 1}),
        (9, {"ranks": [0, 1, 2, 3], "seconds": 1}),
        (0, {"ranks": "all", "seconds": 1}),
        (0, {"seconds": 1}),
    ):
        assert client.post(f"/prompts/{number}", json=body).status_code in (404, 422)
    elsewhere = TestClient(application(rankings), base_url="http://evil.example")
    assert elsewhere.get("/progress").status_code == 400
    whole = json.dumps({"ranks": [0, 1, 2, 3], "seconds": 1})
    assert client.post("/prompts/0", content=whole, headers={"content-type": "text/plain"}).status_code == 422
    assert (tmp_path / "ada.jsonl").read_bytes() == b""
    assert client.post("/prompts/0", json={"ranks": [0, 1, 2, 3], "seconds": 1}).json()["done"] == 1


# --- in a browser ---


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "flows.cli", "annotate", "--as", "ada", "--port", str(port)]
    command += ["--candidates", str(folder / "candidates.jsonl"), "--into", str(folder / "rankings")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, cwd=folder) as server:
        try:
            end = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=5).read()
                    break
                assert server.poll() is None and time.monotonic() < end
                time.sleep(0.1)
            yield server
        finally:
            server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.skipif(not browser.found(), reason="no Chromium on this machine")
def test_ten_prompts_by_keyboard_alone_with_a_crash_between(tmp_path):
    write_candidates(tmp_path / "candidates.jsonl")
    port, pictures = free_port(), os.environ.get("ANNEAL_TEST_PICTURES")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, port))
        page = stack.enter_context(browser.opened(f"http://127.0.0.1:{port}/"))
        page.wait("document.querySelectorAll('.answer').length === 4")
        page.press("2", "=", "4", "1")
        assert page.value("document.getElementById('order').textContent") == "2 = 4  >  1"
        for width, height, dark in ((1280, 800, False), (390, 844, False), (1280, 800, True)):
            page.size(width, height)
            page.dark(dark)
            assert page.value("document.documentElement.scrollWidth <= window.innerWidth"), width
            if pictures:
                page.picture(Path(pictures) / f"annotate_{width}{'_dark' * dark}.png")
        assert page.value("document.getElementById('submit').disabled")
        page.press("Enter")  # nothing happens: an answer has no rank yet
        page.press("Backspace", "3", "1", "Enter")
        for done in range(1, 4):
            page.wait(f"document.getElementById('count').textContent.startsWith('{done} of 10')")
            page.press("1", "2", "3", "4", "Enter")
        page.wait("document.getElementById('count').textContent.startsWith('4 of 10')")
        server.send_signal(signal.SIGKILL)
        server.wait()
        page.press("4", "3", "2", "1", "Enter")
        page.wait("document.getElementById('fault').textContent.startsWith('Not saved')")
        stack.enter_context(serving(tmp_path, port))
        page.press("Enter")  # the page still has the ranking
        for done in range(5, 9):
            page.wait(f"document.getElementById('count').textContent.startsWith('{done} of 10')")
            page.press("4", "3", "2", "1", "Enter")
        page.wait("document.getElementById('count').textContent.startsWith('9 of 10')")
        page.press("s")
        page.wait("document.body.innerText.includes('All prompts are ranked')")
        for key, there in (("ArrowLeft", "10"), ("ArrowLeft", "9"), ("ArrowRight", "10")):  # to look again
            page.press(key)
            page.wait(f"document.getElementById('count').textContent.endsWith('now prompt {there}')")
    rows, dropped = rankings(tmp_path / "rankings/ada.jsonl")
    assert len(rows) == 9 and dropped == ["cancelled"]
    assert sorted(sorted(row["ranks"]) for row in rows)[0] == [0, 0, 1, 2]


@pytest.mark.skipif(not browser.found(), reason="no Chromium on this machine")
def test_clicks_rank_too_and_text_is_shown_as_text(tmp_path):
    write_candidates(tmp_path / "candidates.jsonl", 1)
    port = free_port()
    with serving(tmp_path, port), browser.opened(f"http://127.0.0.1:{port}/") as page:
        page.wait("document.querySelectorAll('.answer').length === 4")
        assert page.value("document.querySelectorAll('#answers b').length") == 0
        click = "document.querySelectorAll('.answer')[{}].click()"
        for place in (1, 0, 0, 3):  # the second click on an answer takes it out again
            page.value(click.format(place))
        page.value("document.getElementById('tie').click()")
        page.value(click.format(0))
        page.value(click.format(2))
        page.value("document.getElementById('submit').click()")
        page.wait("document.body.innerText.includes('All prompts are ranked')")
        assert page.value("document.getElementById('work').checkVisibility()") is False
    assert json.loads((tmp_path / "rankings/ada.jsonl").read_text())["ranks"] == [1, 0, 2, 1]


@pytest.mark.skipif(not browser.found(), reason="no Chromium on this machine")
def test_nine_answers_in_scripts_of_both_directions(tmp_path):
    answers = [
        "\u05e9\u05dc\u05d5\u05dd?",
        "\u0645\u0631\u062d\u0628\u0627?",
        *(f"answer {n}?" for n in range(7)),
    ]
    (tmp_path / "candidates.jsonl").write_text(json.dumps({"prompt": "Q", "answers": answers}))
    port = free_port()
    with serving(tmp_path, port), browser.opened(f"http://127.0.0.1:{port}/") as page:
        page.wait("document.querySelectorAll('.answer').length === 9")
        texts = "[...document.querySelectorAll('.answer .text')]"
        directions = page.value(f"{texts}.map(text => [text.textContent, getComputedStyle(text).direction])")
        assert {text: way for text, way in directions} == {
            text: "rtl" if text in answers[:2] else "ltr" for text in answers
        }
        page.press(*"987654321", "Enter")
        page.wait("document.body.innerText.includes('All prompts are ranked')")
    assert json.loads((tmp_path / "rankings/ada.jsonl").read_text())["ranks"] == [8, 7, 6, 5, 4, 3, 2, 1, 0]
