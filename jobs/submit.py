"""Any of the other jobs on a cluster: what would stop it is told first, then it is submitted and followed.

python -m jobs.submit -- train_sr --pairs s3://faces/pairs --output s3://models/attentive --workers 4 --compute.gpu
python -m jobs.submit --detach -- synthesize --hr s3://faces/hr --degrader classical --output s3://faces/pairs
python -m jobs.submit --follow ID
python -m jobs.submit --stop ID
"""

import sys
from importlib import import_module
from pkgutil import iter_modules

from facelab.config import nearest
from facelab.errors import UsageError
from facelab.job import Job
from facelab.submission.command import main


def job_named(name: str) -> Job:
    """The one that jobs/NAME.py runs."""
    known = {module.name for module in iter_modules(["jobs"])} - {"submit"}
    if name not in known:
        raise UsageError(f"jobs.submit: job {name!r} is unknown{nearest(name, sorted(known))}")
    return next(value for value in vars(import_module(f"jobs.{name}")).values() if isinstance(value, Job))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], job_named))
