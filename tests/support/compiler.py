"""Whether a C++ compiler is here."""

import pytest
import torch

from trainer.game.compiled import try_compiler
from umbra.errors import UserError

CPU = torch.device("cpu")


def compiler_or_skip(device: str = "cpu") -> None:
    try:
        try_compiler(torch.device(device))
    except UserError as error:
        pytest.skip(str(error))
