import pytest

from trainer import world
from trainer.data.order import Order, default_lanes
from umbra.errors import UserError

HOSTS = ("a", "b", "c", "d", "e", "f", "g")


@pytest.mark.parametrize("contrast", [6, 7, 64, 96, 250, 1024])
@pytest.mark.parametrize("room", [1, 5, 8, 56, 100])
def test_the_world_is_the_largest_that_the_order_of_samples_takes(contrast, room):
    order = Order((10_000,), 0, contrast, default_lanes(contrast))

    def taken(size):
        try:
            order.ranks(size)
        except UserError:
            return False
        return True

    found = world.fit(order.lanes, 1, HOSTS[:1] * room)
    assert found.world == max(size for size in range(1, room + 1) if taken(size))
    assert bool(found.idle) is (found.world < room)


def test_what_is_idle_is_said_by_rank_and_node():
    seven = world.fit(64, 8, HOSTS)
    assert (seven.world, seven.nodes) == (32, 4)
    said = "warning: 56 processes cannot share 64 lanes (data.lanes), 32 can: ranks 32 to 55 are idle (all of e, f, g)"
    assert seven.idle == said
    uneven = world.fit(6, 2, HOSTS[:2])
    assert (uneven.world, uneven.nodes) == (3, 2)
    assert uneven.idle.endswith("3 can: rank 3 is idle")
    assert world.fit(64, 8, HOSTS[:4]).idle == ""


def test_the_command_reads_the_config_of_the_run(capsys):
    words = ["configs/pretrain/adversarial.yaml", "data.path=DIR", "run=RUN"]
    world.main(["8", "a,b,c", *words, "batch.global=192", "batch.contrast=96"])
    out, err = capsys.readouterr()
    assert out.split() == ["24", "3"]
    assert err == ""
    world.main(["4", "a,b", *words, "data.lanes=5", "batch.global=10"])
    out, err = capsys.readouterr()
    assert out.split() == ["5", "2"]
    assert "8 processes cannot share 5 lanes" in err


@pytest.mark.parametrize("words", [[], ["8"], ["0", "a"], ["8", "run=x"], ["x", "a"]])
def test_the_command_wants_processes_and_hosts(words):
    with pytest.raises(UserError, match=r"usage: python -m trainer\.world"):
        world.main(words)


def test_a_mistake_in_the_config_is_said_before_any_process_starts():
    with pytest.raises(UserError, match=r"does not divide batch\.global"):
        world.main(["8", "a", "data.path=DIR", "batch.contrast=7", "batch.global=8"])
