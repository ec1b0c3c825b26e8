"""What is known of the processes of a run, and who of them hangs."""

from trainer import heartbeat
from trainer.heartbeat import Beat, Seen


def test_the_ranks_that_hang_are_those_without_a_sign_of_life_else_those_behind_that_do_not_wait():
    def beats(*places):
        return {n: Beat(n, "n1", "forward", 3, count, waits) for n, (count, waits) in enumerate(places)}

    assert Seen(beats((5, True), (4, False), (5, True))).hanging() == [1]
    assert Seen(beats((5, True), (4, False)), frozenset({0})).hanging() == [0]
    assert Seen(beats((5, True), (5, False), (5, True))).hanging() == [1]
    assert Seen(beats((5, True), (5, True))).hanging() == [0, 1]
    assert Seen({**beats((5, True), (4, True)), 2: None}, frozenset({2})).hanging() == [2]
    many = Seen(beats(*[(4, False)] * 6, (5, True)))
    assert many.line(10).count("hangs in forward of step 3") == heartbeat.SHOWN
    assert "; and 2 more" in many.line(10)


def test_what_may_take_long_is_asked_of_living_processes_alone():
    calm, long = Beat(0, "n1", patient=False), Beat(1, "n1", patient=True)
    assert Seen({0: calm, 1: long}).patient
    assert not Seen({0: calm, 1: long}, frozenset({1})).patient


def test_each_thing_that_begins_counts_and_all_is_patient_until_the_first_step_is_done(monkeypatch):
    monkeypatch.setattr(heartbeat, "_now", Beat(2, "n1"))
    monkeypatch.setattr(heartbeat, "_settled", False)
    heartbeat.doing("data", 1)
    with heartbeat.waiting():
        assert heartbeat.now() == Beat(2, "n1", "data", 1, 1, waits=True, patient=True)
    heartbeat.settled()
    heartbeat.doing("forward")
    assert heartbeat.now() == Beat(2, "n1", "forward", 1, 2, patient=False)
    heartbeat.doing("shards", patient=True)
    assert (heartbeat.now().count, heartbeat.now().patient, heartbeat.now().waits) == (3, True, False)
