"""The report of a search."""

import _environment  # noqa: F401 # isort: skip

from vbd.cli import Location, main
from vbd.storage import shown
from vbd.storage.outputs import check_outputs


def report(*, run: Location, output: Location, data: Location | None = None) -> None:
    """Write what a search found, or has found so far, as one HTML page that works offline.

    Args:
        run: Folder of a search (jobs/tune.py); it may still run, or have been stopped.
        output: The page, an HTML file.
        data: The prepared dataset of the search; with it scores get bootstrap intervals, and the page shows each class and
            pictures of what was found and missed.
    """
    check_outputs({"--output": (output, "page")}, reads={"--data": data}, beside={"--run": run})
    from vbd.reports.search.page import write_search_report

    write_search_report(run, output, data=data)
    print(f"{shown(output)}: written; open it in any browser")


if __name__ == "__main__":
    main(report)
