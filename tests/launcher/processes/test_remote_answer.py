import pytest

from launcher.processes.remote_answer import print_answer, read_answer

BANNERS = ["", "Welcome\n", "7\n", '{"a": 1}\n', "no end of line", "\n\n", "Gruß: 3 neue Nachrichten\n$ "]


@pytest.mark.parametrize("banner", BANNERS)
@pytest.mark.parametrize("value", [0, 12.5, {"host": "a\nb", "error": None}, ["x"], "chorus answers: 3"])
def test_an_answer_is_read_whatever_a_login_prints_before_it(capsys, banner, value):
    print(banner, end="")
    print_answer(value)
    lines = capsys.readouterr().out.splitlines()
    assert read_answer([*lines, "logout"]) == value


def test_answers_follow_one_another_and_their_absence_is_an_error(capsys):
    print_answer(1)
    print("a warning of a library")
    print_answer(2)
    lines = iter(capsys.readouterr().out.splitlines())
    assert read_answer(lines) == 1
    assert read_answer(lines) == 2
    with pytest.raises(ValueError, match="no answer"):
        read_answer(lines)
