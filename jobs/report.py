"""The report of a search."""

from vbd.cli import main


def report(*, run: str, output: str, data: str | None = None) -> None:
    """Write what a search found as one HTML page that works offline.

    Args:
        run: Folder of a finished search (jobs/tune.py).
        output: The page, an HTML file.
        data: The prepared dataset of the search; with it the kept checkpoints get bootstrap intervals.
    """
    from vbd.reports.search import write_search_report

    write_search_report(run, output, data=data)
    print(f"{output}: written; open it in any browser")


if __name__ == "__main__":
    main(report)
