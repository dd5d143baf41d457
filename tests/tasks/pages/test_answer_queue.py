"""The queue of the playground: who advances, who waits where, and who has left."""

import asyncio
import threading

import pytest

from tasks.pages.answer_queue import AnswerQueue, Full


@pytest.fixture
def queue():
    made = AnswerQueue(at_once=2, waiting=2)
    yield made
    made.close()


def counting(name, steps, log, gate=None):
    """Steps that are logged; `gate` lets each begin."""
    try:
        for number in range(steps):
            if gate is not None:
                assert gate.acquire(timeout=60)
            log.append((name, number))
            yield {"step": number}
    finally:
        log.append((name, "end"))


async def heard(job):
    return [event async for event in job.events() if event is not None]


def test_jobs_advance_in_turn_and_the_others_are_told_their_places(queue):
    log, gate = [], threading.Semaphore(0)

    async def all_of_them():
        first = queue.add(counting("a", 3, log, gate))
        others = [queue.add(counting(name, steps, log)) for name, steps in (("b", 9), ("c", 3), ("d", 3))]
        gate.release(3)
        return await asyncio.gather(*map(heard, [first, *others]))

    told = asyncio.run(all_of_them())
    steps = [{"step": number} for number in range(9)]
    assert told == [steps[:3], steps, [{"place": 1}, *steps[:3]], [{"place": 2}, {"place": 1}, *steps[:3]]]
    assert [log.index((name, 0)) for name in "abcd"] == sorted(log.index((name, 0)) for name in "abcd")
    assert [name for name, _ in log[:6]] == ["a", "b"] * 3  # in turn


def test_a_full_queue_takes_no_more(queue):
    gate = threading.Semaphore(0)

    async def five():
        jobs = [queue.add(counting(name, 1, [], gate)) for name in "abcd"]
        with pytest.raises(Full, match="2 questions wait already: try again in a moment"):
            queue.add(counting("e", 1, []))
        gate.release(4)
        await asyncio.gather(*map(heard, jobs))
        return await heard(queue.add(counting("f", 1, [])))

    assert asyncio.run(five()) == [{"step": 0}]


def test_who_leaves_ends_their_work_and_gives_up_their_place(queue):
    log, gates = [], {name: threading.Semaphore(0) for name in "ab"}

    async def leaving():
        first, second = (queue.add(counting(name, 100, log, gates[name])) for name in "ab")
        third, fourth = (queue.add(counting(name, 1, log)) for name in "cd")
        events = first.events()
        gates["a"].release()
        assert await anext(events) == {"step": 0}
        third.gone.set()  # while it waits
        await events.aclose()
        assert first.gone.is_set()
        gates["a"].release()  # what may have begun
        gates["b"].release(100)
        told = await asyncio.gather(*map(heard, [second, fourth]))
        return [len(one) for one in told]

    asyncio.run(leaving())
    assert ("a", "end") in log
    assert len([entry for entry in log if entry[0] == "a"]) <= 3
    assert not [entry for entry in log if entry[0] == "c"]
    assert ("d", 0) in log


def test_an_error_reaches_whoever_waits_for_it(queue):
    def broken():
        yield {"step": 0}
        raise RuntimeError("no memory left")

    async def both():
        with pytest.raises(RuntimeError, match="no memory left"):
            await heard(queue.add(broken()))
        return await heard(queue.add(counting("b", 1, [])))

    assert asyncio.run(both()) == [{"step": 0}]
