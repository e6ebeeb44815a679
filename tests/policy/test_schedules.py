import pytest

from hf_pdyn.policy.schedules import Moment, Schedule

LENGTH = {"total_steps": 1000, "steps_per_epoch": 100}


@pytest.mark.parametrize(
    ("text", "step"),
    [("200", 200), ("0.5", 500), ("50%", 500), ("1.0", 1000), ("0", 0), ("epoch:2", 200), ("epoch:0.5", 50)],
)
def test_moments(text: str, step: int) -> None:
    moment = Moment.parse(text)
    assert moment.resolve(**LENGTH) == step
    assert Moment.parse(str(moment)) == moment


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("half", "'half' is no moment of training.*a number of optimizer steps"),
        ("1.5", r"must lie in \[0, 1\], got '1.5'"),
        ("-3", "between 0 and 9.0.*, got '-3'"),
        ("epoch:x", "no moment"),
        ("nan%", "no moment"),
        ("epoch:1_0", "no moment"),
        ("9" * 400, "no moment"),
        ("", "no moment"),
    ],
)
def test_bad_moments(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Moment.parse(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.45", {0: 0.45, 999: 0.45}),
        ("linear:0.45..0.35", {0: 0.45, 500: 0.4, 1000: 0.35}),
        ("linear:-0.4..0.4@0.2..0.6", {0: -0.4, 200: -0.4, 400: 0.0, 600: 0.4, 999: 0.4}),
        ("cosine:0.1..0", {0: 0.1, 500: 0.05, 250: 0.0853553, 1000: 0.0}),
        ("cosine:0.6..0.5@epoch:1..epoch:2", {99: 0.6, 150: 0.55, 201: 0.5}),
        ("step:0.5,0.4@0.5,0.3@800", {0: 0.5, 499: 0.5, 500: 0.4, 799: 0.4, 800: 0.3}),
        ("step:0.5", {0: 0.5, 999: 0.5}),
    ],
)
def test_schedules(text: str, values: dict[int, float]) -> None:
    schedule = Schedule.parse(text)
    schedule.check(**LENGTH)
    assert {step: schedule.value(step, **LENGTH) for step in values} == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linaer:0.5..0.4", "Unknown schedule 'linaer'.*known are linear, cosine, step. Did you mean 'linear'?"),
        ("linear:0.5", r"joined by '\.\.'.*got 'linear:0.5'"),
        ("linear:a..0.4", "got 'linear:a..0.4': 'a' is no finite number"),
        ("linear:0.5..inf", "finite numbers, got 'linear:0.5..inf'"),
        ("step:0.5,0.4", "needs its moment"),
        ("step:0.5,0.4@x", "no moment"),
        ("cosine:0.5..0.4@0.1", r"joined by '\.\.'"),
        ("half", "no finite number"),
        ("1_0", "no finite number"),
    ],
)
def test_bad_schedules(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear:0.5..0.4@0.6..0.2", r"must increase, got steps \[600, 200\]"),
        ("step:0.5,0.4@2000", "must end within training: moment 2000 is step 2000, training has 1000"),
        ("step:0.5,0.4@0.5,0.3@500", "must increase"),
    ],
)
def test_schedules_must_fit_the_training(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.parse(text).check(**LENGTH)
