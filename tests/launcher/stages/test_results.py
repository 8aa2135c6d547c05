"""What is said of an evaluation that could not read some utterances."""

from launcher.recipe import EvaluateStage, load_recipe
from launcher.stages.results import describe_quarantined


def evaluation() -> EvaluateStage:
    stage = load_recipe("mini", []).stage("evaluation")
    assert isinstance(stage, EvaluateStage)
    return stage


def test_an_evaluation_says_how_many_utterances_its_error_rates_lack():
    stage = evaluation()
    student = {stage.split: {"cer": 0.1, "quarantined": 3}}
    teacher = {stage.split: {"cer": 0.1, "quarantined": 0}}
    sentences = describe_quarantined({"models": {"student": student, "teacher": teacher}}, stage)
    assert sentences == [f"3 utterances of {stage.split} could not be read and are not in the error rates of student"]


def test_a_later_evaluation_of_a_split_speaks_of_its_own():
    stage = evaluation()
    student = {stage.split: {"quarantined": 3}, f"{stage.split}/{stage.name}": {"quarantined": 1}}
    (sentence,) = describe_quarantined({"models": {"student": student}}, stage)
    assert sentence.startswith("1 utterances")


def test_results_of_earlier_versions_have_no_such_count():
    stage = evaluation()
    assert describe_quarantined({"models": {"student": {stage.split: {"cer": 0.1}}}}, stage) == []
