"""The command line: `glm-portable serve | generate | chat | doctor | verify | convert ...`."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from glm_portable.bench.group import bench
from glm_portable.engine_options import LIMIT_OPTIONS, limit_options, rank_options
from glm_portable.options import F, Group, config_option, kebab, option, simulate
from glm_portable.verify.command import verify

if TYPE_CHECKING:  # importing torch takes seconds, which --help and --version need not
    from glm_portable.glm import GLM

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": kebab,
    "max_content_width": 100,
}
file_path = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=Group, context_settings=SETTINGS)
@click.version_option(package_name="glm-portable", prog_name="glm-portable")
def main() -> None:
    """Run GLM-4.5, 4.6 and 4.7. Without MODEL, commands use the embedded pocket model."""


def model_options(command: F) -> F:
    """MODEL and the options that say how it is loaded."""
    for decorate in reversed(
        [
            click.argument("model", required=False, envvar="GLM_PORTABLE_MODEL"),
            option("--backend", default="auto", help="auto, cpu, cuda, rocm, ascend or reference."),
            option(
                "--virtual",
                metavar="CHIP",
                callback=simulate,
                help="Simulate gfx942, gfx950 or Ascend910_9391: for tests.",
            ),
            option("--dtype", default="auto", help="auto (the checkpoint's), bfloat16, float32."),
            option(
                "--quantization",
                type=click.Choice(["w8a8", "bf16"]),
                help="Convert the weights as they are read. [default: as stored]",
            ),
            option(
                "--router-bias-from",
                type=click.Path(path_type=Path, exists=True, file_okay=False),
                help="The original of a checkpoint whose conversion lost its router biases.",
            ),
            option("--revision", help="Branch, tag or commit, for a MODEL on a hub."),
            option("--chat-template", type=file_path, help="Jinja file instead of the model's."),
            option(
                "--tool-call-parser", help="glm45 or glm47; told from the template if not given."
            ),
            option("--max-model-len", type=int, help="Window: prompt and answer together."),
            option(
                "--kv-cache-dtype",
                default="auto",
                help="auto (the model's), bfloat16, or fp8 (fp8_e4m3) for twice the tokens.",
            ),
            speculative_options,
            config_option,
        ]
    ):
        command = decorate(command)
    return command


def speculative_options(command: F) -> F:
    """What to draft with the MTP layer, as vLLM and as SGLang say it.

    The command gets the one that was given as speculative_config.
    """

    @functools.wraps(command)
    def with_config(*arguments: Any, **options: Any) -> Any:
        from glm_portable.engine.speculative import from_options

        config = from_options(
            options.pop("speculative_config"),
            {
                "method": options.pop("speculative_method"),
                "num_speculative_tokens": options.pop("num_speculative_tokens"),
            },
            *(options.pop(f"speculative_{name}") for name in SGLANG_SPECULATIVE),
        )
        return command(*arguments, **options, speculative_config=config)

    decorated: Any = with_config
    for decorate in reversed(
        [
            option(
                "--speculative-config",
                metavar="JSON",
                type=click.UNPROCESSED,  # a configuration file may hold a mapping
                help="""Draft tokens with the model's MTP layer: {"method": "mtp", """
                """"num_speculative_tokens": 1}.""",
            ),
            option(
                "--speculative-config.method",
                "speculative_method",
                help="The fields of the JSON may be given alone.",
                envvar="GLM_PORTABLE_SPECULATIVE_METHOD",
            ),
            option(
                "--speculative-config.num-speculative-tokens",
                "num_speculative_tokens",
                type=int,
                envvar="GLM_PORTABLE_NUM_SPECULATIVE_TOKENS",
                help="1 to 5.",
            ),
            option("--speculative-algorithm", help="SGLang's way: EAGLE or NEXTN, both MTP here."),
            option("--speculative-num-steps", type=int, help="1 to 5. [default: 3]"),
            option("--speculative-eagle-topk", type=int, help="Only 1."),
            option("--speculative-num-draft-tokens", type=int, help="One more than the steps."),
        ]
    ):
        decorated = decorate(decorated)
    return cast(F, decorated)


def server_options(command: F) -> F:
    """The HTTP server: address, keys, limits, log, traces; names of vLLM and SGLang."""
    for decorate in reversed(
        [
            option("--host", default="127.0.0.1", help="0.0.0.0 to listen on every interface."),
            option("--port", type=int, default=8000, help="0 takes a free one."),
            option("--served-model-name", multiple=True, help="What requests call it; repeatable."),
            option("--api-key", multiple=True, help="Required of every request; repeatable."),
            option(
                "--api-key-file",
                type=file_path,
                help="Keys, one a line: unlike --api-key not seen in a list of processes.",
            ),
            option(
                "--allowed-origins",
                "--allow-origins",
                "allowed_origins",
                multiple=True,
                help="Web pages (CORS) that may call; repeatable, or a JSON list.",
            ),
            option("--ssl-certfile", type=file_path, help="PEM certificate: serve HTTPS."),
            option("--ssl-keyfile", type=file_path, help="Its PEM key."),
            option(
                "--stream-interval",
                type=int,
                default=1,
                help="Tokens of a streamed chunk; the first comes at once.",
            ),
            option(
                "--request-timeout", type=float, help="Seconds of one answer. [default: no limit]"
            ),
            option(
                "--max-queue",
                "--max-queued-requests",
                "max_queue",
                envvar="GLM_PORTABLE_MAX_QUEUE",
                type=int,
                help="Waiting requests above which others get 429. [default: no limit]",
            ),
            option(
                "--rate-limit",
                type=int,
                help="Requests a minute of one key, or else one address. [default: no limit]",
            ),
            option("--max-body-size", type=int, default=16 * 2**20, help="Bytes of a request."),
            option(
                "--write-timeout",
                type=float,
                default=60.0,
                help="Seconds after which a client that reads nothing is cut.",
            ),
            option(
                "--drain-delay",
                type=float,
                default=0.0,
                help="Seconds after SIGTERM to go on taking requests, with /health at 503 already.",
            ),
            option("--drain-grace", type=float, default=30.0, help="Seconds to finish at the end."),
            option(
                "--log-format",
                type=click.Choice(["text", "json"]),
                default="text",
                help="A line of text or of JSON a record.",
            ),
            option(
                "--log-level",
                "--uvicorn-log-level",
                "log_level",
                envvar="GLM_PORTABLE_LOG_LEVEL",
                type=click.Choice(["debug", "info", "warning", "error"]),
                default="info",
                help="Least level that is logged.",
            ),
            option(
                "--disable-log-requests",
                "--disable-uvicorn-access-log",
                "disable_log_requests",
                envvar="GLM_PORTABLE_DISABLE_LOG_REQUESTS",
                is_flag=True,
                help="No line for every request. Their texts are never logged.",
            ),
            option(
                "--otlp-traces-endpoint",
                metavar="URL",
                help="Send OpenTelemetry traces there, over HTTP.",
            ),
        ]
    ):
        command = decorate(command)
    return command


@main.command()
@model_options
@limit_options
@rank_options
@server_options
@option(
    "--default-chat-template-kwargs",
    metavar="JSON",
    type=click.UNPROCESSED,  # a configuration file may hold a mapping
    help="""For requests that do not say: {"enable_thinking": false}, or clear_thinking.""",
)
@option(
    "--reasoning-parser",
    type=click.Choice(["glm45", "glm4_moe"]),
    help="For vLLM's command lines.",
)
@option("--enable-auto-tool-choice", is_flag=True, help="Always on; for vLLM's command lines.")
def serve(model: str | None, **options: Any) -> None:
    """Serve an OpenAI-compatible API."""
    from glm_portable.serving import run_server

    limits = {k: options.pop(k) for k in LIMIT_OPTIONS}
    raise SystemExit(run_server(model, limits, **options))


@main.command()
@click.argument("prompt")
@model_options
@option("--max-tokens", type=int, default=512, help="Most tokens to generate.")
@option("--temperature", type=float, default=1.0, help="0 always takes the likeliest token.")
@option("--top-p", type=float, default=1.0, help="Nucleus sampling.")
@option("--seed", type=int, help="Makes sampling repeatable.")
@option("--thinking/--no-thinking", default=True, help="Whether the model may think first.")
@option("--raw", is_flag=True, help="Continue PROMPT as plain text, without the chat template.")
def generate(prompt: str, model: str | None, raw: bool, thinking: bool, **options: Any) -> None:
    """Answer PROMPT once. Thinking is shown dimmed, the answer on stdout."""
    from glm_portable.terminal import Printer

    glm, sampling = _load(model, options), _sampling(options)
    if raw:
        request: Any = prompt
    else:
        request = [{"role": "user", "content": prompt}]
    events = glm.stream(request, chat_template_kwargs={"enable_thinking": thinking}, **sampling)
    Printer().show(events)


@main.command()
@model_options
@option("--max-tokens", type=int, default=1024, help="Most tokens of one answer.")
@option("--temperature", type=float, default=1.0, help="0 always takes the likeliest token.")
@option("--top-p", type=float, default=1.0, help="Nucleus sampling.")
@option("--seed", type=int, help="Makes sampling repeatable.")
@option("--thinking/--no-thinking", default=True, help="Whether the model may think first.")
@option("--system", help="System message.")
def chat(model: str | None, thinking: bool, system: str | None, **options: Any) -> None:
    """Chat in the terminal; thinking is shown apart from the answer."""
    from glm_portable.terminal import Chat

    glm, sampling = _load(model, options), _sampling(options)
    Chat(glm, thinking=thinking, system=system, sampling=sampling).run()


@main.command()
@model_options
@option("--url", help="Score the server at this address instead of loading MODEL.")
@option("--api-key", help="For --url.")
@option("--samples", type=int, default=40, help="Held-out samples a skill and thinking mode.")
@option("--skills", help="Only these, separated by commas.")
@option("--seed", type=int, default=9000, help="Which held-out samples.")
@option("--concurrency", type=int, default=16, help="Requests at once.")
@option("--show", type=int, default=0, help="How many wrong answers to print.")
@option("--json", "json_path", type=file_path, help="Write the results here too.")
def evaluate(model: str | None, url: str | None, api_key: str | None, **options: Any) -> None:
    """Score a model on the pocket model's held-out tasks and print the table."""
    from glm_portable.commands import ask_endpoint, ask_glm
    from glm_portable.evaluate.command import run_evaluate

    load_options = {k: options.pop(k) for k in LOAD_OPTIONS}
    if url is not None:
        with ask_endpoint(url, model, api_key) as endpoint:
            run_evaluate(endpoint, **options)
    else:
        run_evaluate(ask_glm(_load(model, load_options)), **options)


@main.command()
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@option(
    "--quantization",
    type=click.Choice(["w8a8", "bf16"]),
    required=True,
    help="w8a8: INT8 weights and activations, in msmodelslim's layout. bf16: dequantised.",
)
@option("--shard-size", type=float, default=5.0, help="GB of one file at most.")
@option(
    "--router-bias-from",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The original of a checkpoint whose conversion lost its router biases.",
)
@option("--revision", help="Branch, tag or commit, for a MODEL on a hub.")
@config_option
def convert(model: str, output: Path, **options: Any) -> None:
    """Write MODEL in another format to the folder OUTPUT; can be stopped and repeated."""
    from glm_portable.commands import run_convert

    raise SystemExit(run_convert(model, output, **options))


@main.command()
@click.argument("model", required=False, envvar="GLM_PORTABLE_MODEL")
@option("--backend", default="auto", help="auto, cuda or rocm: the GPU to measure on.")
@option("--tp", default="1,2,4,8", help="Ranks of tensor parallelism, separated by commas.")
@option("--ep", default="8,16", help="Ranks of expert parallelism, separated by commas.")
@option("--tokens", default="1,16,64,256,1024,4096", help="Tokens in a step.")
@option("--dtype", default="bf16,fp8", help="bf16, fp8, w8a16, separated by commas.")
@option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the tables. [default: where the kernels look for them]",
)
@option("--budget", type=float, help="Seconds, after which no further product is begun.")
@option("--force", is_flag=True, help="Measure again what was measured with these versions.")
@config_option
def tune(model: str | None, **options: Any) -> None:
    """Measure the expert products' tiles on this GPU and write the table they are chosen by.

    Of MODEL only config.json is read; without it, the shapes of GLM-4.5 and Air are measured.
    """
    from glm_portable.tune.command import run_tune

    run_tune(model, **options)


main.add_command(verify)
main.add_command(bench)


@main.command()
@option("--backend", default="auto", help="auto (what has a sign here), ascend, cpu, cuda, rocm.")
@option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@config_option
def doctor(backend: str, as_json: bool) -> None:
    """Say item by item what this machine lacks for a backend; exit code 3 if anything.

    Drivers, devices, toolkits, versions, environment, memory: what was found, and what to do.
    """
    from glm_portable.doctor import run_doctor

    raise SystemExit(run_doctor(backend, as_json))


SGLANG_SPECULATIVE = ("algorithm", "num_steps", "eagle_topk", "num_draft_tokens")
LOAD_OPTIONS = (
    "backend",
    "virtual",
    "dtype",
    "quantization",
    "router_bias_from",
    "revision",
    "chat_template",
    "tool_call_parser",
    "max_model_len",
    "kv_cache_dtype",
    "speculative_config",
)
SAMPLING_OPTIONS = ("max_tokens", "temperature", "top_p", "seed")


def _load(model: str | None, options: dict[str, Any]) -> "GLM":
    from glm_portable.terminal import load_with_progress

    return load_with_progress(model, **{k: options[k] for k in LOAD_OPTIONS})


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    return {k: options[k] for k in SAMPLING_OPTIONS}
