"""Three kinds of task, two workers, one file: `python examples/quickstart.py`. Results come as workers finish."""

import asyncio
import random

from ai4s.jobq import App, as_completed

app = App("quickstart")  # $JOBQ_URL says where calls and results lie; without it, a folder on this machine


@app.task
def count_primes(below: int) -> int:
    """Work for a processor: it runs in a process of its own."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))


@app.task
async def wait_for_answer(question: str) -> str:
    """Work that waits for others: hundreds of these run at a time."""
    await asyncio.sleep(0.5)
    return question.upper()


@app.task(retries=10)
def fetch_flaky() -> str:
    """Work that fails now and then: it is tried again, ever more slowly, up to ten times."""
    if random.random() < 0.3:
        raise ConnectionError("nobody there")
    return "got through"


if __name__ == "__main__":
    with app.worker(concurrency=2):  # or any number of `jobq-worker`, on any machine
        primes = [count_primes.delay(n) for n in (1_000, 10_000, 100_000)]
        for handle in as_completed([*primes, wait_for_answer.delay("anyone home?"), fetch_flaky.delay()]):
            print(f"{handle.id}: {handle.result()}")
