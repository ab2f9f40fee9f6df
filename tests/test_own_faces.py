"""The faces of an experiment, drawn or one's own."""

from facelab.config import build
from facelab.experiments.demo import DemoConfig
from facelab.experiments.faces import face_sets, face_steps

OWN = {"hr": "a", "lr": "b", "test": "c", "real": "d"}


def test_faces_of_another_size_lie_in_a_folder_of_their_own():
    drawn, own = build(DemoConfig, output="/out"), build(DemoConfig, output="/out", **OWN)
    (step,) = face_steps(drawn, "sqlite:///x", "large", hr_size=128)
    assert (step.folder, step.config.output, step.config.hr_size) == ("large/faces", "/out/large/faces", 128)
    assert face_sets(drawn, "large").true == "/out/large/faces/true"
    assert face_sets(drawn).true == "/out/faces/true"

    steps = face_steps(own, "sqlite:///x", "large", hr_size=128)
    assert [step.folder for step in steps] == [f"large/prepared/{name}" for name in ("hr", "lr", "test_hr", "real")]
    assert [step.config.min_side for step in steps] == [128, 24, 128, 24]  # as every job on them wants
    assert [step.config.min_side for step in face_steps(own, "sqlite:///x")] == [64, 12, 64, 12]
    sets = face_sets(own, "large")
    assert [sets.hr, sets.lr, sets.test_hr, sets.real] == [step.config.output for step in steps]
    assert (sets.test, sets.true) == (None, None)

    small = build(DemoConfig, output="/out", allow_enlarged=True, **OWN)
    assert [step.config.min_side for step in face_steps(small, "sqlite:///x", hr_size=128)] == [12] * 4
