"""What jobs.plan predicts adds up, and agrees with what synthesize then writes."""

import dataclasses

import pytest
from facelab.config import build
from facelab.data.source import find
from facelab.errors import UsageError
from facelab.synthesis.job import SynthesizeConfig, synthesize
from facelab.synthesis.plan import STAGES, Cluster, PlanConfig, Work, plan, predict
from hypothesis import given
from hypothesis import strategies as st

milliseconds = st.floats(1e-6, 1)
works = st.builds(
    Work,
    faces=st.integers(1000, 10**8),
    units=st.integers(1, 1000),
    seconds=st.fixed_dictionaries({stage: milliseconds for stage in STAGES}),
    startup=st.floats(0, 100),
)
clusters = st.builds(Cluster, cpus=st.integers(1, 500), gpus=st.sampled_from([0, 0, 1, 8]))


@given(works, clusters)
def test_processors_are_never_busier_than_they_can_be_and_one_kind_always_works(work, cluster):
    found = predict(work, cluster)
    busy = found.seconds - work.startup
    cpu = sum(work.seconds[s] for s in STAGES if s != "degrade" or not cluster.gpus) * work.faces
    assert cpu <= cluster.cpus * busy * (1 + 1e-9)
    assert found.utilisation["degrade"] <= 1 + 1e-9
    rounds = -(-work.units // found.actors)
    idle = found.actors * rounds / work.units  # of the last round
    assert cpu == pytest.approx(cluster.cpus * busy) or found.utilisation["degrade"] * idle == pytest.approx(1)
    assert found.images_per_s == pytest.approx(work.faces / busy)


@given(works, clusters)
def test_the_bottleneck_is_the_stage_with_the_greatest_utilisation(work, cluster):
    cluster = dataclasses.replace(cluster, gpus=0)
    found = predict(work, cluster)
    assert found.utilisation[found.bottleneck] == max(found.utilisation.values())


@given(works, clusters, st.integers(0, 100), st.integers(0, 8))
def test_a_bigger_cluster_is_never_slower(work, cluster, cpus, gpus):
    bigger = dataclasses.replace(cluster, cpus=cluster.cpus + cpus, gpus=cluster.gpus + gpus if cluster.gpus else 0)
    assert predict(work, bigger).seconds <= predict(work, cluster).seconds * (1 + 1e-9)


def test_a_cluster_on_which_no_actor_fits_is_refused():
    work = Work(10, 1, dict.fromkeys(STAGES, 1.0), 0)
    with pytest.raises(UsageError, match="no actor of 1 CPUs and 0 GPUs"):
        predict(work, Cluster(1, cpus_per_actor=1))


@pytest.mark.slow
def test_bytes_are_those_that_synthesize_moves(ray_local, tmp_path, hr_folder, lr_folder, degrader):
    """To 5 %: PNG sizes differ from face to face, and all 60 are not in the sample."""
    hr = str(hr_folder)
    options = dict(hr=hr, lr=str(lr_folder), degrader=degrader, variants=2, rows_per_shard=16)
    shape = dict(nodes=3, cpus_per_node=1, price=2.0, sample=40)
    planned = plan(build(PlanConfig, output=str(tmp_path / "plan"), **options, **shape))
    assert (planned["faces"], planned["units"]) == (60, 4)
    assert planned["measured"] == 40
    assert planned["cost"] == pytest.approx(planned["seconds"] / 3600 * 3 * 2.0)
    assert planned["seconds"] > planned["startup_s"] > 0
    assert planned["bytes_read"] == sum(item.size for item in find(hr, "faces").items)
    assert not (tmp_path / "plan" / "sample").exists()

    made = tmp_path / "pairs"
    synthesize(build(SynthesizeConfig, output=str(made), actors=0, **options))
    written = sum(file.stat().st_size for file in [*made.glob("part-*"), *made.glob("receipts/*")])
    assert planned["bytes_written"] == pytest.approx(written, rel=0.05)
