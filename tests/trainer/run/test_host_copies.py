import collections
import copy
import io
import types

import pytest
import torch

from trainer.run.host_copies import HostCopies


def state(value):
    """What DeepSpeed's states have: views of one flat tensor, one tensor under two names, attributes, objects."""
    flat = torch.full((10,), float(value), requires_grad=True)
    flat.ds_id = [value]
    module = collections.OrderedDict(a=flat.detach()[:4].view(2, 2), b=flat.detach()[4:], empty=torch.empty(0))
    module._metadata = {"version": 1}
    return {
        "module": module,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "flat": flat}}, "param_groups": [{"lr": 0.1}]},
        "shapes": [(torch.Size([2, 2]), torch.float32)],
        "scaler": types.SimpleNamespace(scale=value),
        "counts": (torch.arange(3), torch.ones(2, 3, dtype=torch.bfloat16).t()),
    }


def written(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_a_copy_is_written_as_the_state_itself_and_stays_what_it_was():
    copies, original = HostCopies(), state(1)
    before = written(original)
    copies.begin()
    copied = copies.of(original)
    copies.settle()
    with torch.no_grad():
        original["optimizer"]["state"][0]["flat"].mul_(2)
    original["scaler"].scale = 7
    original["optimizer"]["param_groups"][0]["lr"] = 7
    original["optimizer"]["state"][0]["flat"].ds_id.append(7)
    assert written(original) != before
    assert written(copied) == before


def test_memory_is_used_again_also_for_another_shape():
    copies = HostCopies()

    def places(content):
        copies.begin()
        found = copies.of(content)
        return [found["optimizer"]["state"][0]["flat"].data_ptr(), found["counts"][0].data_ptr()]

    first, large = places(state(1)), state(2)
    assert places(state(2)) == first
    large["optimizer"]["state"][0]["flat"] = torch.ones(99)
    before = written(large)
    copies.begin()
    assert written(copies.of(large)) == before
    copies.begin()
    assert written(copies.of(copy.deepcopy(large))) == before


def test_one_tensor_is_copied_once_until_it_is_forgotten():
    copies, tensor = HostCopies(), torch.ones(3)
    copies.begin()
    one, same = copies.tensor(tensor), copies.tensor(tensor[1:])
    assert same.untyped_storage().data_ptr() == one.untyped_storage().data_ptr()
    copies.forget()
    assert copies.tensor(tensor).untyped_storage().data_ptr() != one.untyped_storage().data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_from_a_gpu_are_pinned_and_complete():
    copies, tensor = HostCopies(), torch.randn(1 << 24, device="cuda")
    copies.begin()
    copied = copies.of({"x": tensor})["x"]
    copies.settle()
    assert copied.device.type == "cpu"
    assert copied.is_pinned()
    assert torch.equal(copied, tensor.cpu())
