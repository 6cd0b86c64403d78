"""Candidates as files to import into an annotation tool; its export comes back through importers/formats.py.

buckets   Label Studio, a bucket ranker: answers in one bucket are equal
ranker    Label Studio, a plain ranker: quicker, without ties
pairwise  Label Studio, two answers at a time, with a degree and a tie: K answers make K(K-1)/2 tasks
argilla   records for rg.Dataset(...).records.log: a ranking question over the fields answer_1, answer_2 ...

Answers are shown in an order shuffled by task, which the files record.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any
from xml.sax.saxutils import quoteattr

from tasks.lib.data.rows import Row
from tasks.lib.settings.sample import Kind

RANKER = """<View>
  <Text name="prompt" value="$prompt"/>
  <List name="responses" value="$responses" title="Answers, the best first"/>
  <Ranker name="rank" toName="responses"/>
</View>
"""
PAIRWISE = """<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="preference" toName="response_a,response_b"/>
  <View style="display:grid;grid-template-columns:1fr 1fr;gap:1em">
    <Text name="response_a" value="$response_a"/>
    <Text name="response_b" value="$response_b"/>
  </View>
  <Choices name="degree" toName="prompt" choice="single-radio" showInLine="true">
    <Choice value="significantly"/><Choice value="clearly"/><Choice value="slightly"/><Choice value="tie"/>
  </Choices>
</View>
"""


def task_files(kind: Kind, candidates: Sequence[Row], answers: int, seed: int) -> dict[str, str | list[Any]]:
    """File name -> what it holds: text, or a list to write as JSON."""
    if kind == "argilla":
        return {"argilla_records.json": [_record(candidate, seed) for candidate in candidates]}
    if kind == "pairwise":
        pairs = []
        for candidate in candidates:
            for pair in _pairs(candidate, seed):
                pairs.append({"data": pair})
        return {"labelstudio_pairwise_tasks.json": pairs, "labelstudio_pairwise_config.xml": PAIRWISE}
    tasks = [{"data": task(candidate, seed)} for candidate in candidates]
    if kind == "ranker":
        return {"labelstudio_ranker_tasks.json": tasks, "labelstudio_ranker_config.xml": RANKER}
    return {"labelstudio_tasks.json": tasks, "labelstudio_config.xml": labelling_config(answers)}


def bucket_names(answers: int) -> list[str]:
    """One bucket per possible rank, best first: an order that no database can turn round."""
    return [f"rank {place}" for place in range(1, answers + 1)]


def labelling_config(answers: int) -> str:
    """The labelling configuration for `task`: a bucket ranker, because a plain ranker cannot say "equal"."""
    buckets = ""
    for name in bucket_names(answers):
        quoted = quoteattr(name)
        buckets += f"<Bucket name={quoted} title={quoted}/>"
    return (
        '<View>\n  <Text name="prompt" value="$prompt"/>\n'
        '  <List name="responses" value="$responses" title="Answers"/>\n'
        f'  <Ranker name="rank" toName="responses">{buckets}</Ranker>\n</View>\n'
    )


def task(candidate: Row, seed: int) -> Row:
    """The `data` of one task. Answers are shown in an order shuffled by task, so that position says nothing.

    The list records the shown order; the number in an answer's id is its place in the candidate.
    """
    shown = list(range(len(candidate["answers"])))
    random.Random(f"{seed}/{candidate['id']}").shuffle(shown)
    responses = []
    for number, place in enumerate(shown, 1):
        body = candidate["answers"][place]
        responses.append({"id": f"{candidate['id']}-{place}", "title": f"Answer {number}", "body": body})
    return {
        "prompt": _as_text(candidate["prompt"]),
        "prompt_id": candidate["id"],
        "messages": candidate["prompt"],
        "responses": responses,
    }


def _as_text(messages: list[dict[str, str]]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _pairs(candidate: Row, seed: int) -> list[Row]:
    """The `data` of a task for every two of the answers; chance says which of them is on the left."""
    shared = task(candidate, seed)
    responses = shared.pop("responses")
    draw = random.Random(f"{seed}/{candidate['id']}/sides")
    pairs = []
    for pair in combinations(responses, 2):
        left, right = draw.sample(pair, 2)
        pairs.append({**shared, "response_a": left["body"], "response_b": right["body"]})
    return pairs


def _record(candidate: Row, seed: int) -> Row:
    """An Argilla record of a candidate; its metadata record the shown order."""
    data = task(candidate, seed)
    fields = {"prompt": data["prompt"]}
    for place, item in enumerate(data["responses"], 1):
        fields[f"answer_{place}"] = item["body"]
    shown = [item["id"] for item in data["responses"]]
    return {"id": candidate["id"], "fields": fields, "metadata": {"shown": shown}}
