"""A page on loopback where one person ranks answers, with ties, by keyboard or mouse.

Every verdict is a line of a JSONL file in the format `rankings` (importers/listwise.py), on the disk before the page
shows the next prompt: what was submitted survives a crash, and starting the page again goes on. A line holds the
answers in the order in which they were shown, an order of its own for each prompt and annotator.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pydantic import BaseModel, Field

from tasks.lib.data.rows import Row, content_id, read_table
from tasks.lib.importers.rankings import is_list_of_texts, prompt_of
from tasks.lib.stage import Problem

if TYPE_CHECKING:
    from fastapi import FastAPI

PAGE = Path(__file__).with_name("page.html")
HOSTS = ["127.0.0.1", "localhost"]  # any other name in a request is another site's (DNS rebinding)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def read_prompts(path: Path) -> list[Row]:
    """Prompts with two or more answers of a file of candidates: {prompt, answers} and optionally id."""
    prompts = []
    for number, row in read_table(path):
        where = f"{path}:{number}"
        answers = row.get("answers")
        if not is_list_of_texts(answers):
            raise Problem(f"{where}:answers: expected a list of texts, found {str(answers)[:60]!r}")
        prompt = prompt_of(where, row)
        if len(answers) > 1:
            identity = str(row.get("id") or content_id(prompt, answers))
            prompts.append({"id": identity, "prompt": prompt, "answers": answers})
    if not prompts:
        raise Problem(f"{path}: holds no prompt with two answers to rank")
    return prompts


class Verdict(BaseModel, extra="forbid"):
    """What the page sends: a rank per shown answer (0 best, equal = tie), or None to skip the prompt."""

    ranks: list[int] | None
    seconds: float = Field(ge=0)


class Round:
    """One annotator's rankings of a list of prompts, kept in a file that lines are only added to."""

    def __init__(self, prompts: Sequence[Row], annotator: str, path: Path) -> None:
        """Take up the file where it ends. Problem when another page writes to it, or it is no such file."""
        self.prompts, self.annotator, self.path = list(prompts), annotator, path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(f"{path}: another annotation page is writing to it; close that one first") from None
        self.last_rows = self._read()

    def _read(self) -> dict[str, Row]:
        """Candidate id -> the last line about it. Half a line at the end, of a crash, is taken off."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
            print(f"anneal: {self.path}: half a line at its end was removed (left by a crash)")
        last_rows = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                last_rows[row["candidate"]] = row
            except (ValueError, KeyError, TypeError):
                raise Problem(f"{self.path}:{number}: expected a line of an annotation page") from None
        return last_rows

    def shown(self, number: int) -> list[str]:
        """The answers to a prompt in the order in which this annotator sees them."""
        item = self.prompts[number]
        answers = list(item["answers"])
        random.Random(f"{self.annotator}/{item['id']}").shuffle(answers)
        return answers

    def task(self, number: int) -> Row:
        """What the page shows of a prompt, with the verdict there is."""
        item = self.prompts[number]
        last_row = self.last_rows.get(item["id"], {})
        shown: Row = {
            "number": number,
            "prompt": item["prompt"],
            "answers": self.shown(number),
            "ranks": last_row.get("ranks"),
            "skipped": bool(last_row.get("skipped")),
        }
        return shown | self.progress()

    def progress(self) -> Row:
        """How many prompts have a verdict, and the number of the first one without."""
        waiting = [number for number, item in enumerate(self.prompts) if item["id"] not in self.last_rows]
        return {
            "annotator": self.annotator,
            "total": len(self.prompts),
            "done": len(self.prompts) - len(waiting),
            "next": waiting[0] if waiting else None,
        }

    def submit(self, number: int, ranks: list[int] | None, seconds: float) -> None:
        """Write one verdict to the disk; None skips the prompt."""
        item, answers = self.prompts[number], self.shown(number)
        if ranks is not None and (len(ranks) != len(answers) or min(ranks) < 0):
            raise ValueError(f"expected {len(answers)} ranks from 0, found {ranks}")
        row: Row = {
            "prompt": item["prompt"],
            "answers": answers,
            "ranks": ranks,
            "annotator": self.annotator,
            "source": "annotation page",
            "candidate": item["id"],
            "seconds": round(seconds, 1),
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        if ranks is None:
            row["skipped"] = True
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.last_rows[item["id"]] = row


def application(rankings: Round) -> FastAPI:
    """The page and its three requests."""
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import HTMLResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)

    def known(number: int) -> int:
        if not 0 <= number < len(rankings.prompts):
            raise HTTPException(404, f"there are {len(rankings.prompts)} prompts")
        return number

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY})

    @app.get("/progress")
    def progress() -> Row:
        return rankings.progress()

    @app.get("/prompts/{number}")
    def task(number: int) -> Row:
        return rankings.task(known(number))

    @app.post("/prompts/{number}")
    async def submit(number: int, verdict: Verdict) -> Row:
        try:
            rankings.submit(known(number), verdict.ranks, verdict.seconds)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return rankings.progress()

    return app


def serve(candidates: Path, annotator: str, folder: Path, port: int) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C; rankings go to <folder>/<annotator>.jsonl."""
    import uvicorn

    if not annotator.replace("-", "").replace("_", "").isalnum():
        raise Problem(f"--as {annotator!r}: use letters, digits, - and _; it names the file of the rankings")
    rankings = Round(read_prompts(candidates), annotator, folder / f"{annotator}.jsonl")
    app = application(rankings)
    state = rankings.progress()
    print(f"anneal: {state['done']} of {state['total']} prompts are ranked in {rankings.path}")
    print(f"http://127.0.0.1:{port}   (Ctrl-C ends it)", flush=True)
    try:
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")
    except SystemExit:
        raise Problem(f"port {port} is in use; choose another with --port") from None
