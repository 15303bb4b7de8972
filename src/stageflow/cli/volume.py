"""`stageflow volume`: how much is stored, and what of it takes how much."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ..journal import RunFilter
from ..render.volume import draw_sampled, draw_volume
from .answer import CsvOption, JsonOption, NoFormulasOption, give
from .choice import PipelineOption, SinceOption, UntilOption
from .journal_option import JournalOption
from .store_option import ArchiveOption, SamplerOption, VerifyOption, open_store
from .terminal import open_terminal, print_json, print_page, room

__all__ = ["sampling", "volume"]


def volume(
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many fields and days at most.")] = 15,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with every field.")] = False,
) -> None:
    """Show events and bytes of the archive by day, by type and by field: what a field costs.

    Bytes are those on the disk, compressed. `happened` is how many wide events there were, also where
    they were sampled.

    - `stageflow volume`

    - `stageflow volume --json | jq '.fields[:5]'`
    """
    with open_store(journal, archive, verify=verify) as store:
        held = store.volume()
    if as_json:
        print_json(msgspec.json.encode(held))
        return
    terminal = open_terminal()
    print_page(terminal, draw_volume(msgspec.to_builtins(held), width=room(terminal), most=limit))


def sampling(
    sampler: SamplerOption,
    pipeline: PipelineOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Try a sampler on the runs that are there: what it would keep, and why. Nothing is changed.

    `stageflow compact --sampler` uses it for those to come.

    - `stageflow sampling sampling.toml --since 1d`
    """
    where = RunFilter(pipeline=pipeline, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = [msgspec.to_builtins(each) for each in store.dry_run(sampler, where)]
    give(
        found,
        lambda width: draw_sampled(found, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        nothing="There is no run that fits.",
    )
