"""The command `glm-portable bench serve`; flags as in `vllm bench serve`."""

from pathlib import Path
from typing import Any

import click

from glm_portable.options import config_option, option

_LISTS = ("--goodput", "--header", "--metadata")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logprobs")


class ServeCommand(click.Command):
    """Takes `--goodput ttft:500 tpot:50`, as vLLM does, for `--goodput ttft:500 --goodput tpot:50`.

    There are no arguments, so whatever follows such an option is one of its values.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        current = None
        for arg in args:
            if current and not arg.startswith("-") and spread[-1] != current:
                spread.append(current)
            elif arg.startswith("-"):
                current = arg if arg in _LISTS else None
            spread.append(arg)
        return super().parse_args(ctx, spread)


@click.command("serve", cls=ServeCommand)
@option(
    "--backend",
    "--endpoint-type",
    type=click.Choice(["openai", "openai-chat", "vllm"]),
    default="openai",
    help="openai and vllm: completions. openai-chat: conversations.",
)
@click.option("--base-url", help="Of the server, such as http://127.0.0.1:8000.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8000, show_default=True)
@option("--endpoint", help="[default: /v1/completions or /v1/chat/completions]")
@click.option("--model", help="Its name or hub id. [default: the first at /v1/models]")
@option("--served-model-name", help="What requests call it, if that is not --model.")
@option("--tokenizer", help="Folder or hub id. [default: the server's /tokenize]")
@option(
    "--dataset-name", type=click.Choice(["random", "sharegpt"]), default="random", help="Prompts."
)
@option("--dataset-path", type=click.Path(path_type=Path, dir_okay=False), help="Of sharegpt.")
@option("--random-input-len", "--input-len", type=int, default=1024, help="Tokens of a prompt.")
@option("--random-output-len", "--output-len", type=int, default=128, help="Tokens of an answer.")
@option(
    "--random-range-ratio", type=float, default=0.0, help="Lengths vary by this share both ways."
)
@option("--random-prefix-len", type=int, default=0, help="Tokens that all prompts begin with.")
@option("--sharegpt-output-len", type=int, help="[default: as in the data set]")
@option("--num-prompts", type=int, default=1000, help="Requests.")
@option("--num-warmups", type=int, default=0, help="Requests before that are not counted.")
@option("--max-concurrency", type=int, help="Requests at once. [default: no limit]")
@option("--request-rate", type=float, default=float("inf"), help="A second; inf: all at once.")
@option("--burstiness", type=float, default=1.0, help="1: Poisson; lower: burstier; inf: regular.")
@option("--seed", type=int, default=0, help="Of prompts and times.")
@option("--ignore-eos", is_flag=True, help="Answers have exactly the length asked for.")
@option("--temperature", type=float, help="[default: the server's]")
@option("--top-p", type=float, help="[default: the server's]")
@option("--top-k", type=int, help="[default: the server's]")
@option("--min-p", type=float, help="[default: the server's]")
@option("--repetition-penalty", type=float, help="[default: the server's]")
@option("--logprobs", type=int, help="Ask for logprobs.")
@option("--extra-body", help="JSON object of more fields of every request.")
@click.option("--header", multiple=True, help="NAME=VALUE ...: headers of every request.")
@option("--insecure", is_flag=True, help="Do not check the certificate of an https server.")
@option("--ready-check-timeout-sec", type=float, default=0.0, help="Wait for the server.")
@option("--percentile-metrics", default="ttft,tpot,itl", help="Of ttft, tpot, itl, e2el.")
@option("--metric-percentiles", default="99", help="Such as 25,50,99.")
@click.option("--goodput", multiple=True, help="ttft:500 tpot:50 e2el:9000 ...: milliseconds.")
@option("--label", help="Begins the name of the result file.")
@click.option("--metadata", multiple=True, help="NAME=VALUE ...: more fields of the result file.")
@option("--save-result", is_flag=True, help="Write a JSON file.")
@option("--save-detailed", is_flag=True, help="With the figures of every request.")
@option("--result-dir", type=click.Path(path_type=Path, file_okay=False), help="[default: here]")
@option("--result-filename", help="[default: from label, rate, model and date]")
@option("--disable-tqdm", is_flag=True, help="No progress bar.")
@config_option
def serve(
    base_url: str | None,
    host: str,
    port: int,
    random_input_len: int,
    random_output_len: int,
    random_range_ratio: float,
    random_prefix_len: int,
    header: tuple[str, ...],
    metadata: tuple[str, ...],
    goodput: tuple[str, ...],
    extra_body: str | None,
    percentile_metrics: str,
    metric_percentiles: str,
    disable_tqdm: bool,
    **options: Any,
) -> None:
    """Load a server of the OpenAI API and print TTFT, TPOT, ITL and E2EL as vLLM does.

    The key of a server that wants one is read from OPENAI_API_KEY. Exit code 1 if a request failed.
    """
    from glm_portable.bench.serve import execute
    from glm_portable.bench.serve.workload import RandomLengths

    sampling = {name: options.pop(name) for name in _SAMPLING}
    given = {name: value for name, value in sampling.items() if value is not None}
    shown_host = f"[{host}]" if ":" in host else host
    objectives = execute.parse_pairs("--goodput", goodput, ":")
    chosen = execute.Options(
        url=base_url or f"http://{shown_host}:{port}",
        lengths=RandomLengths(
            random_input_len, random_output_len, random_range_ratio, random_prefix_len
        ),
        headers=execute.parse_pairs("--header", header, "="),
        metadata=execute.parse_pairs("--metadata", metadata, "="),
        goodput={k: execute.parse_numbers("--goodput", v)[0] for k, v in objectives.items()},
        extra_body=given | execute.parse_object("--extra-body", extra_body),
        metrics=[name for name in percentile_metrics.split(",") if name],
        percentiles=execute.parse_numbers("--metric-percentiles", metric_percentiles),
        progress=not disable_tqdm,
        **options,
    )
    raise SystemExit(execute.run_bench_serve(chosen))
