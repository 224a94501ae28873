"""How the command line reads its options: names, environment, configuration file, errors.

Every option can also come from the environment as GLM_PORTABLE_<NAME> and from `--config FILE`
(YAML); the command line wins over the environment, and that over the file. Names may be written
with dashes or underscores. Bad input is one sentence on stderr and exit code 2.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from glm_portable.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
TORCH_EXTENSION = "Failed to load the backend extension"
"""How torch's import fails where an accelerator's package is installed and its runtime is not."""
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def kebab(name: str) -> str:
    """Names of options and commands may be typed with underscores too."""
    return name.replace("_", "-")


class Group(click.Group):
    """A group whose commands turn UsageError into one sentence and an exit code."""

    exit_code = 2

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(self.exit_code)
        except RuntimeError as error:
            sentence = import_failure(error)
            if sentence is None:
                raise
            click.echo(f"Error: {sentence}", err=True)
            ctx.exit(self.exit_code)


def option(*declarations: str, **attributes: Any) -> Callable[[F], F]:
    """`click.option` that also reads GLM_PORTABLE_<NAME>, and whose help says so."""
    name = max(declarations, key=len).split("/")[0].lstrip("-").replace("-", "_")
    settings: dict[str, Any] = {
        "envvar": f"GLM_PORTABLE_{name.upper()}",
        "show_envvar": True,
        "show_default": True,
    }
    return click.option(*declarations, **(settings | attributes))


def json_object(
    flag: str, given: str | Mapping[str, Any] | None, example: Mapping[str, Any]
) -> dict[str, Any]:
    """What an option's JSON says, or the mapping that a configuration file has; nothing, of None.

    Raises UsageError with the example.
    """
    read: Any = given
    if isinstance(given, str):
        with suppress(ValueError):
            read = json.loads(given)
    if read is not None and not isinstance(read, Mapping):
        raise UsageError(
            f"{flag} {given!r} is no JSON object; write it as '{json.dumps(example)}'."
        )
    return dict(read or {})


def import_failure(error: RuntimeError) -> str | None:
    """One sentence on why torch does not import, if that is what failed."""
    if TORCH_EXTENSION not in str(error):
        return None
    name = str(error).partition(f"{TORCH_EXTENSION}: ")[2].partition(".")[0]
    return (
        f"torch does not import, since {name} does not load ({error.__cause__}): see "
        f"`glm-portable doctor` for what is missing, or set {AUTOLOAD}=0 to do without it."
    )


def simulate(_ctx: click.Context, _parameter: click.Parameter, chip: str | None) -> str | None:
    """For --virtual: torch, which is not imported yet, must not look for a real accelerator."""
    if chip is not None:
        os.environ[AUTOLOAD] = "0"
    return chip


def config_option(command: F) -> F:
    """`--config FILE`: a YAML mapping of option names to values."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="GLM_PORTABLE_CONFIG",
        show_envvar=True,
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="YAML file of options; the command line and the environment win over it.",
    )(command)


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {path} cannot be read as YAML: {reason}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} must map option names to values.")
    known = {parameter.name for parameter in ctx.command.params}
    defaults = {str(key).lstrip("-").replace("-", "_"): value for key, value in values.items()}
    unknown = sorted(set(defaults) - known)
    if unknown:
        raise UsageError(
            f"--config {path}: {unknown[0]!r} is no option of {ctx.command.name}; "
            f"see glm-portable {ctx.command.name} --help."
        )
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
