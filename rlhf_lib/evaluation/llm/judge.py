"""A language model as a judge of two answers to each prompt, in both orders, within a budget."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_lib.errors import JudgeFailed, QuestionRefused
from rlhf_lib.evaluation.llm.endpoint import Endpoint
from rlhf_lib.evaluation.llm.prompt import AGAIN, DEFAULT, Verdict, fill, read_verdict, share_of_second
from rlhf_lib.evaluation.llm.verdicts import Verdicts, question_key
from rlhf_lib.progress import report
from rlhf_lib.recipe import JudgeConfig
from rlhf_lib.statistics import LEAST_FOR_INTERVAL, counted

MOST_WITHOUT_VERDICT = 0.1  # of the prompts asked; those that are left wouldn't be any part of them, but the easy one
_REFUSED_FIRST = 3  # questions before any reply, or as many as are asked at once, tell that it isn't the questions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One prompt: what the second answer wins, None where it isn't known, and why."""

    share: float | None
    requests: int = 0  # sent
    known: int = 0  # verdicts that were there already
    unknown: Literal["", "unreadable", "refused", "over budget"] = ""
    swayed: bool = False  # whether the winner changes with the order
    cut: bool = False  # whether an unreadable reply was cut at llm.max_tokens
    refusal: str = ""  # what the endpoint said to a question that it refused


@dataclass(frozen=True)
class Shares:
    """What the second of two answers to each of N prompts wins: 1, 0.5 or 0, None where it isn't known."""

    rows: list[Row]

    @property
    def values(self) -> list[float | None]:
        return [row.share for row in self.rows]

    @property
    def known(self) -> list[int]:
        """Rows that have a share."""
        return [i for i, row in enumerate(self.rows) if row.share is not None]

    @property
    def record(self) -> dict[str, int]:
        """How it went, in numbers of prompts, requests and verdicts."""
        return {
            "judged": len(self.known),
            "swayed_by_order": sum(row.swayed for row in self.rows),
            "unreadable": sum(row.unknown == "unreadable" for row in self.rows),
            "refused": sum(row.unknown == "refused" for row in self.rows),
            "over_budget": sum(row.unknown == "over budget" for row in self.rows),
            "requests": sum(row.requests for row in self.rows),
            "known_verdicts": sum(row.known for row in self.rows),
        }

    @property
    def refusal(self) -> str:
        """What the endpoint said to the first question that it refused; empty where it took all."""
        return next((row.refusal for row in self.rows if row.refusal), "")


@dataclass(frozen=True)
class Asked:
    """What came of one question: the verdict, None where there is none, and why."""

    verdict: Verdict | None
    requests: int  # sent
    cut: bool = False
    refusal: str = ""


class LLMJudge:
    """Compares two answers at a time; there is no score of one alone, so it isn't a Reward.

    Many threads ask at once, and what they learn is in `verdicts` at once: an interrupted or failed call loses no reply
    that came. Raises what Endpoint raises.
    """

    def __init__(self, name: str, judge: JudgeConfig, verdicts: Verdicts, run: str = "") -> None:
        """`name`: in evaluation.judges. `run`: whose budget is spent; calls of the same run and name share one."""
        assert judge.model is not None, "the recipe requires one"
        self.key, self.model, self.settings = f"evaluation.judges.{name}", judge.model, judge.endpoint
        self.verdicts = verdicts
        self.purse = f"{run}/{name}"
        self.template = self.settings.prompt or DEFAULT
        self.endpoint = Endpoint(self.key, judge.model, self.settings)
        self._answers = False  # whether the endpoint has answered: what it refuses is then the question's own fault
        self._refusals: list[QuestionRefused] = []

    @property
    def left(self) -> int:
        """Requests of the budget that are left."""
        return max(0, self.settings.max_requests - self.verdicts.spent(self.purse))

    def compare(
        self, conversations: Sequence[str], firsts: Sequence[str], seconds: Sequence[str], *, keep: int = 0
    ) -> Shares:
        """What each of `seconds` wins against that of `firsts`, (N,) each; equal answers are a tie, unasked. Once only
        `keep` requests of the budget are left, no further prompt is begun. Raises JudgeFailed where the endpoint does,
        except for a question that it refuses while it takes others: its prompt has no share.
        """
        pool, stop = ThreadPoolExecutor(self.settings.concurrency, "judge"), threading.Event()
        asked: list[Future[Row]] = []
        try:
            for texts in zip(conversations, firsts, seconds, strict=True):
                asked.append(pool.submit(self._row, texts, self.settings.max_requests - keep, stop))
            waiting: set[Future[Row]] = set(asked)
            while waiting:
                done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                report("verdicts", len(asked) - len(waiting), len(asked))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        if self._refusals and not self._answers:
            raise self._refusals[0]
        shares = Shares([future.result() for future in asked])
        if refused := shares.record["refused"]:
            logger.warning(
                "%s: no verdict on %s, which %s refused (%s)",
                self.key,
                counted(refused, "prompt"),
                self.settings.host,
                shares.refusal,
            )
        return shares

    def _row(self, texts: tuple[str, str, str], most: int, stop: threading.Event) -> Row:
        conversation, first, second = texts
        if first.strip() == second.strip():
            return Row(0.5)
        questions = [fill(self.template, conversation, *pair) for pair in ((first, second), (second, first))]
        keys = [self._key(question) for question in questions]
        found = [self.verdicts.get(key) for key in keys]
        known = sum(verdict is not None for verdict in found)
        need, sent = 2 - known, 0
        if known:
            self._answers = True  # to just such a request, in an earlier run
        if need and not self.verdicts.take(self.purse, need, most):
            return Row(None, known=known, unknown="over budget")
        for order in (0, 1):
            if found[order] is not None:
                continue
            asked = self._ask(keys[order], questions[order], most, stop)
            need, sent = need - 1, sent + asked.requests
            if asked.verdict is None:
                self.verdicts.take(self.purse, -need, most)  # the other order would be of no use: it isn't asked
                why: Literal["refused", "unreadable"] = "refused" if asked.refusal else "unreadable"
                return Row(None, sent, known, why, cut=asked.cut, refusal=asked.refusal)
            found[order] = asked.verdict
        one, other = found
        assert one is not None
        assert other is not None
        return Row(share_of_second(one, other), sent, known, swayed=one == other and one != "C")

    def _ask(self, key: str, question: str, most: int, stop: threading.Event) -> Asked:
        """The verdict, asked for once more where it can't be read."""
        if stop.is_set():
            raise JudgeFailed(f"{self.key}: stopped")
        messages = [{"role": "user", "content": question}]
        requests = 1
        try:
            reply = self.endpoint.ask(messages)
            self._answers = True
            verdict = read_verdict(reply.text)
            if verdict is None and not stop.is_set() and self.verdicts.take(self.purse, 1, most):
                messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": AGAIN}]
                requests = 2
                reply = self.endpoint.ask(messages)
                verdict = read_verdict(reply.text)
        except QuestionRefused as refusal:
            self._refusals.append(refusal)
            if not self._answers and len(self._refusals) >= max(_REFUSED_FIRST, self.settings.concurrency):
                raise  # the others would be refused too
            return Asked(None, requests, refusal=refusal.said)
        if verdict is not None:
            self.verdicts.put(key, verdict, reply.text)
        return Asked(verdict, requests, reply.cut)

    def _key(self, question: str) -> str:
        """Of a filled template: the conversation, both answers and their order are in it."""
        settings = self.settings
        return question_key(
            base_url=settings.url,
            model=self.model,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            question=question,
        )

    def check(self, shares: Shares) -> None:
        """Raise JudgeFailed where the known shares say too little of the prompts: too many have no readable verdict,
        or the budget leaves too few for an interval."""
        found, total = shares.record, len(shares.rows)
        asked = total - found["over_budget"]
        without = found["unreadable"] + found["refused"]
        if without > MOST_WITHOUT_VERDICT * asked:
            cut = sum(row.cut for row in shares.rows)
            why = [f"{cut:,} were cut: raise {self.key}.llm.max_tokens"] if cut else []
            if found["refused"]:
                why.append(
                    f"{found['refused']:,} were refused, {shares.refusal}: where they are too long, take a model with "
                    "a longer context"
                )
            because = f" ({'; '.join(why)})" if why else ""
            raise JudgeFailed(
                f"{self.key}: {self.model} gave no readable verdict on {without:,} of {counted(asked, 'prompt')}"
                f"{because}: take a larger model, or a simpler {self.key}.llm.prompt"
            )
        if found["judged"] < min(total, LEAST_FOR_INTERVAL):
            raise JudgeFailed(
                f"{self.key}.llm.max_requests ({self.settings.max_requests:,}) allows {found['judged']:,} of "
                f"{counted(total, 'prompt')} here, and fewer than {LEAST_FOR_INTERVAL} tell nothing: raise it to "
                f"{2 * total:,} or more, or lower evaluation.prompts"
            )


def requests_at_most(judge: JudgeConfig, prompts: int, pairs: int) -> dict[str, int]:
    """Requests that a run may take, by what for, every verdict readable at once: against the reference, against a
    champion, and for test pairs with what they leave of the budget. Unreadable ones take up to as many again."""
    left = judge.endpoint.max_requests
    found: dict[str, int] = {}
    for what, wanted in (
        ("reference", 2 * prompts),
        ("champion", 2 * prompts if judge.gate else 0),
        ("pairs", 2 * min(pairs, judge.checks.pairs)),
    ):
        found[what] = min(wanted, left - left % 2)
        left -= found[what]
    return found


def where_texts_go(judge: JudgeConfig) -> str:
    """For whoever has to agree to it."""
    named: Any = judge.endpoint.key_variable
    return f"prompts and answers are sent to {judge.endpoint.host}" + (f", with the key in {named}" if named else "")
