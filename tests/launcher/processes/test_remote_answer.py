import pytest

from launcher.processes.remote_answer import print_answer, read_answer, read_answers

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


def test_the_answers_of_several_hosts_in_one_output_are_all_read(capsys):
    print("prolog of node 1")
    print_answer(2)
    print("7")
    print_answer(3)
    assert list(read_answers(capsys.readouterr().out.splitlines())) == [2, 3]
    assert list(read_answers(["7"])) == []
