"""What both training scripts set up before their stages."""

import pytest

import train_rave
from training.setup import find_state, open_run
from utils import options
from utils.errors import UserError

NOTE = "--amp: this cpu has no bf16 instructions, so it takes many times as long"


@pytest.mark.parametrize(
    ("more", "instructions", "said"), [(["--amp"], False, 1), (["--amp"], True, 0), ([], False, 0)]
)
def test_amp_without_instructions_for_it_is_slow(
    more, instructions, said, tiny_run, monkeypatch, capsys
):
    monkeypatch.setattr(options, "has_bf16", lambda device: instructions)
    open_run(train_rave.parse_arguments([*tiny_run, *more]))
    assert capsys.readouterr().out.count(NOTE) == said


@pytest.mark.parametrize("resume", [False, True])
def test_final_weights_without_a_state_are_not_overwritten(tmp_path, resume):
    final = tmp_path / "snapshots_model" / "final.pth"
    final.parent.mkdir()
    assert find_state(tmp_path, resume) is None
    final.touch()
    with pytest.raises(UserError, match=r"last\.pt is gone"):
        find_state(tmp_path, resume)
