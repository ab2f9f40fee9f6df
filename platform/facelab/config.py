"""Typed, frozen configs and their command line: default < preset < YAML < command line.

Each config stands beside what it configures; tyro parses, pydantic validates. Presets and YAML files are turned into
the options that a user could have typed, so every value passes through one parser and one validation.
"""

import contextlib
import datetime
import difflib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from facelab import storage
from facelab.errors import StoreError, UsageError


class _Place(AfterValidator):
    """Marks an option that names where something lies."""


Uri = Annotated[str, _Place(storage.normalise)]
"""A path, file:// or s3://bucket/prefix; paths become absolute, as workers run elsewhere."""


REGISTRY, RUN = "models:/", "runs:/"
"""How MLflow's own URIs begin: models:/NAME/VERSION, runs:/ID."""


def uri_or(scheme: str, *names: str) -> AfterValidator:
    """The validator of an option that takes a Uri, one of MLflow's, or one of `names`, which need no file."""
    return _Place(lambda text: text if text in names or text.startswith(scheme) else storage.normalise(text))


class Config(BaseModel):
    """A frozen group of settings: unknown keys raise, the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def with_options(**groups: type) -> Callable[[type[C]], type[C]]:
    """Gives a config class a group of options for each name: the fields of a config or of a dataclass of `models`.

    So a network or a metric brings its options along, and no other file has to name them.
    """

    def add(config_type: type[C]) -> type[C]:
        assert not (taken := groups.keys() & config_type.model_fields), f"already options of their own: {taken}"
        fields: dict[str, Any] = {
            name: (group, Field(default=group(), description=group.__doc__)) for name, group in groups.items()
        }
        made = create_model(
            config_type.__name__, __base__=config_type, __module__=config_type.__module__,
            __doc__=config_type.__doc__, **fields,
        )  # fmt: skip
        made.__qualname__ = config_type.__qualname__  # workers unpickle it by its name
        return made

    return add


class JobConfig(Config):
    """What every job has."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    """Preset name -> {dotted option: value}; what a preset does not name keeps its default."""
    KEEPS_RUN: ClassVar[bool] = False
    """Whether an interrupted job can be gone on with, in the same MLflow run, which its output therefore names."""
    WRITES: ClassVar[tuple[str, ...]] = ("summary.json",)
    """Names below the output that the job writes or deletes."""

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset(
        {"output", "preset", "config", "tracking_uri", "tracking_patience", "experiment", "dry_run"}
    )
    """Options that decide where a job runs, how much of it is kept and who hears of it, and nothing of its result; a
    preset is a name for the values of others."""

    output: Uri
    """Folder or s3:// prefix for config.yaml, summary.json and the job's artifacts."""
    preset: str = "paper"
    """Named settings under the options given here: debug (seconds), demo (minutes on 2 cores), paper; trainings also
    have mini (reduced networks)."""
    config: str | None = None
    """YAML file of options, under the command line and over the preset."""
    seed: int = Field(default=0, ge=0)
    """Every random draw derives from it."""
    tracking_uri: str | None = None
    """MLflow tracking URI; default MLFLOW_TRACKING_URI, else a SQLite file: outputs/mlflow.db in this folder."""
    tracking_patience: float = Field(default=10, ge=0)
    """Minutes that a finished job waits for an MLflow that is away. Nothing waits for it before."""
    experiment: str = "facelab"
    """MLflow experiment."""
    dry_run: bool = False
    """Print the resolved config and the plan, and touch nothing."""

    @classmethod
    def preset_options(cls, preset: str, values: dict[str, Any]) -> dict[str, Any]:
        """{dotted option: value} of a preset, given what else was chosen; none if it is unknown."""
        return cls.PRESETS.get(preset, {})

    @model_validator(mode="after")
    def _known_preset(self) -> Self:
        if self.preset not in self.PRESETS:
            raise ValueError(f"preset {self.preset!r} is unknown{nearest(self.preset, self.PRESETS)}")
        return self

    @property
    def resumes(self) -> bool:
        """Whether it goes on with what an earlier run of it began: see KEEPS_RUN."""
        return False

    def settings(self) -> dict[str, Any]:
        """{dotted option: value} of all that decides the result, as JSON has it."""
        values = flatten(json.loads(self.model_dump_json()))
        return {name: value for name, value in values.items() if name not in self.OPERATIONAL}

    def check_output(self) -> None:
        """Refuse an --output that must not be written to; before anything is."""
        if storage.is_file(self.output):
            raise UsageError(f"--output {self.output}: is a file: give a folder")

    def check_files(self) -> None:
        """Refuse an --output that is one of the inputs, or above or below one, as it would replace what is read, or be
        read itself the next time; or where it would replace a file of the user's."""
        for name, uri in places(self):
            if storage.within(self.output, uri) or storage.within(uri, self.output):
                raise UsageError(
                    f"--output {self.output} and --{name} {uri} are the same place, or one lies in the other: choose "
                    "another --output"
                )
        known = storage.join(self.output, "config.yaml")
        if storage.exists(known):
            if not is_a_jobs(known):
                raise UsageError(f"{known}: was not written by facelab: choose another --output")
        elif foreign := [name for name in self.WRITES if storage.exists(storage.join(self.output, name))]:
            raise UsageError(
                f"--output {self.output}: has a {foreign[0]} that no facelab job wrote there, and that this one would "
                "replace: choose another"
            )

    def database(self) -> Path:
        """The SQLite file that tracks the job where no tracking URI is given."""
        return Path("outputs/mlflow.db").absolute()


class SizedConfig(JobConfig):
    """A job on sharp faces of one size and their LR."""

    scale: int = Field(default=4, ge=2)
    """LR side = hr_size / scale."""
    hr_size: int = Field(default=64, ge=16)
    """Side of the sharp faces, px; a multiple of scale."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.hr_size % self.scale:
            raise ValueError(f"hr_size {self.hr_size} is no multiple of scale {self.scale}")
        return self

    @property
    def lr_size(self) -> int:
        """Side of the low-resolution faces, px."""
        return self.hr_size // self.scale


class ActorConfig(JobConfig):
    """A job with a pool of model actors."""

    OPERATIONAL = JobConfig.OPERATIONAL | {"actors", "max_actors", "cpus_per_actor", "gpus_per_actor"}

    actors: int = Field(default=1, ge=0)
    """Model actors working at the same time; the result does not depend on how many. 0: the process itself works, on
    one CPU and without Ray, which takes longer to start than a small set takes."""
    max_actors: int | None = Field(default=None, ge=1)
    """Up to so many while the work queues and the cluster has, or grows, room for them; default --actors."""
    cpus_per_actor: float = Field(default=0.5, gt=0)
    """CPUs reserved per actor; below 1, several share a core."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs reserved per actor; may be a fraction."""


J = TypeVar("J", bound=JobConfig)


def places(config: BaseModel, group: str = "") -> Iterator[tuple[str, str]]:
    """(option, URI) of every input: what is marked as a place but for the output."""
    for name, field in type(config).model_fields.items():
        option, value = f"{group}{name.replace('_', '-')}", getattr(config, name)
        if isinstance(value, BaseModel):
            yield from places(value, f"{option}.")
        elif name != "output" and (_is_place(field.metadata) or _is_marked(field.annotation)):
            for uri in (value,) if isinstance(value, str) else value or ():
                if uri.startswith(("/", "s3://")):  # no name of something built in, and not MLflow's
                    yield option, uri


def _is_place(marks: Sequence[Any]) -> bool:
    return any(isinstance(mark, _Place) for mark in marks)


def _is_marked(annotation: Any) -> bool:
    """Whether a place is somewhere in an annotation such as tuple[Uri, ...] | None."""
    return _is_place(getattr(annotation, "__metadata__", ())) or any(map(_is_marked, get_args(annotation)))


def is_a_jobs(uri: str) -> bool:
    """Whether a config.yaml was written by a job: it has options that nobody writes into a file, as every one has."""
    try:
        return {"output", "preset", "seed", "tracking_uri", "dry_run"} <= _read_yaml(uri).keys()
    except StoreError:
        raise
    except UsageError:
        return False


def nearest(word: str, known: Any) -> str:
    """A hint with the nearest known name, or the list of all."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f": did you mean {match[0]!r}?" if match else f": choose one of {', '.join(known)}"


_INSTEAD = "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or all of MLFLOW_TRACKING_URI"


def parse(config_type: type[J], argv: list[str], prog: str) -> J:
    """Parse a job's command line.

    Raises:
        UsageError: unknown, missing or invalid option, or a secret in one or in the --config file, in one line.
        SystemExit: after --help.
    """
    for argument in argv:
        if "s3://" not in argument and (shown := without_secret(argument)) != argument:  # of s3://, storage tells
            raise UsageError(
                f"{prog}: {shown}: what is on a command line stands in `ps` and in Ray's list of jobs: give the plain "
                f"address, {_INSTEAD}"
            )
    file = _value_of(argv, "--config")
    from_file = _read_yaml(file) if file else {}
    for key, value in flatten(from_file).items():
        for text in map(str, value if isinstance(value, list) else [value]):
            if not text.startswith("s3://") and (shown := _without_secrets(text)) != text:
                raise UsageError(
                    f"{file}: {without_secret(key)}: {shown}: a config file is copied and uploaded with the code: give "
                    f"the plain address, {_INSTEAD}"
                )
    preset = str(_value_of(argv, "--preset") or from_file.get("preset") or config_type.model_fields["preset"].default)
    if preset not in config_type.PRESETS:
        raise UsageError(f"--preset {preset!r} is unknown{nearest(preset, config_type.PRESETS)}")
    chosen = {"model": _value_of(argv, "--model") or from_file.get("model")}
    arguments = _as_options(config_type, config_type.preset_options(preset, chosen), f"preset {preset}")
    arguments += _as_options(config_type, from_file, file or "")
    arguments += ["--preset", preset]  # after a list, which would take the positional ones that follow for its own
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            options = list(_spelt_out(config_type, arguments + argv))
            unnamed = _unnamed(config_type, config_type.preset_options(preset, chosen) | from_file)
            config = tyro.cli(config_type, args=options, prog=prog, description=config_type.__doc__, default=unnamed)
    except ValidationError as error:
        raise UsageError(f"{prog}: {explain(error)} (see --help)") from error
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UsageError(f"{prog}: {_first_sentence(shown.getvalue())} (see --help)") from stop
    sys.stderr.write(shown.getvalue())
    return config


def build(config_type: type[C], **values: Any) -> C:
    """Construct a config in code: default < preset < `values` (groups as dictionaries), the command line's errors."""
    if issubclass(config_type, JobConfig):
        preset = values.get("preset", config_type.model_fields["preset"].default)
        values = _merged(preset_values(config_type, preset, values), values)
    try:
        return config_type(**values)
    except ValidationError as error:
        raise UsageError(f"{config_type.__name__}: {explain(error)}") from error


def preset_values(config_type: type[JobConfig], preset: str, values: dict[str, Any]) -> dict[str, Any]:
    """A preset's values as nested keyword arguments, given what else was chosen; none if it is unknown."""
    nested: dict[str, Any] = {}
    for key, value in config_type.preset_options(preset, values).items():
        *groups, last = key.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[last] = value
    return nested


def changes(config: JobConfig) -> dict[str, tuple[Any, Any]]:
    """{dotted option: (its preset's value, its own)} of the settings that differ from those of the preset; what has to
    be given has no value there, and is left out."""
    kind = type(config)
    given = {name: getattr(config, name) for name, field in kind.model_fields.items() if field.is_required()}
    defaults = json.loads(kind.model_construct(**given).model_dump_json())
    chosen = json.loads(json.dumps(preset_values(kind, config.preset, vars(config)), default=str))
    of_preset = flatten(_merged(defaults, chosen))
    own = {name: value for name, value in config.settings().items() if name in of_preset}
    return {name: (of_preset[name], value) for name, value in own.items() if value != of_preset[name]}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], above[key])
        for key in below.keys() & above.keys()
        if isinstance(below[key], dict) and isinstance(above[key], dict)
    }
    return below | above | both


def to_yaml(config: Config) -> str:
    """The resolved whole, without secrets: what --dry-run prints and config.yaml holds."""
    return yaml.safe_dump(_without_secrets(json.loads(config.model_dump_json())), sort_keys=False)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    if isinstance(value, str):
        return re.sub(_URL, _blotted, value) if re.match(_URL, value) else without_secret(value)
    return value


_SCHEME = "([A-Za-z][A-Za-z0-9+.-]*)://"
_URL = re.compile(rf"^{_SCHEME}(.*)$", re.DOTALL)
_PATHS = ("s3", "file", "sqlite")
"""Schemes whose URIs are paths, in which @ and ? are characters like others."""


def without_secret(text: str) -> str:
    """Whoever is named before the @ of a URL is blotted out, and what follows its ?: passwords, tokens, signatures."""
    return re.sub(rf"{_SCHEME}(\S*)", _blotted, text)


def _blotted(url: re.Match[str]) -> str:
    scheme, rest = url[1], url[2]
    if scheme.lower() in _PATHS:  # a bucket has no : or @ in it, but a key pasted before one has
        return f"{scheme}://" + re.sub(r"^(?=[^/]*[:@]).*@", "***@", rest)
    rest = re.sub(r"^.*@", "***@", rest, flags=re.DOTALL)  # greedily: a password may hold / and @ itself
    return f"{scheme}://" + re.sub(r"\?.+", "?***", rest, flags=re.DOTALL)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> {dotted key: value}: MLflow parameters, option names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def explain(error: ValidationError) -> str:
    """The first problem of a validation, in one line."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def option_types(config_type: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted option name -> type, over nested configs and the dataclasses of `models`."""
    if issubclass(config_type, BaseModel):
        fields = {name: field.annotation for name, field in config_type.model_fields.items()}
    else:
        fields = get_type_hints(config_type)
    options: dict[str, Any] = {}
    for name, annotation in fields.items():
        if isinstance(annotation, type) and (
            issubclass(annotation, BaseModel) or hasattr(annotation, "__dataclass_fields__")
        ):
            options |= option_types(annotation, f"{prefix}{name}.")
        else:
            options[f"{prefix}{name}"] = annotation
    return options


def _positionals(config_type: type[JobConfig]) -> set[str]:
    """Fields that the command line has by their place: those marked tyro.conf.Positional."""
    return {name for name, field in config_type.model_fields.items() if tyro.conf.Positional in field.metadata}


def _unnamed(config_type: type[J], values: dict[str, Any]) -> Any:
    """For tyro, the config that the command line changes: of `values` only the positional ones, which beside others of
    the command line would be more of them, and not replaced by them. MISSING_NONPROP where there are none."""
    fields, given = config_type.model_fields, {}
    for name in _positionals(config_type) & values.keys():
        each = values[name] if isinstance(values[name], (list, tuple)) else [values[name]]
        given[name] = tuple(map(str, each)) if get_origin(fields[name].annotation) is tuple else str(values[name])
    if not given:
        return tyro.MISSING_NONPROP
    return config_type.model_construct(**{name: tyro.MISSING for name in fields if fields[name].is_required()} | given)


def _as_options(config_type: type[JobConfig], values: dict[str, Any], source: str) -> list[str]:
    known = option_types(config_type)
    arguments: list[str] = []
    for key, value in flatten(values).items():
        if key not in known:
            raise UsageError(f"{source}: unknown key {key!r}{nearest(key, known)}")
        each = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) for one in each) and bool not in (known[key], *get_args(known[key])):
            raise UsageError(
                f"{source}: {key}: YAML reads yes, no, on and off as true or false: write '…' around a text"
            )
        if value is None and type(None) not in get_args(known[key]):
            raise UsageError(f"{source}: {key}: has no value: give one, or leave the line out")
        if key in _positionals(config_type):
            continue
        group, _, name = key.replace("_", "-").rpartition(".")
        dot = f"{group}." if group else ""
        if isinstance(value, bool):
            arguments.append(f"--{dot}{name}" if value else f"--{dot}no-{name}")
        elif isinstance(value, (list, tuple)):
            arguments += [f"--{dot}{name}", *map(str, value)]
        else:
            arguments += [f"--{dot}{name}", str(value)]
    return arguments


def _spelt_out(config_type: type[JobConfig], arguments: list[str]) -> Iterator[str]:
    """--gpu and --no-gpu, as of every switch, also where the default is None and tyro wants `--gpu True`."""
    undecided = {name for name, kind in option_types(config_type).items() if set(get_args(kind)) == {bool, type(None)}}
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        group, dot, name = argument.removeprefix("--").replace("-", "_").rpartition(".")
        plain, negated = f"{group}{dot}{name}", f"{group}{dot}{name.removeprefix('no_')}"
        if not argument.startswith("--") or not {plain, negated} & undecided:
            yield argument
        elif plain in undecided:
            yield from [argument] if not following.startswith("-") else [argument, "True"]
        else:
            yield from ["--" + negated.replace("_", "-"), "False"]


def _read_yaml(uri: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(storage.read_bytes(uri))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise UsageError(f"{uri}: not valid YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{uri}: a mapping of options is expected, such as `seed: 1`")
    _require_plain(uri, values)
    return values


def _require_plain(uri: str, values: Any, key: str = "", depth: int = 0) -> None:
    """Raises UsageError where something is neither a value, a list of values, nor a group of such."""
    if isinstance(values, dict) and values and depth < 5:  # an alias may lead round in a circle
        for name, value in values.items():
            _require_plain(uri, value, f"{key}.{name}" if key else str(name), depth + 1)
        return
    each = values if isinstance(values, list) else [values]
    if not all(isinstance(one, str | int | float | datetime.date | None) for one in each):
        raise UsageError(f"{uri}: {key}: neither a value, a list of values, nor a group of options")


def _value_of(argv: list[str], option: str) -> str | None:
    """The last value of an option, before the real parser runs."""
    found = None
    for position, argument in enumerate(argv):
        if argument == option and position + 1 < len(argv):
            found = argv[position + 1]
        elif argument.startswith(f"{option}="):
            found = argument.split("=", 1)[1]
    return found


def _first_sentence(box: str) -> str:
    """tyro's framed message, as one line."""
    lines = [line.strip("│╭╮╰╯─ ").strip() for line in box.splitlines()]
    kept: list[str] = []
    for line in lines[1:]:
        if line.startswith(("For full helptext", "Argument helptext")):
            break
        if line:
            kept.append(line)
    text = " ".join(kept) or box.strip()
    text = re.sub(r"^Error parsing \w+: \d+ validation errors? for \w+ ", "", text)  # pydantic's frame
    return text.split(" [type=")[0].replace("Value error, ", "")
