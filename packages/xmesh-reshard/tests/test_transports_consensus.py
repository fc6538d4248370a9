"""The common beginning and end of an execution, over a store in this process and threads as ranks."""

import threading
import time

import pytest

pytest.importorskip("torch")

import torch.distributed as dist

from xmesh_reshard.transports import PeerLostError, PlanMismatchError
from xmesh_reshard.transports.consensus import Ballot

LIMIT = 0.5  # seconds without progress


def together(*works, rounds=1):
    """Each work with its ballot in a thread; what each raised, and which aborted."""
    store, errors, aborted = dist.HashStore(), [None] * len(works), set()

    def body(rank):
        for number in range(rounds):
            ballot = Ballot(store, rank, len(works), number, LIMIT, lambda: aborted.add(rank))
            try:
                with ballot:
                    works[rank](ballot)
            except Exception as error:
                errors[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors, aborted, store


def agree(ballot):
    ballot.agree("plan")


def test_equal_plans_go_through_again_and_again_and_leave_few_keys():
    errors, aborted, store = together(agree, agree, agree, rounds=20)
    assert errors == [None, None, None]
    assert aborted == set()
    assert store.num_keys() <= 12 + 1  # those of the last execution


def test_another_plan_is_refused_on_every_rank():
    errors, aborted, _ = together(agree, agree, lambda ballot: ballot.agree("other"))
    assert [type(error) for error in errors] == [PlanMismatchError] * 3
    assert aborted == set()  # nothing was sent, so no connection needs to be closed


def test_an_error_before_the_beginning_reaches_all_with_its_reason():
    def wrong(ballot):
        raise ValueError("bad part")

    errors, aborted, _ = together(agree, wrong, agree)
    assert type(errors[1]) is ValueError
    for rank in (0, 2):
        assert type(errors[rank]) is PeerLostError
        assert "rank 1 failed: ValueError: bad part" in str(errors[rank])
    assert aborted == set()


def test_an_error_on_the_way_reaches_those_that_had_finished():
    def breaks(ballot):
        ballot.agree("plan")
        time.sleep(0.1)
        raise ZeroDivisionError("on the way")

    errors, aborted, _ = together(agree, breaks, agree)
    assert type(errors[1]) is ZeroDivisionError
    assert all("rank 1 failed: ZeroDivisionError: on the way" in str(errors[rank]) for rank in (0, 2))
    assert 1 in aborted


def test_a_lost_connection_is_explained_by_the_rank_that_failed_first():
    def breaks(ballot):
        ballot.agree("plan")
        raise ZeroDivisionError("first")

    def suffers(ballot):
        ballot.agree("plan")
        time.sleep(0.2)
        raise PeerLostError("connection closed")

    errors, _, _ = together(suffers, breaks)
    assert str(errors[0]) == "rank 1 failed: ZeroDivisionError: first"


def test_who_makes_progress_is_waited_for():
    def slow(ballot):
        ballot.agree("plan")
        for _ in range(30):  # three times the limit
            time.sleep(LIMIT / 10)
            ballot.tick()

    assert together(agree, slow)[0] == [None, None]


def test_who_is_silent_is_given_up_and_named():
    def silent(ballot):
        ballot.agree("plan")
        time.sleep(LIMIT * 4)

    errors, _, _ = together(agree, agree, silent)
    for rank in (0, 1):
        assert type(errors[rank]) is PeerLostError
        assert "ranks [2] of 3" in str(errors[rank])
    assert type(errors[2]) is PeerLostError  # and learns it when it comes back


def test_who_never_comes_is_named():
    def missing(ballot):
        time.sleep(LIMIT * 4)
        ballot.agree("plan")

    errors, _, _ = together(agree, missing)
    assert [type(error) for error in errors] == [PeerLostError, PeerLostError]
    assert "ranks [1] of 2" in str(errors[0])
